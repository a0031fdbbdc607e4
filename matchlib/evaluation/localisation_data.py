"""What a localisation task needs before anything is extracted: its images and pairs, decided from lists alone."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.datasets.aachen import (
    QUERY_FOLDER,
    AachenDataset,
    ReferenceImage,
    hold_out,
    skeleton_images,
)
from matchlib.datasets.colmap_camera import read_intrinsics_list
from matchlib.datasets.nvm import read_nvm, read_nvm_points
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.localisation_config import MAX_EXHAUSTIVE, LocalisationProtocol
from matchlib.matching.pair_lists import PairList, read_pair_list
from matchlib.sfm.colmap import from_colmap_camera, from_rigid, read_model

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
Int64 = npt.NDArray[np.int64]
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalisationPlan:
    """Which images are matched with which.

    mapping: pairs of images that are no queries
    query:   pairs of a query and a reference image, the query first
    queries: names of the queries to localise; those without a pair fail
    unposed: images of the pairs that are neither reference nor query, but in the skeleton; matched, never used
    """

    mapping: tuple[Pair, ...]
    query: tuple[Pair, ...]
    queries: tuple[str, ...]
    unposed: tuple[str, ...] = ()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs, mapping pairs first."""
        return self.mapping + self.query


def needed_images(plan: LocalisationPlan) -> tuple[str, ...]:
    """The images that features are needed of, sorted: those of the pairs, not all that the dataset has."""
    return tuple(sorted({name for pair in plan.pairs for name in pair}))


def prepare(dataset: AachenDataset, protocol: LocalisationProtocol) -> AachenDataset:
    """The task that the protocol asks for: with held-out images, reference images become queries of known pose.

    Only images that the pair list matches are held out. Raises DataError.
    """
    if protocol.hold_out is None:
        return dataset
    among: Collection[str] | None = None
    if protocol.variant == "challenge":
        among = {name for pair in _challenge_list(dataset).pairs for name in pair}
    return hold_out(dataset, protocol.hold_out, among=among)


def plan_localisation(dataset: AachenDataset, protocol: LocalisationProtocol) -> LocalisationPlan:
    """Pairs and queries of a prepared task (see `prepare`).

    Raises DataError for a missing list, for images of the pairs without intrinsics, and for a task without pairs;
    ConfigError for an unknown condition, a set that is too large for `exhaustive`, or `retrieval` without pairs.
    """
    make = {"challenge": _challenge, "retrieval": _retrieval, "exhaustive": _exhaustive}[protocol.variant]
    plan = make(dataset, protocol)
    if not plan.mapping or not plan.query:
        raise DataError(
            f"{dataset.name}: {len(plan.mapping)} mapping pairs and {len(plan.query)} query pairs, both are needed; "
            f"check that the pair lists are of this dataset"
        )
    without = len(set(plan.queries) - {query for query, _ in plan.query})
    logger.info(
        "%s, %s: %d mapping pairs, %d query pairs, %d images, %d queries (%d without pairs, which fail)",
        dataset.name,
        protocol.variant,
        len(plan.mapping),
        len(plan.query),
        len(needed_images(plan)),
        len(plan.queries),
        without,
    )
    return plan


def read_model_task(root: Path, *, name: str | None = None) -> AachenDataset:
    """A small task from a COLMAP model: `sparse/` (or the only folder with a model), `images/`, and
    `queries_with_intrinsics.txt`.

    Images of the model that the list names are queries of known pose, the others are reference images. Raises
    DataError.
    """
    lists, model_folder, images = root / "queries_with_intrinsics.txt", root / "sparse", root / "images"
    for path in (model_folder, images):
        if not path.is_dir():
            raise DataError(
                f"{path}: no such folder; expected sparse/, images/ and {lists.name} below {root}"
            )
    queries = read_intrinsics_list(lists)
    reference: dict[str, ReferenceImage] = {}
    truth = {}
    model = read_model(model_folder)
    for image in sorted((image for image in model.images.values() if image.has_pose), key=lambda i: i.name):
        pose = from_rigid(image.cam_from_world())
        if image.name in queries:
            truth[image.name] = pose
        else:
            camera = from_colmap_camera(image.camera)
            reference[image.name] = ReferenceImage(camera=camera, T_world_to_cam=pose)
    return AachenDataset(
        name=name or root.name,
        images=images,
        reference=reference,
        queries={"day": queries},
        tracks=model_folder,
        truth=truth,
    )


# ---------------------------------------------------------------- variants
def _challenge_list(dataset: AachenDataset) -> PairList:
    if dataset.pairs is None:
        raise DataError(
            f"{dataset.name}: no list of pairs (image_pairs_to_match.txt), which the challenge is about; put it beside "
            f"the database, or choose the variant retrieval or exhaustive"
        )
    return read_pair_list(dataset.pairs)


def _challenge(dataset: AachenDataset, protocol: LocalisationProtocol) -> LocalisationPlan:
    listed = _challenge_list(dataset)
    logger.info(
        "%s: %d lines, %d pairs (%d repeated and %d of an image with itself left out)",
        dataset.pairs,
        listed.lines,
        len(listed.pairs),
        listed.duplicates,
        listed.selves,
    )
    pairs = [pair for pair in listed.pairs if dataset.ignored.isdisjoint(pair)]
    unposed = _unposed(dataset, pairs)
    mapping, query = _sorted_pairs(pairs, dataset.query_cameras())
    queries = _queries(dataset, protocol, query)
    asked = set(queries)
    return LocalisationPlan(
        mapping=mapping,
        query=tuple(pair for pair in query if pair[0] in asked),
        queries=queries,
        unposed=unposed,
    )


def _retrieval(dataset: AachenDataset, protocol: LocalisationProtocol) -> LocalisationPlan:
    if not protocol.query_pairs:
        raise ConfigError(
            "localisation.query_pairs: expected files of retrieved pairs ('query reference' a line) for the variant "
            "retrieval, got none; in a configuration, `retrieval: {features: LABEL}` beside `protocol` makes them"
        )
    listed = [pair for path in protocol.query_pairs for pair in read_pair_list(Path(path)).pairs]
    listed = [pair for pair in listed if dataset.ignored.isdisjoint(pair)]
    known = dataset.cameras()
    if foreign := sorted({name for pair in listed for name in pair if name not in known}):
        raise DataError(
            f"{', '.join(protocol.query_pairs)}: {len(foreign)} images are neither reference images nor queries with "
            f"intrinsics of {dataset.name}: {', '.join(foreign[:_SHOWN])}; complete the query list, or drop their pairs"
        )
    _, query = _sorted_pairs(listed, dataset.query_cameras())
    queries = _queries(dataset, protocol, query)
    best = _first_of_each(query, set(queries), protocol.retrieved)
    return LocalisationPlan(mapping=covisible_pairs(dataset, protocol.covisible), query=best, queries=queries)


def _exhaustive(dataset: AachenDataset, protocol: LocalisationProtocol) -> LocalisationPlan:
    queries = tuple(dataset.query_cameras(protocol.conditions))
    reference = tuple(dataset.reference)
    if len(queries) + len(reference) > MAX_EXHAUSTIVE:
        raise ConfigError(
            f"localisation.variant: exhaustive is for up to {MAX_EXHAUSTIVE} images, {dataset.name} has "
            f"{len(queries) + len(reference)}; choose challenge or retrieval"
        )
    return LocalisationPlan(
        mapping=tuple(itertools.combinations(reference, 2)),
        query=tuple(itertools.product(queries, reference)),
        queries=queries,
    )


def _unposed(dataset: AachenDataset, pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Images of the pairs without pose and intrinsics. The published database has images that the model lacks: those
    are matched as published, anything else is an error."""
    known = dataset.cameras()
    unknown = sorted({name for pair in pairs for name in pair} - set(known))
    if not unknown:
        return ()
    listed = {} if dataset.skeleton is None else skeleton_images(dataset.skeleton)
    wrong = [name for name in unknown if name not in listed or name.startswith(QUERY_FOLDER)]
    if wrong:
        raise DataError(
            f"{dataset.pairs}: {len(wrong)} images have no intrinsics in the lists of {dataset.name}: "
            f"{', '.join(wrong[:_SHOWN])}; add 'name MODEL width height params...' to a query list, or drop their pairs"
        )
    logger.info("%s: %d images of the pairs have no pose", dataset.name, len(unknown))
    return tuple(unknown)


def _sorted_pairs(
    pairs: Sequence[Pair], queries: Mapping[str, object]
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Mapping pairs, and pairs of a query and another image with the query first. Pairs of two queries are left out:
    they have no 3D points."""
    mapping, query = [], []
    for first, second in pairs:
        if first not in queries and second not in queries:
            mapping.append((first, second))
        elif second not in queries:
            query.append((first, second))
        elif first not in queries:
            query.append((second, first))
    return tuple(mapping), tuple(query)


def _queries(
    dataset: AachenDataset, protocol: LocalisationProtocol, pairs: Iterable[Pair]
) -> tuple[str, ...]:
    """Queries of the asked conditions; by default of all conditions that some pair names."""
    conditions = protocol.conditions
    if conditions is None:
        paired = {name for name, _ in pairs}
        conditions = tuple(key for key, cameras in dataset.queries.items() if paired & set(cameras))
    return tuple(dataset.query_cameras(conditions))


def _first_of_each(pairs: Iterable[Pair], queries: Collection[str], most: int | None) -> tuple[Pair, ...]:
    counts = dict.fromkeys(queries, 0)
    chosen = []
    for query, name in dict.fromkeys(pairs):
        if query in counts and (most is None or counts[query] < most):
            counts[query] += 1
            chosen.append((query, name))
    return tuple(chosen)


# ---------------------------------------------------------------- covisibility
def covisible_pairs(dataset: AachenDataset, per_image: int) -> tuple[Pair, ...]:
    """Pairs of reference images that have most points in common in the model that comes with the data.

    Each image brings its best `per_image`; a pair that both bring counts once. Raises DataError without such a model.
    """
    if dataset.tracks is None:
        raise DataError(
            f"{dataset.name}: no model with points, which covisibility is read from; match exhaustively"
        )
    names, tracks = _tracks(dataset.tracks)
    counts = _common_points(len(names), tracks)
    keep = np.array([index for index, name in enumerate(names) if name in dataset.reference], dtype=np.int64)
    pairs: dict[frozenset[str], Pair] = {}
    for index in keep:
        row = counts[index, keep].astype(np.int64)  # signed: it is negated below
        row[keep == index] = 0
        # A stable sort: among equals the earlier image.
        for place in np.argsort(-row, kind="stable")[:per_image]:
            if row[place] > 0:
                pair = (names[index], names[keep[place]])
                pairs.setdefault(frozenset(pair), pair)
    return tuple(pairs.values())


def _tracks(source: Path) -> tuple[tuple[str, ...], Iterator[Sequence[int]]]:
    """Image names, and for each point the rows of the images that see it."""
    if source.is_file():
        return tuple(read_nvm(source)), (point.images for point in read_nvm_points(source))
    model = read_model(source)
    images = sorted(model.images.values(), key=lambda image: image.name)
    row = {image.image_id: index for index, image in enumerate(images)}
    points = (
        [row[element.image_id] for element in point.track.elements] for point in model.points3D.values()
    )
    return tuple(image.name for image in images), points


def _common_points(images: int, tracks: Iterable[Sequence[int]]) -> npt.NDArray[np.uint32]:
    """(images, images) counts of common points; 180 MB for the 6,697 images of Aachen v1.1."""
    counts = np.zeros((images, images), np.uint32)
    for track in tracks:
        seen = np.unique(track)
        counts[seen[:, None], seen] += 1
    return counts
