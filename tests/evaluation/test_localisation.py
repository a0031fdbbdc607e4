"""Localisation against worlds of known pose: every variant, the half pixel, and everything that may be missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.spatial.transform import Rotation

from matchlib.completion import read_marker
from matchlib.datasets.aachen import AachenDataset, ReferenceImage, read_aachen, read_pose_list
from matchlib.datasets.colmap_camera import ColmapCamera, write_intrinsics_list
from matchlib.datasets.nvm import NvmPoint, write_nvm
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.localisation import (
    LocalisationResult,
    QueryResult,
    localisation_table,
    pose_errors,
    read_localisation,
    score_localisation,
    submission_name,
    within,
    write_localisation,
    write_submission,
)
from matchlib.evaluation.localisation_config import LocalisationProtocol
from matchlib.evaluation.localisation_data import (
    covisible_pairs,
    needed_images,
    plan_localisation,
    prepare,
    read_model_task,
)
from matchlib.evaluation.localisation_run import evaluate_localisation, import_job, plan_job, read_plan
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.matching.at_scale import match_shard
from matchlib.matching.config import VladConfig
from matchlib.matching.pair_lists import write_pair_list
from matchlib.matching.retrieval import retrieve_pairs
from matchlib.sfm.poses import Registered

FOCAL, SIZE = 500.0, (640, 480)
CAMERA = ColmapCamera(model="SIMPLE_RADIAL", width=640, height=480, params=(FOCAL, 320.0, 240.0, 0.0))
REFERENCE = tuple(f"db/{number}.jpg" for number in range(1, 9))
DAY = ("query/day/nexus4/a.jpg", "query/day/nexus4/b.jpg")
NIGHT = ("query/night/nexus5x/c.jpg", "query/night/nexus5x/d.jpg")
LONELY = "query/night/nexus5x/lonely.jpg"
HEADER = StoreHeader(method="exact", fingerprint="1")


def look_at(centre: np.ndarray, roll: float) -> np.ndarray:
    """World-to-camera pose at `centre` that looks at (0, 0, 6)."""
    forward = np.array([0.0, 0.0, 6.0]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0, 0, roll]).as_matrix() @ np.stack(
        [right, np.cross(forward, right), forward]
    )
    T[:3, 3] = -T[:3, :3] @ centre
    return T


def true_poses() -> dict[str, np.ndarray]:
    """Reference images on an arc; queries between them, those of the night upside down."""
    poses = {}
    for name, x in zip(REFERENCE, np.linspace(-2.5, 2.5, len(REFERENCE)), strict=True):
        poses[name] = look_at(np.array([x, 0.3 * math.sin(3 * x), 0.1 * x * x]), 0.05 * x)
    for index, name in enumerate((*DAY, *NIGHT, LONELY)):
        centre = np.array([-1.5 + 0.7 * index, 0.2, 0.3])
        poses[name] = look_at(centre, math.pi if name in NIGHT else 0.0)
    return poses


POSES = true_poses()


def points() -> np.ndarray:
    return np.random.default_rng(0).uniform([-2, -1.5, 4.5], [2, 1.5, 8.0], (300, 3))


def project(T: np.ndarray) -> np.ndarray:
    """COLMAP's pixels, by hand."""
    seen = points() @ T[:3, :3].T + T[:3, 3]
    return seen[:, :2] / seen[:, 2:] * FOCAL + [320, 240]


def exact_features(path: Path, names: tuple[str, ...] = tuple(POSES)) -> Path:
    """Each point as a keypoint (first pixel centre at (0, 0)) with a descriptor of its own; LONELY is a blank image."""
    descriptors = np.random.default_rng(1).normal(size=(300, 32)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    with FeatureWriter(path, HEADER) as writer:
        for name in names:
            keypoints = project(POSES[name]) - 0.5
            inside = ((keypoints >= -0.5) & (keypoints < np.array(SIZE) - 0.5)).all(axis=1) & (name != LONELY)
            order = np.random.default_rng(len(name)).permutation(np.flatnonzero(inside))
            features = Features(
                keypoints=keypoints[order].astype(np.float32),
                scores=np.ones(len(order), np.float32),
                descriptors=descriptors[order],
                image_size=SIZE,
            )
            writer.add(name, features)
        writer.finish()
    return path


def exact_task(root: Path) -> AachenDataset:
    """The task with its lists: all reference pairs, each query of the night with four reference images."""
    pairs = [(a, b) for i, a in enumerate(REFERENCE) for b in REFERENCE[i + 1 :]]
    queries = [(query, name) for query in (*NIGHT, LONELY) for name in REFERENCE[2:6]]
    root.mkdir(exist_ok=True)
    lines = [f"{a} {b}\n" for a, b in [*pairs, *queries]]
    lines += ["db/2.jpg db/1.jpg\n", "db/1.jpg db/1.jpg\n"]  # a pair again, and an image with itself
    (root / "pairs.txt").write_text("".join(lines))
    tracks = [NvmPoint(position=row, images=tuple(range(index % 7, 8))) for index, row in enumerate(points())]
    reference_poses = {name: POSES[name] for name in REFERENCE}
    write_nvm(root / "model.nvm", reference_poses, focal_px=dict.fromkeys(REFERENCE, FOCAL), points=tracks)
    return AachenDataset(
        name="aachen",
        images=root,
        reference={
            name: ReferenceImage(camera=CAMERA, T_world_to_cam=T) for name, T in reference_poses.items()
        },
        queries={"day": dict.fromkeys(DAY, CAMERA), "night": dict.fromkeys((*NIGHT, LONELY), CAMERA)},
        pairs=root / "pairs.txt",
        tracks=root / "model.nvm",
        truth={name: POSES[name] for name in (*DAY, *NIGHT, LONELY)},
    )


@pytest.fixture
def task(tmp_path: Path) -> AachenDataset:
    return exact_task(tmp_path / "data")


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return exact_features(tmp_path_factory.mktemp("features") / "exact.h5")


def error_of(result: LocalisationResult, name: str) -> tuple[float, float]:
    (query,) = (query for query in result.queries if query.name == name)
    assert query.position is not None
    assert query.rotation_deg is not None
    return query.position, query.rotation_deg


# ---------------------------------------------------------------- from features to shares
def test_exact_features_give_exact_poses_in_the_challenge(
    task: AachenDataset, features: Path, tmp_path: Path
) -> None:
    result = evaluate_localisation(task, features, tmp_path / "out", label="exact")
    assert [query.name for query in result.queries] == [*NIGHT, LONELY]  # day queries are in no pair
    for name in NIGHT:
        position, rotation = error_of(result, name)
        assert position < 1e-3
        assert rotation < 0.01
    assert error_of(result, LONELY) == (math.inf, math.inf)
    shares = result.shares("night")
    assert shares is not None
    np.testing.assert_allclose(shares, 2 / 3)
    scores = tmp_path / "out" / "scores"
    submitted = read_pose_list(scores / "Aachen_eval_[exact].txt")
    assert list(submitted) == ["c.jpg", "d.jpg"]
    np.testing.assert_allclose(submitted["c.jpg"], POSES[NIGHT[0]], atol=1e-3)
    assert read_localisation(scores / "result.json") == result
    row = json.loads((scores / "table.json").read_text())[0]
    assert (row["method"], row["condition"], row["queries"], row["localised"]) == ("exact", "night", 3, 2)
    with FeatureReader(features) as reader:
        assert row["features_digest"] == reader.digest


def test_without_the_half_pixel_poses_are_biased(task: AachenDataset, features: Path, tmp_path: Path) -> None:
    """Reference images upright, queries upside down: points are half a pixel off one way, queries the other."""
    right = evaluate_localisation(task, features, tmp_path / "right")
    protocol = LocalisationProtocol(pixel_offset=0.0)
    wrong = evaluate_localisation(task, features, tmp_path / "wrong", protocol=protocol)
    bias = math.degrees(0.5 / FOCAL)
    for name in NIGHT:
        assert error_of(right, name)[1] < 0.1 * bias
        assert error_of(wrong, name)[1] > 0.5 * bias
    assert right.way != wrong.way


def test_retrieval_localises_day_and_night(task: AachenDataset, features: Path, tmp_path: Path) -> None:
    lines = [f"{query} {name}\n" for query in (*DAY, *NIGHT) for name in REFERENCE[1:7]]
    (tmp_path / "retrieved.txt").write_text("".join(lines))
    protocol = LocalisationProtocol(
        variant="retrieval", query_pairs=(str(tmp_path / "retrieved.txt"),), retrieved=4, covisible=3
    )
    result = evaluate_localisation(task, features, tmp_path / "out", protocol=protocol)
    assert result.conditions == ("day", "night")
    for name in (*DAY, *NIGHT):
        position, rotation = error_of(result, name)
        assert position < 1e-3
        assert rotation < 0.01
    assert error_of(result, LONELY) == (math.inf, math.inf)
    assert read_marker(tmp_path / "out" / "poses") is not None


def test_held_out_images_are_localised_without_any_truth_of_queries(
    task: AachenDataset, features: Path, tmp_path: Path
) -> None:
    hidden = replace(task, truth={})
    result = evaluate_localisation(
        hidden, features, tmp_path / "out", protocol=LocalisationProtocol(hold_out=4)
    )
    assert [query.name for query in result.queries] == ["db/3.jpg", "db/7.jpg"]
    assert max(error_of(result, "db/3.jpg")) < 0.01
    assert list((tmp_path / "out" / "scores").glob("*.txt")) == []  # nothing to submit
    exhaustive = LocalisationProtocol(variant="exhaustive", hold_out=4)
    again = evaluate_localisation(hidden, features, tmp_path / "all", protocol=exhaustive)
    assert [query.name for query in again.queries] == ["db/3.jpg", "db/7.jpg"]
    assert again.shares("held_out").tolist() == [1, 1, 1]


def test_a_rendered_place_is_localised_with_sift(tmp_path: Path) -> None:
    from matchlib.features.config import SiftConfig
    from matchlib.features.extract import extract_features
    from matchlib.features.sift import build_rootsift
    from matchlib.mirror.aachen_views import aachen_images
    from matchlib.mirror.aachen_writer import write_aachen
    from matchlib.mirror.config import AachenMirrorConfig
    from matchlib.mirror.scene import build_scene

    config = AachenMirrorConfig(
        reference_images=8, sequence_images=0, day_queries=2, night_queries=1, additional_night_queries=0
    )
    scene = build_scene(
        seed=0,
        dataset="aachen",
        index=0,
        pool="validation",
        images=aachen_images(config),
        image_size=config.image_size,
        texture_px=256,
        lighting_conditions=2,
    )
    write_aachen(tmp_path / "root", scene, config, seed=0, supersampling=1)
    dataset = read_aachen(tmp_path / "root")
    extractor = build_rootsift(SiftConfig(max_keypoints=800), None, "cpu")
    names = sorted(dataset.cameras())
    extract_features(dataset.images, names, extractor=extractor, out=tmp_path / "f.h5", show_progress=False)
    pairs = tmp_path / "root" / "queries" / "pairs-query-covisible.txt"
    protocol = LocalisationProtocol(variant="retrieval", query_pairs=(str(pairs),))
    result = evaluate_localisation(dataset, tmp_path / "f.h5", tmp_path / "out", protocol=protocol)
    shares = result.shares("day")
    assert shares is not None
    assert shares[0] == 1.0
    median = result.summary()[0]["median_position"]
    assert median < 0.05  # the cameras are about 7 units away
    assert result.summary()[0]["condition"] == "day"


# ---------------------------------------------------------------- retrieval
def test_retrieved_pairs_serve_as_query_pairs(task: AachenDataset, features: Path, tmp_path: Path) -> None:
    reference, queries = tuple(task.reference), tuple(task.query_cameras())
    settings = VladConfig(clusters=8)
    found = retrieve_pairs(features, reference=reference, queries=queries, per_image=3, config=settings)
    assert len(found) == 3 * 4  # the blank query brings none
    write_pair_list(tmp_path / "retrieved.txt", found)
    protocol = LocalisationProtocol(variant="retrieval", query_pairs=(str(tmp_path / "retrieved.txt"),))
    plan = plan_localisation(task, protocol)
    assert plan.query == found
    assert {query for query, _ in plan.query} == {*DAY, *NIGHT}


# ---------------------------------------------------------------- plans
def test_only_images_of_the_pairs_are_needed(task: AachenDataset) -> None:
    plan = plan_localisation(task, LocalisationProtocol())
    assert len(plan.mapping) == 28
    assert len(plan.query) == 12
    assert all(query.startswith("query/") for query, _ in plan.query)
    assert needed_images(plan) == (*REFERENCE, *sorted((*NIGHT, LONELY)))
    day = plan_localisation(task, replace(LocalisationProtocol(), conditions=("day", "night")))
    assert day.queries == (*DAY, *NIGHT, LONELY)  # asked for, but without pairs: they fail
    with pytest.raises(ConfigError, match="'dusk' is none of aachen"):
        plan_localisation(task, replace(LocalisationProtocol(), conditions=("dusk",)))


def test_plans_are_whole_or_absent(task: AachenDataset, tmp_path: Path) -> None:
    plan = plan_job(task, tmp_path / "plan", LocalisationProtocol())
    assert read_plan(tmp_path / "plan") == plan
    assert (tmp_path / "plan" / "images.txt").read_text().split() == list(needed_images(plan))
    (tmp_path / "plan" / ".complete").unlink()
    with pytest.raises(DataError, match="not finished"):
        read_plan(tmp_path / "plan")


def test_queries_of_the_pairs_without_intrinsics_are_named(task: AachenDataset) -> None:
    less = replace(task, queries={"night": dict.fromkeys(NIGHT, CAMERA)})
    with pytest.raises(DataError, match=r"1 images have no intrinsics in the lists of aachen: .*lonely\.jpg"):
        plan_localisation(less, LocalisationProtocol())
    assert plan_localisation(
        prepare(task, LocalisationProtocol(hold_out=4)), LocalisationProtocol(hold_out=4)
    )


def test_missing_lists_and_sizes_are_explained(task: AachenDataset) -> None:
    with pytest.raises(DataError, match=r"no list of pairs \(image_pairs_to_match.txt\)"):
        plan_localisation(replace(task, pairs=None), LocalisationProtocol())
    with pytest.raises(ConfigError, match=r"localisation\.query_pairs: expected files"):
        plan_localisation(task, LocalisationProtocol(variant="retrieval"))
    with pytest.raises(DataError, match="no model with points"):
        covisible_pairs(replace(task, tracks=None), 3)
    many = {f"db/{index}.jpg": task.reference["db/1.jpg"] for index in range(400)}
    with pytest.raises(ConfigError, match="exhaustive is for up to 300 images, aachen has 405"):
        plan_localisation(replace(task, reference=many), LocalisationProtocol(variant="exhaustive"))


def test_retrieved_images_must_be_known(task: AachenDataset, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text(f"{DAY[0]} db/99.jpg\n")
    protocol = LocalisationProtocol(variant="retrieval", query_pairs=(str(tmp_path / "q.txt"),))
    with pytest.raises(DataError, match=r"neither reference images nor queries .*: db/99\.jpg"):
        plan_localisation(task, protocol)


def test_covisible_pairs_share_most_points(task: AachenDataset) -> None:
    """Point i is seen by images i % 7 to 7, so images a < b share points of i % 7 <= a: late images share most."""
    pairs = covisible_pairs(task, 1)
    # Every image shares as many points with all later ones, and fewer with earlier ones: ties go to the first.
    assert set(map(frozenset, pairs)) == {
        frozenset((REFERENCE[index], REFERENCE[index + 1])) for index in range(7)
    }
    assert len(covisible_pairs(task, 7)) == 28
    assert covisible_pairs(
        replace(task, reference={name: task.reference[name] for name in REFERENCE[:2]}), 7
    ) == ((REFERENCE[0], REFERENCE[1]),)


def test_published_lists_go_through_import(shared_data, tmp_path: Path) -> None:
    """The real skeleton and pair list: counts, ids kept, images without pairs without keypoints."""
    import pycolmap

    lists = shared_data("aachen_lists")
    from matchlib.datasets.aachen import skeleton_images

    ids = skeleton_images(lists / "database.db")
    image = ReferenceImage(camera=CAMERA, T_world_to_cam=np.eye(4))
    dataset = AachenDataset(
        name="aachen",
        images=lists,
        reference={name: image for name in ids if name.startswith("db/")},
        queries={
            "day": {name: CAMERA for name in ids if name.startswith("query/day/")},
            "night": {name: CAMERA for name in ids if name.startswith("query/night/")},
        },
        pairs=lists / "image_pairs_to_match.txt",
        skeleton=lists / "database.db",
    )
    plan = plan_localisation(dataset, LocalisationProtocol())
    assert (len(plan.mapping), len(plan.query), len(plan.queries)) == (12984, 1957, 98)
    assert len(needed_images(plan)) == 1182
    blank = Features(
        keypoints=np.ones((2, 2), np.float32),
        scores=np.ones(2, np.float32),
        descriptors=np.eye(2, 4, dtype=np.float32),
        image_size=SIZE,
    )
    few = replace(plan, mapping=plan.mapping[:3], query=plan.query[:3])
    with FeatureWriter(tmp_path / "f.h5", HEADER) as writer:
        for name in needed_images(few):
            writer.add(name, blank)
        writer.finish()
    (tmp_path / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in few.pairs))
    match_shard(tmp_path / "f.h5", tmp_path / "pairs.txt", tmp_path / "matches", show_progress=False)
    out = tmp_path / "database.db"
    counts = import_job(
        dataset,
        few,
        features=tmp_path / "f.h5",
        matches=[tmp_path / "matches"],
        out=out,
        protocol=LocalisationProtocol(),
    )
    assert (counts.pairs, counts.matches) == (6, 12)
    with pycolmap.Database.open(str(out)) as database:
        assert {image.name: image.image_id for image in database.read_all_images()} == ids
        name = few.query[0][0]
        np.testing.assert_array_equal(database.read_keypoints(ids[name])[:, :2], 1.5)
        assert len(database.read_keypoints(ids["db/4000.jpg"])) == 0


def test_features_are_those_of_the_pairs_and_of_the_matches(task: AachenDataset, tmp_path: Path) -> None:
    plan = plan_job(task, tmp_path / "plan", LocalisationProtocol())
    whole = exact_features(tmp_path / "whole.h5")
    match_shard(whole, tmp_path / "plan" / "pairs.txt", tmp_path / "matches", show_progress=False)
    less = exact_features(tmp_path / "less.h5", tuple(name for name in POSES if name != "db/5.jpg"))
    more = exact_features(tmp_path / "more.h5", tuple(name for name in POSES if name not in DAY))
    for path, message in (
        (less, r"no features of 1 of the 11 images of the pairs: db/5\.jpg"),
        (more, r"matches of other features than .*more\.h5 holds"),
    ):
        with pytest.raises(DataError, match=message):
            import_job(
                task,
                plan,
                features=path,
                matches=[tmp_path / "matches"],
                out=tmp_path / "database.db",
                protocol=LocalisationProtocol(),
            )
    assert not (tmp_path / "database.db").exists()


def test_a_colmap_model_with_a_query_list_is_a_task(shared_data) -> None:
    task = read_model_task(shared_data("sfm_lund_door"), name="lund_door")
    assert len(task.reference) == 9
    assert set(task.truth) == {"DSC_0004.JPG", "DSC_0007.JPG", "DSC_0010.JPG"} == set(task.queries["day"])
    plan = plan_localisation(task, LocalisationProtocol(variant="exhaustive"))
    assert (len(plan.mapping), len(plan.query)) == (36, 27)
    assert len(covisible_pairs(task, 3)) >= 9


def test_a_task_folder_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sparse: no such folder"):
        read_model_task(tmp_path)
    (tmp_path / "sparse").mkdir()
    (tmp_path / "images").mkdir()
    write_intrinsics_list(tmp_path / "queries_with_intrinsics.txt", {"q.jpg": CAMERA})
    with pytest.raises(DataError, match="sparse"):
        read_model_task(tmp_path)


# ---------------------------------------------------------------- scores
def test_pose_errors_are_of_centres_and_angles() -> None:
    T = look_at(np.array([1.0, 2.0, -3.0]), 0.3)
    moved = T.copy()
    moved[:3, :3] = Rotation.from_rotvec(np.radians([0, 0, 3.0])).as_matrix() @ T[:3, :3]
    moved[:3, 3] = -moved[:3, :3] @ (np.array([1.0, 2.0, -3.0]) + [0.3, 0.0, 0.4])
    position, rotation = pose_errors(moved, T)
    assert position == pytest.approx(0.5)
    assert rotation == pytest.approx(3.0)
    assert pose_errors(T, T) == (0, 0)


def result_of(position: list[float], rotation: list[float]) -> LocalisationResult:
    queries = tuple(
        QueryResult(
            name=f"{index}.jpg",
            condition="night",
            inliers=None if math.isinf(p) else 50,
            position=p,
            rotation_deg=r,
        )
        for index, (p, r) in enumerate(zip(position, rotation, strict=True))
    )
    return LocalisationResult(
        label="m",
        dataset="aachen",
        way="challenge",
        pixel_offset=0.5,
        thresholds=((0.25, 2.0), (0.5, 5.0), (5.0, 10.0)),
        bootstrap=BootstrapConfig(),
        features_digest="d",
        queries=queries,
    )


def test_shares_need_both_errors_and_count_failures() -> None:
    result = result_of([0.25, 0.1, 0.4, 3.0, math.inf], [2.0, 2.1, 1.0, 9.0, math.inf])
    shares = result.shares("night")
    assert shares is not None
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.8])
    assert within(np.array([0.2]), np.array([30.0]), ((0.25, 2.0),)).tolist() == [[False]]
    row = result.summary()[0]
    assert row["median_position"] == 0.4
    assert row["median_rotation_deg"] == 2.1
    assert (row["queries"], row["localised"]) == (5, 4)
    interval = result.interval("night")
    assert interval is not None
    assert (interval[0] <= shares).all()
    assert (interval[1] >= shares).all()
    assert row["within@0.5/5_low"] == interval[0, 1]


def test_intervals_have_the_spread_of_a_binomial() -> None:
    """98 queries of which half succeed: the standard deviation of the share is sqrt(0.25 / 98)."""
    result = result_of([0.0, 9.0] * 49, [0.0, 0.0] * 49)
    interval = result.interval("night")
    assert interval is not None
    assert interval[1, 0] - interval[0, 0] == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 98), rel=0.15)


def test_results_read_back_and_unknown_truth_has_no_shares(tmp_path: Path) -> None:
    result = result_of([0.1, math.inf], [1.0, math.inf])
    write_localisation(tmp_path / "r.json", result)
    assert read_localisation(tmp_path / "r.json") == result
    blind = replace(
        result,
        queries=(QueryResult(name="a", condition="night", inliers=40, position=None, rotation_deg=None),),
    )
    write_localisation(tmp_path / "blind.json", blind)
    assert read_localisation(tmp_path / "blind.json") == blind
    assert blind.shares("night") is None
    assert "within@0.25/2" not in blind.summary()[0]
    table = localisation_table([blind, result])
    assert table["within@0.25/2"].isna().tolist() == [True, False]
    (tmp_path / "r.json").write_text(json.dumps({"layout": "matchlib-localisation-1", "queries": [{}]}))
    with pytest.raises(DataError, match=r"r\.json: incomplete or foreign result"):
        read_localisation(tmp_path / "r.json")


def test_submissions_have_a_line_per_localised_query(tmp_path: Path) -> None:
    pose = Registered(T_world_to_cam=POSES[NIGHT[0]], inliers=30)
    path = tmp_path / submission_name("aachen_v1_1", "my method/2")
    assert path.name == "Aachen_v1_1_eval_[my_method_2].txt"
    assert write_submission(path, {"query/night/b.jpg": None, NIGHT[0]: pose}) == 1
    words = path.read_text().split()
    assert words[0] == "c.jpg"
    x, y, z, w = Rotation.from_matrix(pose.T_world_to_cam[:3, :3]).as_quat(canonical=True)
    np.testing.assert_allclose(
        np.array(words[1:], float), [w, x, y, z, *pose.T_world_to_cam[:3, 3]], atol=1e-12
    )
    with pytest.raises(DataError, match=r"several queries are named 'c\.jpg'"):
        write_submission(tmp_path / "twice.txt", {"query/day/c.jpg": pose, NIGHT[0]: pose})
    assert not (tmp_path / "twice.txt").exists()


def test_poses_of_other_images_are_refused(task: AachenDataset) -> None:
    pose = Registered(T_world_to_cam=np.eye(4), inliers=30)
    with pytest.raises(DataError, match=r"no queries: db/1\.jpg"):
        score_localisation(task, {"db/1.jpg": pose}, LocalisationProtocol(), label="m")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"hold_out": 1}, "hold_out"),
        ({"retrieved": 0}, "retrieved"),
        ({"covisible": 0}, "covisible"),
        ({"pixel_offset": 2.0}, "pixel_offset"),
        ({"mapping_error_px": 0.0}, "mapping_error_px"),
        ({"thresholds": ()}, "thresholds"),
        ({"thresholds": ((0.0, 2.0),)}, "thresholds"),
        ({"conditions": ()}, "conditions"),
        ({"query_pairs": ("a.txt",)}, "query_pairs"),
    ],
)
def test_settings_are_checked(settings: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"localisation\.{key}: expected"):
        LocalisationProtocol(**settings)


def test_settings_are_read_from_plain_values() -> None:
    adapter = TypeAdapter(LocalisationProtocol)
    config = adapter.validate_python(
        {"variant": "exhaustive", "thresholds": [[0.1, 1]], "matcher": {"min_matches": 2}}
    )
    assert config.thresholds == ((0.1, 1.0),)
    assert config == adapter.validate_python(adapter.dump_python(config))
    assert config.description == "exhaustive, mutual, +0.5 px, registration 12 px"
