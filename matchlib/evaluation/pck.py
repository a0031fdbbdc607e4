"""The PCK evaluation: from a describer, query points and the dataset folder to a `PCKResult`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from matchlib.completion import digest_file
from matchlib.datasets import hpatches
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError, ShapeError, check_shape
from matchlib.evaluation.metrics import matching_accuracy
from matchlib.evaluation.pck_config import Matcher, PCKProtocol, point_settings
from matchlib.evaluation.pck_frames import resize_image, true_scale
from matchlib.evaluation.pck_matchers import Index, check_matcher, nearest_candidates
from matchlib.evaluation.pck_points import PairPoints, PCKPoints, read_points
from matchlib.evaluation.pck_result import PCKAblation, PCKPair, PCKResult
from matchlib.features.dense import DenseDescriber, DenseDescriptors
from matchlib.features.types import Image
from matchlib.randomness import address_seed

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]


def evaluate_pck(
    describer: DenseDescriber,
    root: Path,
    points_path: Path,
    *,
    protocol: PCKProtocol,
    label: str | None = None,
    show_progress: bool = True,
) -> PCKResult:
    """Evaluate a describer at the points that `pck_points.write_points` drew on the HPatches folder `root`.

    label: name in tables; by default the describer's. A describer that `uses_true_scale` is given the scale
    maps of the true homography, and the result says so. Raises ConfigError if the points were drawn for other
    settings or the matcher does not fit, DataError if an image is not the one the points were drawn for,
    ShapeError if descriptors have another shape than the describer states or are not finite.
    """
    (result,), _ = _evaluate(
        describer, root, points_path, protocol, (protocol.matcher,), label, show_progress
    )
    return result


def evaluate_pck_ablation(
    describer: DenseDescriber,
    root: Path,
    points_path: Path,
    *,
    protocol: PCKProtocol,
    label: str | None = None,
    show_progress: bool = True,
) -> PCKAblation:
    """Search the same descriptors exactly and by FLANN: what of a figure is the method's, what the matcher's.

    Arguments and errors as in `evaluate_pck`; the protocol's `matcher` does not matter. Sets of descriptors are
    searched exactly only: a k-d tree knows single vectors.
    """
    if len(describer.members) > 1:
        (exact,), _ = _evaluate(describer, root, points_path, protocol, ("exact",), label, show_progress)
        return PCKAblation(exact=exact)
    (exact, flann), same_index = _evaluate(
        describer, root, points_path, protocol, ("exact", "flann"), label, show_progress
    )
    return PCKAblation(exact=exact, flann=flann, same_index=same_index)


def grid_points(size: tuple[int, int], step: int) -> Float32:
    """(M, 2) float32 pixels x = 0, step, 2 step, ... of each row y = 0, step, ... of an image (width, height)."""
    x, y = np.arange(0, size[0], step), np.arange(0, size[1], step)
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1).astype(np.float32)


# ---------------------------------------------------------------- all pairs
class _Clock:
    """Seconds by kind of work: for the log only, because results must not depend on the machine's mood."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, work: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[work] = self.seconds.get(work, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class _DescribedPair:
    """queries (N, S, D) at the points of image 1, candidates (M, S, D) at `places` (M, 2) of image k."""

    points: PairPoints
    queries: Tensor
    candidates: Tensor
    places: Float32


@torch.no_grad()
def _evaluate(
    describer: DenseDescriber,
    root: Path,
    points_path: Path,
    protocol: PCKProtocol,
    matchers: Sequence[Matcher],
    label: str | None,
    show_progress: bool,
) -> tuple[list[PCKResult], tuple[float, ...]]:
    """One result per matcher, and per pair the share of queries for which all matchers agree."""
    for matcher in matchers:
        check_matcher(matcher, describer.members, where=f"pck protocol '{protocol.name}' of {describer.name}")
    points = _points_for(points_path, protocol)
    rows: list[list[PCKPair]] = [[] for _ in matchers]
    same_index: list[float] = []
    clock = _Clock()
    progress = tqdm(
        total=len(points.pairs),
        desc=f"pck {protocol.name}",
        unit="pair",
        disable=None if show_progress else True,
    )
    with progress:
        for pair in _described_pairs(describer, root, points, protocol, clock):
            indices = [_match(pair, describer, protocol, matcher, clock) for matcher in matchers]
            same_index.append(_agreement(pair, indices))
            for row, index in zip(rows, indices, strict=True):
                row.append(_pair_figures(pair, index, protocol))
            progress.update()
    results = [
        _result(describer, points, replace(protocol, matcher=matcher), pairs, label)
        for matcher, pairs in zip(matchers, rows, strict=True)
    ]
    _log(results, clock)
    return results, tuple(same_index)


def _result(
    describer: DenseDescriber,
    points: PCKPoints,
    protocol: PCKProtocol,
    pairs: Sequence[PCKPair],
    label: str | None,
) -> PCKResult:
    return PCKResult(
        label=label or describer.name,
        protocol=protocol,
        members=tuple(describer.members),
        member_pairs=describer.member_pairs,
        uses_truth=describer.uses_true_scale,
        fingerprint=describer.fingerprint,
        points_digest=points.digest,
        pairs=tuple(pairs),
        left_out=points.left_out,
    )


def _points_for(path: Path, protocol: PCKProtocol) -> PCKPoints:
    """The points of a file. Raises ConfigError if they were drawn for other settings than the protocol's."""
    points, wanted = read_points(path), point_settings(protocol)
    differing = [key for key in wanted if wanted[key] != points.settings.get(key)]
    if differing:
        found = ", ".join(f"{key}: {points.settings.get(key)} instead of {wanted[key]}" for key in differing)
        raise ConfigError(
            f"{path}: drawn for another protocol than '{protocol.name}' ({found}); draw the points again"
        )
    return points


def _described_pairs(
    describer: DenseDescriber, root: Path, points: PCKPoints, protocol: PCKProtocol, clock: _Clock
) -> Iterator[_DescribedPair]:
    """The descriptors of each pair, in order; image 1 is described once per sequence where that is possible."""
    for name, group in groupby(points.pairs, key=lambda pair: pair.sequence):
        pairs = list(group)
        paths = hpatches.read_sequence(root, name).image_paths
        image0 = _scaled_image(paths[0], pairs[0].image0, pairs[0].size0)
        dense0: DenseDescriptors | None = None
        for pair in pairs:
            image1 = _scaled_image(paths[pair.k - 1], pair.image1, pair.size1)
            places = pair.points1
            if protocol.candidates == "grid":
                places = grid_points(pair.size1, protocol.grid_step)
            with clock.measure("describing"):
                if dense0 is None or describer.uses_true_scale:
                    dense0 = _describe(describer, image0, pair.H_0to1)
                queries = _descriptors_at(dense0, pair.points0, describer)
                dense1 = _describe(describer, image1, np.linalg.inv(pair.H_0to1))
                candidates = _descriptors_at(dense1, places, describer)
            yield _DescribedPair(points=pair, queries=queries, candidates=candidates, places=places)


def _scaled_image(path: Path, digest: str, size: tuple[int, int]) -> Image:
    if digest_file(path) != digest:
        raise DataError(f"{path}: not the image that the query points were drawn for; draw the points again")
    return resize_image(read_image(path), size)


def _describe(describer: DenseDescriber, image: Image, H_to_other: npt.ArrayLike) -> DenseDescriptors:
    if not describer.uses_true_scale:
        return describer.describe(image)
    return describer.describe(image, scale=true_scale(H_to_other, (image.shape[1], image.shape[0])))


def _descriptors_at(dense: DenseDescriptors, points: Float32, describer: DenseDescriber) -> Tensor:
    found = dense.at(torch.from_numpy(points))
    expected = f"{len(points)} {len(describer.members)} {describer.descriptor_dim}"
    check_shape(f"descriptors of {describer.name}", found, expected)
    if not torch.isfinite(found).all():
        raise ShapeError(f"descriptors of {describer.name}: expected finite values, got NaN or infinity")
    return found


# ---------------------------------------------------------------- one pair
def _match(
    pair: _DescribedPair, describer: DenseDescriber, protocol: PCKProtocol, matcher: Matcher, clock: _Clock
) -> Index:
    seed = address_seed(protocol.seed, "pck", matcher, pair.points.sequence, pair.points.k)
    with clock.measure(f"{matcher} matching"):
        return nearest_candidates(
            pair.queries,
            pair.candidates,
            matcher=matcher,
            member_pairs=describer.member_pairs,
            seed=seed,
        )


def _agreement(pair: _DescribedPair, indices: Sequence[Index]) -> float:
    """Share of queries for which all matchers find the same place.

    Places, not indices: truncated partners often coincide, and then any of them is the nearest.
    """
    first = pair.places[indices[0]]
    same = [(index >= 0) & (pair.places[index] == first).all(axis=1) for index in indices]
    return float(np.mean(np.all(same, axis=0)))


def _pair_figures(pair: _DescribedPair, index: Index, protocol: PCKProtocol) -> PCKPair:
    found = pair.places[index].astype(np.float64)
    errors = np.linalg.norm(found - pair.points.points1.astype(np.float64), axis=1)
    errors[index < 0] = np.inf
    shares = matching_accuracy(errors, (protocol.threshold_px, *protocol.curve_px)).tolist()
    return PCKPair(
        sequence=pair.points.sequence,
        k=pair.points.k,
        points=len(errors),
        candidates=len(pair.places),
        correct=shares[0],
        curve=tuple(shares[1:]),
    )


def _log(results: Sequence[PCKResult], clock: _Clock) -> None:
    for result in results:
        protocol = result.protocol
        logger.info(
            "%s, PCK %s (%s, %s): %d pairs, %.4f within %g px%s",
            result.label,
            protocol.name,
            protocol.candidates_name,
            protocol.matcher,
            len(result.pairs),
            result.pck(),
            protocol.threshold_px,
            "; oracle: uses the true scale" if result.uses_truth else "",
        )
    seconds = ", ".join(f"{work} {duration:.1f} s" for work, duration in clock.seconds.items())
    logger.info("%s: %s", results[0].label, seconds)
    if results[0].left_out:
        logger.warning("pairs without query points are left out: %s", ", ".join(results[0].left_out))
