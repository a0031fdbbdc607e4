"""Scenes that features fail on: reconstruction and localisation end in rows of zeros and pages, not in errors."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from matchlib.datasets.aachen import AachenDataset, ReferenceImage
from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.datasets.eth_benchmark import EthScene, read_scene
from matchlib.datasets.images import write_image
from matchlib.datasets.nvm import NvmPoint, write_nvm
from matchlib.errors import DataError
from matchlib.evaluation.localisation import LocalisationResult, localisation_table, read_localisation
from matchlib.evaluation.localisation_config import LocalisationProtocol
from matchlib.evaluation.localisation_run import evaluate_localisation, import_job, plan_job
from matchlib.evaluation.reconstruction import (
    ReconstructionResult,
    read_reconstruction,
    write_reconstruction,
)
from matchlib.evaluation.reconstruction_config import ReconstructionProtocol
from matchlib.evaluation.reconstruction_run import choose_pairs, database_step, evaluate_scene
from matchlib.evaluation.reconstruction_table import reconstruction_table, script_rows
from matchlib.evaluation.table import write_table
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.matching.at_scale import match_shard
from matchlib.matching.config import MatcherConfig
from matchlib.matching.pair_lists import write_pair_list
from matchlib.matching.store import MatchReader
from matchlib.sfm.colmap import read_model
from matchlib.sfm.config import MappingConfig, VerificationConfig
from matchlib.visualization.build import build_report

Float64 = npt.NDArray[np.float64]
Case = Literal["blank", "few", "wrong", "one centre", "disconnected", "easy"]

SIZE, POINTS = (1280, 960), 120
FOCAL = 1.2 * SIZE[0]  # what is guessed: turned cameras explain their matches exactly
CAMERA = ColmapCamera(model="SIMPLE_RADIAL", width=1280, height=960, params=(FOCAL, 640.0, 480.0, 0.0))
MATCHER = MatcherConfig(min_matches=15)
VERIFICATION = VerificationConfig(min_inliers=30, max_trials=500)  # chance agrees on 15 of 60 wrong matches


# ---------------------------------------------------------------- worlds
@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """True poses by name, and what a method found in the images.

    groups: images that see the same points, which no image of another group sees
    """

    poses: Mapping[str, Float64]
    features: Mapping[str, Features]
    groups: tuple[tuple[str, ...], ...]


def views(names: tuple[str, ...], *, one_centre: bool) -> dict[str, Float64]:
    """Cameras on an arc about (0, 0, 6), or turned about one centre; neighbours have 5 or 8 degrees between them."""
    poses = {}
    for row, name in enumerate(names):
        offset = row - (len(names) - 1) / 2
        T = np.eye(4)
        if one_centre:
            T[:3, :3] = Rotation.from_euler("yz", [2.0 * offset, 5.0 * offset], degrees=True).as_matrix()
        else:
            R = Rotation.from_euler("yx", [8.0 * offset, 3.0 * (-1) ** row], degrees=True).as_matrix()
            T[:3, :3], T[:3, 3] = R, [0, 0, 6] - R @ [0, 0, 6]
        poses[name] = T
    return poses


def world_of(case: Case, names: tuple[str, ...]) -> World:
    """`blank`: no keypoint; `few`: ten, below the matcher's least; `wrong`: descriptors of another image's noise;
    `one centre`: exact, without any baseline; `disconnected`: exact, every second image sees other points."""
    rng = np.random.default_rng(0)
    poses = views(names, one_centre=case == "one centre")
    groups = (names[::2], names[1::2]) if case == "disconnected" else (names,)
    features = {}
    for group in groups:
        points = rng.uniform([-2.0, -1.5, 4.8], [2.0, 1.5, 7.2], (POINTS, 3))
        descriptors = rng.normal(size=(POINTS, 32))
        for name in group:
            seen = points @ poses[name][:3, :3].T + poses[name][:3, 3]
            keypoints = seen[:, :2] / seen[:, 2:] * FOCAL + [639.5, 479.5]  # first centre at (0, 0)
            inside = ((keypoints >= 0) & (keypoints <= np.array(SIZE) - 1)).all(axis=1)
            rows = np.flatnonzero(inside)[: {"blank": 0, "few": 10}.get(case)]
            if case == "wrong":
                descriptors = rng.normal(size=descriptors.shape)
            unit = descriptors[rows] / np.linalg.norm(descriptors[rows], axis=1, keepdims=True)
            features[name] = Features(
                keypoints=keypoints[rows].astype(np.float32),
                scores=np.ones(len(rows), np.float32),
                descriptors=unit.astype(np.float32),
                image_size=SIZE,
            )
    return World(poses=poses, features=features, groups=groups)


def write_features(path: Path, world: World) -> Path:
    with FeatureWriter(path, StoreHeader(method="toy", fingerprint="1")) as writer:
        for name in sorted(world.features):
            writer.add(name, world.features[name])
        writer.finish()
    return path


def write_report(out: Path, **folders: list[Path]) -> str:
    build_report(
        out, results=[], training=[], features={}, hpatches_root=None, published=[], about={}, **folders
    )
    return out.read_text()


# ---------------------------------------------------------------- reconstruction
PHOTOS = tuple(f"{number}.png" for number in range(8))
PROTOCOL = ReconstructionProtocol(
    matcher=MATCHER,
    verification=VERIFICATION,
    mapping=MappingConfig(min_model_size=3, init_min_inliers=30),
    repeats=2,
)


def eth_scene(root: Path) -> EthScene:
    for name in PHOTOS:
        write_image(root / "Arc" / "images" / name, np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
    return read_scene(root, "Arc")


def reconstruct(world: World, folder: Path) -> ReconstructionResult:
    """As the graph does, all files in `folder`."""
    scene = eth_scene(folder / "data")
    write_features(folder / "f.h5", world)
    write_pair_list(folder / "pairs.txt", choose_pairs(scene, PROTOCOL))
    match_shard(
        folder / "f.h5", folder / "pairs.txt", folder / "matches", config=MATCHER, show_progress=False
    )
    with FeatureReader(folder / "f.h5") as features, MatchReader(folder / "matches") as matches:
        result = evaluate_scene(
            scene, features, matches, folder, PROTOCOL, label="toy", features_digest=features.digest
        )
    write_reconstruction(result, folder / "result.json")
    assert read_reconstruction(folder / "result.json") == result
    return result


@pytest.mark.parametrize(
    ("case", "has_matches", "has_verified", "said"),
    [
        ("blank", False, False, "none of the 28 pairs has a match"),
        ("few", False, False, "none of the 28 pairs has a match"),
        ("wrong", True, False, "none of the 28 pairs with matches was verified"),
        ("one centre", True, True, "no pair serves to begin with"),
    ],
)
def test_a_scene_that_is_not_reconstructed_is_a_row(
    case: Case,
    has_matches: bool,
    has_verified: bool,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        result = reconstruct(world_of(case, PHOTOS), tmp_path)
    assert said in caplog.text
    assert "no model came out" in caplog.text
    assert (result.images, result.pairs, len(result.runs)) == (8, 28, 2)
    assert (result.matches > 0, result.mean("verified_pairs") > 0) == (has_matches, has_verified)
    for run in result.runs:
        assert (run.statistics.registered_images, run.statistics.points, run.statistics.models) == (0, 0, 0)
        assert run.statistics.mean_reprojection_error_px is None
        assert run.poses is None
    write_table(reconstruction_table([result], with_published=False), tmp_path / "table")
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert (row["registered_images"], row["points"], row["registered_images_sd"]) == (0, 0, 0)
    means = ("mean_track_length", "mean_observations_per_image", "mean_reprojection_error_px")
    assert [row[name] for name in means] == [None] * 3
    pairs, inliers = int(result.mean("verified_pairs")), int(result.mean("inlier_matches"))
    first = f"| Arc | toy (seed 0) | 8 | 0 | 0 | 0 |  |  |  | not asked |  |  |  |  | {pairs} | {inliers} |"
    assert script_rows([result]).splitlines()[0] == first
    assert "Reconstruction" in write_report(tmp_path / "report.html", reconstructions=[tmp_path])
    assert read_model(tmp_path / "model-0").num_images() == 0


def test_of_a_disconnected_scene_one_part_is_reported(tmp_path: Path) -> None:
    world = world_of("disconnected", PHOTOS)
    result = reconstruct(world, tmp_path)
    for run in result.runs:
        assert (run.statistics.registered_images, run.statistics.models) == (4, 2)
        assert run.statistics.points > 0.8 * POINTS
        assert run.statistics.mean_reprojection_error_px is not None
        assert run.statistics.mean_reprojection_error_px < 0.1
    registered = {image.name for image in read_model(tmp_path / "model-0").images.values() if image.has_pose}
    assert registered in [set(group) for group in world.groups]
    assert result.mean("verified_pairs") == 12  # six in each part, none between them
    page = write_report(tmp_path / "report.html", reconstructions=[tmp_path])
    assert "Arc, toy" in page


def test_features_of_other_images_are_an_error_not_an_empty_scene(tmp_path: Path) -> None:
    scene = eth_scene(tmp_path)
    moved = {f"images/{name}": found for name, found in world_of("easy", PHOTOS).features.items()}
    write_features(tmp_path / "f.h5", World(poses={}, features=moved, groups=()))
    write_pair_list(tmp_path / "pairs.txt", [("images/0.png", "images/1.png")])
    match_shard(tmp_path / "f.h5", tmp_path / "pairs.txt", tmp_path / "matches", show_progress=False)
    with FeatureReader(tmp_path / "f.h5") as features, MatchReader(tmp_path / "matches") as matches:
        with pytest.raises(DataError, match=r"none of its 8 images has features, e.g. not '0\.png'"):
            database_step(scene, features, matches, tmp_path / "database.db", PROTOCOL)
        with pytest.raises(DataError, match=r"matches of other features than .*f\.h5 holds"):
            matches.require_features("another digest", features.path)
    with pytest.raises(DataError, match="expected finished matches, got no such folder"):
        MatchReader(tmp_path / "nowhere")
    assert not (tmp_path / "database.db").exists()


# ---------------------------------------------------------------- localisation
REFERENCE = tuple(f"db/{number}.jpg" for number in range(6))
QUERIES = ("query/night/a.jpg", "query/night/b.jpg")
ALL = (*REFERENCE, *QUERIES)  # each part of a disconnected world has three references and a query
VARIANTS = ("exhaustive", "retrieval")


def task_of(world: World, root: Path) -> AachenDataset:
    reference = {name: world.poses[name] for name in REFERENCE}
    points = [NvmPoint(position=np.array([0.0, 0.0, 6.0 + row]), images=tuple(range(6))) for row in range(3)]
    root.mkdir()
    write_nvm(root / "model.nvm", reference, focal_px=dict.fromkeys(REFERENCE, FOCAL), points=points)
    return AachenDataset(
        name="aachen",
        images=root,
        reference={name: ReferenceImage(camera=CAMERA, T_world_to_cam=T) for name, T in reference.items()},
        queries={"night": dict.fromkeys(QUERIES, CAMERA)},
        tracks=root / "model.nvm",
        truth={name: world.poses[name] for name in QUERIES},
    )


def protocol_of(variant: str, folder: Path) -> LocalisationProtocol:
    if variant == "exhaustive":
        return LocalisationProtocol(variant="exhaustive", matcher=MATCHER, verification=VERIFICATION)
    path = folder / "retrieved.txt"
    write_pair_list(path, [(query, name) for query in QUERIES for name in REFERENCE])
    return LocalisationProtocol(variant="retrieval", query_pairs=(str(path),), matcher=MATCHER)


def localise(world: World, variant: str, folder: Path) -> LocalisationResult:
    """As the graph does, all files in `folder`."""
    features = write_features(folder / "f.h5", world)
    task, protocol = task_of(world, folder / "data"), protocol_of(variant, folder)
    result = evaluate_localisation(task, features, folder, protocol=protocol, label="toy")
    assert read_localisation(folder / "scores" / "result.json") == result
    return result


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("blank", "pairs has a match"),
        ("few", "pairs has a match"),
        ("wrong", "no point came out"),
        ("one centre", "no point came out of"),
    ],
)
def test_queries_that_nothing_localises_fail_without_an_error(
    case: Case, said: str, variant: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = localise(world_of(case, ALL), variant, tmp_path)
    assert said in caplog.text
    assert "has no 3D points" in caplog.text
    assert [(query.name, query.inliers, query.position) for query in result.queries] == [
        (name, None, math.inf) for name in QUERIES
    ]
    shares = result.shares("night")
    assert shares is not None and shares.tolist() == [0, 0, 0]
    write_table(localisation_table([result]), tmp_path / "table")
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert (row["queries"], row["localised"], row["within@0.25/2"]) == (2, 0, 0)
    assert [row[name] for name in ("inliers", "median_position", "median_rotation_deg")] == [None] * 3
    assert (tmp_path / "scores" / "Aachen_eval_[toy].txt").read_text() == ""
    assert "Localisation" in write_report(tmp_path / "report.html", localisations=[tmp_path])
    model = read_model(tmp_path / "model")
    assert (model.num_reg_images(), model.num_points3D()) == (6, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_are_localised_in_their_part_of_a_disconnected_map(variant: str, tmp_path: Path) -> None:
    result = localise(world_of("disconnected", ALL), variant, tmp_path)
    assert [query.is_localised for query in result.queries] == [True, True]
    for query in result.queries:
        assert query.position is not None and query.position < 0.01
    assert "Localisation" in write_report(tmp_path / "report.html", localisations=[tmp_path])


def test_one_failing_method_keeps_its_row_beside_another(tmp_path: Path) -> None:
    results = []
    for case in ("easy", "blank"):
        (tmp_path / case).mkdir()
        results.append(localise(world_of(case, ALL), "exhaustive", tmp_path / case))
    table = localisation_table(results)
    assert table["localised"].tolist() == [2, 0]
    assert table["inliers"].isna().tolist() == [False, True]
    write_report(tmp_path / "report.html", localisations=[tmp_path / "easy", tmp_path / "blank"])


def test_a_plan_of_other_images_is_still_an_error(tmp_path: Path) -> None:
    world = world_of("easy", ALL)
    features = write_features(tmp_path / "f.h5", world)
    task, protocol = task_of(world, tmp_path / "data"), protocol_of("exhaustive", tmp_path)
    plan = plan_job(task, tmp_path / "plan", protocol)
    with pytest.raises(DataError, match="expected finished matches, got no such folder"):
        import_job(
            task,
            plan,
            features=features,
            matches=[tmp_path / "matches"],
            out=tmp_path / "database.db",
            protocol=protocol,
        )
    assert not (tmp_path / "database.db").exists()
