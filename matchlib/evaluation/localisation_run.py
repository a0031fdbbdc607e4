"""Visual localisation as jobs from file to file, each resumable by itself: plan, (extract, match), import, verify,
triangulate, register, score.

Extraction and matching are the general ones (`features.extract`, `matching.at_scale`) over `images.txt` and `pairs.txt`
of the plan. `dataset` is the prepared task everywhere (see `localisation_data.prepare`).
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matchlib.completion import atomic_write, atomic_write_json, require_complete
from matchlib.datasets.aachen import AachenDataset
from matchlib.errors import DataError
from matchlib.evaluation.localisation import LocalisationResult, score_job
from matchlib.evaluation.localisation_config import LocalisationProtocol
from matchlib.evaluation.localisation_data import (
    LocalisationPlan,
    needed_images,
    plan_localisation,
    prepare,
)
from matchlib.features.store import FeatureReader
from matchlib.matching.at_scale import match_shard
from matchlib.matching.pair_lists import write_pair_list
from matchlib.matching.store import MatchReader
from matchlib.matching.types import Matches
from matchlib.sfm.database import VerificationSummary, build_database, verify_database
from matchlib.sfm.database_rows import MatchCounts
from matchlib.sfm.localisation import PointLookup, localise
from matchlib.sfm.pose_verification import verify_with_poses
from matchlib.sfm.poses import Registered, write_poses
from matchlib.sfm.registration import POSES, register_images
from matchlib.sfm.statistics import ModelStatistics
from matchlib.sfm.triangulation import triangulate
from matchlib.sfm.work import finished_folder

logger = logging.getLogger(__name__)

PAIRS, IMAGES, PLAN = "pairs.txt", "images.txt", "plan.json"
_SHOWN = 5


# ---------------------------------------------------------------- plan
def plan_job(dataset: AachenDataset, out: Path, protocol: LocalisationProtocol) -> LocalisationPlan:
    """Decide images and pairs, and write them to the folder `out`: finished, or absent.

    `images.txt`: what to extract; `pairs.txt`: what to match; `plan.json`: which pairs serve what.
    """
    plan = plan_localisation(dataset, protocol)
    inputs = [path for path in (dataset.pairs, *map(Path, protocol.query_pairs)) if path is not None]
    with finished_folder(out, stage="localisation_plan", settings=asdict(protocol), inputs=inputs) as folder:
        write_pair_list(folder / PAIRS, plan.pairs)
        atomic_write(folder / IMAGES, "".join(f"{name}\n" for name in needed_images(plan)))
        atomic_write_json(folder / PLAN, asdict(plan))
    return plan


def read_plan(folder: Path) -> LocalisationPlan:
    """What `plan_job` wrote. Raises DataError."""
    require_complete(folder, hint="plan the localisation first")
    path = folder / PLAN
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return LocalisationPlan(
            mapping=tuple((first, second) for first, second in body["mapping"]),
            query=tuple((first, second) for first, second in body["query"]),
            queries=tuple(body["queries"]),
            unposed=tuple(body["unposed"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a plan as JSON, got {error!r}; plan again") from error


# ---------------------------------------------------------------- COLMAP
def import_job(
    dataset: AachenDataset,
    plan: LocalisationPlan,
    *,
    features: Path,
    matches: Sequence[Path],
    out: Path,
    protocol: LocalisationProtocol,
) -> MatchCounts:
    """Write the database `out`: the skeleton's images where there is one, all intrinsics, keypoints and matches.

    Images that are in no pair stay without keypoints. Raises DataError for images of the pairs without features.
    """
    with FeatureReader(features) as reader, MatchReader(matches) as found:
        _require_features(reader, needed_images(plan))
        found.require_features(reader.digest, reader.path)
        return build_database(
            out,
            images=dataset.cameras(),
            features=reader,
            matches=found,
            pixel_offset=protocol.pixel_offset,
            skeleton=dataset.skeleton,
        )


def verify_job(
    dataset: AachenDataset,
    plan: LocalisationPlan,
    *,
    database: Path,
    out: Path,
    protocol: LocalisationProtocol,
) -> VerificationSummary:
    """Geometric verification into a new database: by RANSAC, for `retrieval` of mapping pairs by the known poses.

    No verified pair at all is a result: no query will be localised. Raises DataError, see `verify_database`.
    """
    if protocol.variant == "retrieval":
        return verify_with_poses(
            database, out, plan.mapping, dataset.known(), max_error_px=protocol.mapping_error_px
        )
    return verify_database(database, out, plan.pairs, protocol.verification)


def triangulate_job(
    dataset: AachenDataset, *, database: Path, out: Path, protocol: LocalisationProtocol
) -> ModelStatistics:
    """Points from the verified matches of the reference images, possibly none; their poses and intrinsics stay."""
    return triangulate(database, dataset.known(), out, protocol.triangulation)


def register_job(
    dataset: AachenDataset,
    plan: LocalisationPlan,
    *,
    database: Path,
    model: Path,
    features: Path,
    matches: Sequence[Path],
    out: Path,
    protocol: LocalisationProtocol,
) -> dict[str, Registered | None]:
    """Poses of all queries of the plan, None where there is none, into the folder `out` (`poses.json`).

    Against a model without points, all queries fail.
    """
    if protocol.variant != "retrieval":
        return register_images(database, model, plan.queries, out, protocol.registration)
    # Markers say which model, features and matches the poses are of.
    inputs = [model / ".complete", *(folder / ".complete" for folder in matches)]
    with (
        finished_folder(out, stage="localisation", settings=asdict(protocol), inputs=inputs) as folder,
        FeatureReader(features) as reader,
        MatchReader(matches) as found,
    ):
        found.require_features(reader.digest, reader.path)
        poses = _localise_all(dataset, plan, PointLookup(model), reader, found, protocol)
        write_poses(folder / POSES, poses)
    logger.info(
        "%s: %d of %d queries localised", out, sum(pose is not None for pose in poses.values()), len(poses)
    )
    return poses


def _localise_all(
    dataset: AachenDataset,
    plan: LocalisationPlan,
    lookup: PointLookup,
    features: FeatureReader,
    matches: MatchReader,
    protocol: LocalisationProtocol,
) -> dict[str, Registered | None]:
    cameras = dataset.query_cameras()
    retrieved: defaultdict[str, list[str]] = defaultdict(list)
    for query, name in plan.query:
        retrieved[query].append(name)
    poses: dict[str, Registered | None] = {}
    for query in plan.queries:
        found: dict[str, Matches] = {name: matches.read(query, name) for name in retrieved[query]}
        if not any(len(pair) for pair in found.values()):
            poses[query] = None
            continue
        poses[query] = localise(
            lookup,
            query=query,
            keypoints_N2=features.read(query).keypoints,
            camera=cameras[query],
            matches=found,
            config=protocol.localisation,
            pixel_offset=protocol.pixel_offset,
        )
    return poses


def _require_features(reader: FeatureReader, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in reader and name not in reader.unreadable]
    if missing:
        raise DataError(
            f"{reader.path}: no features of {len(missing)} of the {len(names)} images of the pairs: "
            f"{', '.join(missing[:_SHOWN])}; extract the images that {IMAGES} of the plan names, "
            f"with names relative to the same folder"
        )
    if unreadable := [name for name in names if name in reader.unreadable]:
        logger.warning(
            "%s: %d images could not be read and count as images without keypoints: %s",
            reader.path,
            len(unreadable),
            ", ".join(unreadable[:_SHOWN]),
        )


# ---------------------------------------------------------------- all at once
def evaluate_localisation(
    dataset: AachenDataset,
    features: Path,
    out: Path,
    *,
    protocol: LocalisationProtocol | None = None,
    label: str | None = None,
    device: str = "cpu",
) -> LocalisationResult:
    """All steps after extraction, in one process, each into its place below `out`; matching goes on where it was.

    dataset:  as published; what the protocol holds out is taken from it here
    features: a features file of the images that the plan needs, of any method
    Raises DataError, see the jobs.
    """
    protocol = protocol or LocalisationProtocol()
    task = prepare(dataset, protocol)
    plan = plan_job(task, out / "plan", protocol)
    matches = out / "matches"
    match_shard(features, out / "plan" / PAIRS, matches, config=protocol.matcher, device=device)
    raw, verified = out / "database.db", out / "verified.db"
    import_job(task, plan, features=features, matches=[matches], out=raw, protocol=protocol)
    verify_job(task, plan, database=raw, out=verified, protocol=protocol)
    triangulate_job(task, database=verified, out=out / "model", protocol=protocol)
    register_job(
        task,
        plan,
        database=verified,
        model=out / "model",
        features=features,
        matches=[matches],
        out=out / "poses",
        protocol=protocol,
    )
    with FeatureReader(features) as reader:
        digest = reader.digest
        named = reader.header.method if reader.header is not None else features.stem
    return score_job(
        task, out / "poses", out / "scores", protocol, label=label or named, features_digest=digest
    )
