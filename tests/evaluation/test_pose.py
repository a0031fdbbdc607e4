"""Relative pose: exact answers by every estimator, conventions, failures, sharing, real pairs with known figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.datasets.pose_pairs import PosePair, PosePairSet, read_pose_pairs
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.pose import evaluate_pose
from matchlib.evaluation.pose_config import (
    POSE_PROTOCOLS,
    PUBLISHED_POSE_PROTOCOLS,
    UPSTREAM_DEPTH_LIMIT,
    PoseProtocol,
    published_protocol,
    threshold_sweep,
)
from matchlib.evaluation.pose_errors import epipolar_errors_px, epipolar_precision, pose_error_deg
from matchlib.evaluation.pose_estimators import (
    CalibratedMatches,
    calibrate,
    estimate_pose,
    normalized_threshold,
)
from matchlib.evaluation.pose_table import pose_table
from matchlib.features.config import SiftConfig
from matchlib.features.extract import extract_features
from matchlib.features.sift import build_rootsift
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.matching.mutual_nearest import match_mutual_nearest
from matchlib.matching.types import Matches

ESTIMATORS: list[Any] = ["opencv_ransac", "opencv_magsac", "poselib", "pycolmap"]
SIZE = (640, 480)
K = np.array([[520.0, 0, 310], [0, 500, 245], [0, 0, 1]])


def rigid(rotation: Any, t: Any) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(np.array(rotation, dtype=float))[0]
    T[:3, 3] = t
    return T


TRUE_T = rigid((0.05, -0.12, 0.03), (0.8, 0.1, -0.2))


def projections(count: int, *, T: np.ndarray = TRUE_T, seed: int = 0, K: np.ndarray = K) -> tuple[Any, Any]:
    """Pixels of the same points in both images, in the pixels of K; every point lies in front of both cameras."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(4, 9, count)
    points0 = rng.uniform([20, 20], [620, 460], (count, 2))
    X = np.column_stack([(points0 - K[:2, 2]) / K.diagonal()[:2], np.ones(count)]) * z[:, None]
    Y = X @ T[:3, :3].T + T[:3, 3]
    assert (Y[:, 2] > 0.5).all()
    return points0, Y[:, :2] / Y[:, 2:] * K.diagonal()[:2] + K[:2, 2]


def calibrated(points0: np.ndarray, points1: np.ndarray) -> CalibratedMatches:
    return CalibratedMatches(points0=points0, points1=points1, K0=K, K1=K, size0=SIZE, size1=SIZE)


def features_at(points: np.ndarray, *, rows: np.ndarray | None = None) -> Features:
    """Row i has the descriptor of point `rows[i]` (i if not given)."""
    names = np.arange(len(points)) if rows is None else rows
    table = np.random.default_rng(7).normal(size=(1000, 32)).astype(np.float32)
    descriptors = table[names] / np.linalg.norm(table[names], axis=1, keepdims=True)
    return Features(
        keypoints=points.astype(np.float32),
        scores=np.linspace(1, 0.5, len(points), dtype=np.float32),
        descriptors=descriptors,
        image_size=SIZE,
    )


def a_pair(**changes: Any) -> PosePair:
    return PosePair(**({"name0": "0.png", "name1": "1.png", "K0": K, "K1": K, "T_0to1": TRUE_T} | changes))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """Write features by image name, open them."""
    readers = []

    def build(features: dict[str, Features], name: str = "toy.h5") -> FeatureReader:
        with FeatureWriter(tmp_path / name, StoreHeader(method="toy", fingerprint="f")) as writer:
            for image, item in features.items():
                writer.add(image, item)
            writer.finish()
        readers.append(FeatureReader(tmp_path / name))
        return readers[-1]

    yield build
    for reader in readers:
        reader.close()


def pair_set(*pairs: PosePair, **changes: Any) -> PosePairSet:
    return PosePairSet(**({"name": "toy", "root": Path("absent"), "pairs": pairs or (a_pair(),)} | changes))


def run(reader: FeatureReader, pairs: PosePairSet, *protocols: PoseProtocol, **options: Any) -> Any:
    return evaluate_pose(reader, pairs, protocols or POSE_PROTOCOLS, show_progress=False, **options)


# ---------------------------------------------------------------- estimators
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_exact_matches_give_the_exact_pose(estimator: Any) -> None:
    pose = estimate_pose(calibrated(*projections(80)), PoseProtocol(estimator=estimator))
    assert pose is not None
    assert max(pose_error_deg(pose.R, pose.t, TRUE_T)) < 1e-3
    assert pose.inlier.all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wrong_matches_are_found_and_equal_seeds_give_equal_poses(estimator: Any) -> None:
    points0, points1 = projections(120)
    points1[::3] = np.random.default_rng(1).uniform([0, 0], SIZE, (40, 2))
    points1 += np.random.default_rng(2).normal(scale=0.2, size=points1.shape)
    protocol = PoseProtocol(estimator=estimator)
    pose, again = (estimate_pose(calibrated(points0, points1), protocol, seed=2**40 + 5) for _ in range(2))
    assert pose is not None and again is not None
    np.testing.assert_array_equal(pose.R, again.R)
    np.testing.assert_array_equal(pose.inlier, again.inlier)
    assert max(pose_error_deg(pose.R, pose.t, TRUE_T)) < 3
    right = np.arange(120) % 3 != 0
    assert pose.inlier[right].mean() > 0.8
    assert pose.inlier[~right].mean() < 0.2


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_fewer_than_five_matches_have_no_pose(estimator: Any, count: int) -> None:
    assert estimate_pose(calibrated(*projections(count)), PoseProtocol(estimator=estimator)) is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_matches_at_one_place_never_raise(estimator: Any) -> None:
    points = np.full((30, 2), 100.0)
    pose = estimate_pose(calibrated(points, points), PoseProtocol(estimator=estimator, max_iterations=1000))
    assert pose is None or np.isfinite(pose.R).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_threshold_is_in_pixels(estimator: Any) -> None:
    """Matches 2 px off their epipolar lines are in at 6 px and out at 0.5 px."""
    points0, points1 = projections(150)
    E = np.cross(np.eye(3), TRUE_T[:3, 3]).T @ TRUE_T[:3, :3]
    F = np.linalg.inv(K).T @ E @ np.linalg.inv(K)
    normals = (np.column_stack([points0, np.ones(150)]) @ F.T)[:, :2]
    moved = np.arange(150) % 5 == 0
    sign = np.where(np.arange(150) % 2 == 0, 1.0, -1.0)[:, None]
    points1[moved] += (2 * sign * normals / np.linalg.norm(normals, axis=1, keepdims=True))[moved]
    shares = []
    for threshold in (0.5, 6.0):
        protocol = PoseProtocol(estimator=estimator, threshold_px=threshold, max_iterations=2000)
        pose = estimate_pose(calibrated(points0, points1), protocol)
        assert pose is not None
        shares.append(pose.inlier[moved].mean())
    assert shares[0] < 0.1 and shares[1] > 0.9


def test_far_points_vote_unless_the_depth_limit_forbids_it() -> None:
    """Published OpenCV figures ignore points beyond 50 baselines; all of them lie there, so no pose gets a vote."""
    points0, points1 = projections(60, T=rigid((0.05, -0.1, 0), (0.04, 0.01, 0)))
    matches = calibrated(points0, points1)
    protocol = PoseProtocol(estimator="opencv_ransac", threshold_px=0.01)
    assert estimate_pose(matches, protocol) is not None
    assert estimate_pose(matches, replace(protocol, depth_limit=UPSTREAM_DEPTH_LIMIT)) is None
    # The very call of SuperGlue and LoFTR, whose 1e9 does not arrive.
    E, mask = cv2.findEssentialMat(*matches.normalized(), np.eye(3), method=cv2.RANSAC, threshold=1e-5)
    assert cv2.recoverPose(E, *matches.normalized(), np.eye(3), 1e9, mask=mask)[0] == 0


# ---------------------------------------------------------------- errors
@settings(max_examples=60, deadline=None)
@given(
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: 0.1 < np.linalg.norm(a)),
    angle=st.floats(1e-7, 179.9),
    scale=st.floats(-100, 100).filter(lambda s: abs(s) > 1e-3),
    slant=st.floats(0, 180),
)
def test_errors_are_the_angles_that_were_put_in(axis: Any, angle: float, scale: float, slant: float) -> None:
    turn = cv2.Rodrigues(np.array(axis) / np.linalg.norm(axis) * np.radians(angle))[0]
    T = rigid((0.3, 0.2, -0.5), (0, 0, 2.0))
    t = scale * np.array([np.sin(np.radians(slant)), 0, np.cos(np.radians(slant))])
    rotation, translation = pose_error_deg(turn @ T[:3, :3], t, T)
    assert rotation == pytest.approx(angle, rel=1e-6, abs=1e-9)
    assert translation == pytest.approx(min(slant, 180 - slant), rel=1e-6, abs=1e-6)


def test_a_pose_without_baseline_has_a_rotation_error_only() -> None:
    T = rigid((0.1, 0, 0), (0, 0, 0.01))
    assert pose_error_deg(T[:3, :3], np.array([1.0, 0, 0]), T) == pytest.approx((0, 90), abs=1e-9)
    assert pose_error_deg(T[:3, :3], np.array([1.0, 0, 0]), T, min_baseline=0.01) == pytest.approx((0, 0))
    T[:3, 3] = 0
    assert pose_error_deg(T[:3, :3], np.array([1.0, 0, 0]), T)[1] == 0
    assert epipolar_precision(calibrated(*projections(9)), T, 1e-4) is None


def test_precision_counts_as_the_formula_of_superglue() -> None:
    points0, points1 = projections(200)
    points1 += np.random.default_rng(3).normal(scale=4, size=points1.shape)
    matches = calibrated(points0, points1)
    x0, x1 = (np.column_stack([x, np.ones(200)]) for x in matches.normalized())
    tx, ty, tz = TRUE_T[:3, 3]
    E = np.array([[0, -tz, ty], [tz, 0, -tx], [-ty, tx, 0]]) @ TRUE_T[:3, :3]
    line1, line0 = x0 @ E.T, x1 @ E
    squared = (x1 * line1).sum(1) ** 2
    distance = squared * (1 / (line1[:, :2] ** 2).sum(1) + 1 / (line0[:, :2] ** 2).sum(1))
    for threshold in (1e-5, 1e-4, 5e-4):
        assert epipolar_precision(matches, TRUE_T, threshold) == np.mean(distance < threshold)
    assert 0.2 < np.mean(distance < 1e-4) < 0.9
    assert epipolar_precision(calibrated(*projections(0)), TRUE_T, 1e-4) == 0


# ---------------------------------------------------------------- frames and conventions
def test_resizing_moves_the_threshold_and_nothing_else() -> None:
    points0, points1 = projections(40)
    original = PoseProtocol(estimator="opencv_ransac", threshold_px=2.0)
    resized = replace(original, threshold_frame="resized", long_side=320)
    frames = [
        calibrate((points0, points1), (SIZE, SIZE), a_pair(), pixel_offset=0.0, protocol=protocol)
        for protocol in (original, resized)
    ]
    for whole, half in zip(frames[0].normalized(), frames[1].normalized(), strict=True):
        np.testing.assert_allclose(whole, half, atol=1e-12)
    assert frames[1].size0 == (320, 240)
    assert normalized_threshold(frames[1], resized) == pytest.approx(
        2 * normalized_threshold(frames[0], original)
    )
    assert normalized_threshold(frames[0], original) == pytest.approx(2 / 510)


def test_loftr_takes_the_mean_of_two_focal_lengths() -> None:
    K1 = np.diag([2.0, 4.0, 1.0]) @ K
    matches = replace(calibrated(*projections(5)), K1=K1)
    four, two = PoseProtocol(), PoseProtocol(mean_focal="fx0_fy1")
    assert normalized_threshold(matches, four) == pytest.approx(4 / (520 + 500 + 1040 + 2000))
    assert normalized_threshold(matches, two) == pytest.approx(2 / (520 + 2000))


def test_points_on_the_plane_are_those_of_the_camera_whatever_the_convention() -> None:
    points0, points1 = projections(20)
    direct = (points0 - K[:2, 2]) / K.diagonal()[:2]
    K_corner = K.copy()
    K_corner[:2, 2] += 0.5
    K_half = np.diag([0.5, 0.5, 1]) @ K_corner
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 0.0),
        ({"K0": K_corner, "K1": K_corner}, 0.5),
        ({"K0": K_half, "K1": K_half, "size0": (320, 240), "size1": (320, 240)}, 0.5),
    ]
    for changes, offset in cases:
        matches = calibrate(
            (points0, points1), (SIZE, SIZE), a_pair(**changes), pixel_offset=offset, protocol=PoseProtocol()
        )
        np.testing.assert_allclose(matches.normalized()[0], direct, atol=1e-12)


def test_the_half_pixel_bias_vanishes_with_the_offset(store: Any) -> None:
    """Intrinsics in corner pixels, keypoints with the first centre at 0: half a pixel off if mixed."""
    K_corner = K.copy()
    K_corner[:2, 2] += 0.5
    T = rigid(
        (0, 0, np.pi / 2), (0.2, 0.3, -1.0)
    )  # turned about the axis: the bias differs between the images
    points0, points1 = projections(200, T=T)
    reader = store({"0.png": features_at(points0), "1.png": features_at(points1)})
    pairs = pair_set(a_pair(K0=K_corner, K1=K_corner, T_0to1=T), pixel_offset=0.5)
    result = run(reader, pairs, PoseProtocol(), PoseProtocol(name="mixed", apply_pixel_offset=False))
    right, mixed = (r.pairs[0].pose_errors_deg[0] for r in result.runs)
    assert right < 1e-3
    assert 0.01 < mixed < 0.5


def test_intrinsics_of_another_size_are_refused(store: Any) -> None:
    points0, points1 = projections(20)
    reader = store({"0.png": features_at(points0), "1.png": features_at(points1)})
    K_large = np.diag([3.0, 3.0, 1.0]) @ K
    K_large[:2, 2] += 1.0  # x' = 3 (x + 1/2) - 1/2
    with pytest.raises(DataError, match=r"1\.png.*outside.*another size"):
        run(reader, pair_set(a_pair(K1=K_large)))
    large = a_pair(K1=K_large, size1=(1920, 1440))
    assert max(run(reader, pair_set(large)).runs[0].pairs[0].pose_errors_deg) < 0.02


# ---------------------------------------------------------------- the evaluation
def test_exact_features_have_no_error_under_every_protocol(store: Any) -> None:
    points0, points1 = projections(60)
    order = np.random.default_rng(4).permutation(60)
    reader = store({"0.png": features_at(points0), "1.png": features_at(points1[order], rows=order)})
    protocols = [PoseProtocol(name=e, estimator=e) for e in ESTIMATORS]
    result = run(reader, pair_set(), *protocols)
    for item in result.runs:
        (row,) = item.pairs
        assert row.pose_errors_deg[0] < 0.01, item.protocol.name  # keypoints are float32
        assert (row.matches, row.precision, row.inliers) == (60, 1.0, (60,))
        assert min(item.auc()) > 0.99
    assert (result.label, result.features_digest, result.features_resize) == ("toy", reader.digest, "unknown")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_pairs_with_few_matches_fail_and_count(store: Any, count: int) -> None:
    points0, points1 = projections(50)
    images = {"0.png": points0, "1.png": points1, "few.png": points1[:count]}
    reader = store({name: features_at(points) for name, points in images.items()})
    pairs = pair_set(a_pair(), a_pair(name1="few.png"))
    result = run(
        reader, pairs, PoseProtocol(), PoseProtocol(name="roma-like", failure_deg=90.0, auc_deg=(180.0,))
    )
    row = result.runs[0].pairs[1]
    assert (row.matches, row.pose_errors_deg, row.inliers) == (count, (math.inf,), (0,))
    np.testing.assert_allclose(result.runs[0].auc(), 0.5, atol=1e-3)
    assert result.runs[1].errors_deg()[1, 0] == 90.0
    assert result.runs[0].summary()["failed"] == 1


def test_missing_features_stop_or_are_counted_and_named(store: Any) -> None:
    points0, points1 = projections(50)
    reader = store({"0.png": features_at(points0), "1.png": features_at(points1)})
    pairs = pair_set(a_pair(), a_pair(name0="gone.png"))
    with pytest.raises(DataError, match=r"1 of the 3 images.*gone\.png"):
        run(reader, pairs)
    result = run(reader, pairs, missing="count")
    assert result.missing_images == ("gone.png",)
    assert [row.matches for row in result.runs[0].pairs] == [50, 0]
    assert result.runs[0].pairs[1].pose_error_deg == math.inf
    with pytest.raises(DataError, match="2 of the 2"):
        run(reader, pair_set(a_pair(name0="x", name1="y")), missing="count")


def test_limits_take_the_best(store: Any) -> None:
    points0, points1 = projections(50)
    reader = store({"0.png": features_at(points0), "1.png": features_at(points1)})
    protocols = [
        PoseProtocol(name=str(n), **{key: n}) for n, key in ((20, "max_keypoints"), (30, "max_matches"))
    ]
    result = run(reader, pair_set(), *protocols)
    assert [item.pairs[0].matches for item in result.runs] == [20, 30]


class Given:
    """A stand-in for finished matches."""

    digest = "given"

    def __init__(self, matches: Matches, features: str = "") -> None:
        self.matches = matches
        self.features = features
        self.settings: dict[str, Any] = {"kind": "mutual", "ratio": None}

    def read(self, name0: str, name1: str) -> Matches:
        assert (name0, name1) == ("0.png", "1.png")
        return self.matches


def test_given_matches_are_used_as_they_are(store: Any) -> None:
    points0, points1 = projections(50)
    features = features_at(points0), features_at(points1)
    reader = store({"0.png": features[0], "1.png": features[1]})
    own = run(reader, pair_set())
    found = match_mutual_nearest(*features)
    given = run(reader, pair_set(), matches=Given(found, reader.digest))
    assert own.runs == given.runs
    assert (own.matches_digest, given.matches_digest) == (None, "given")
    assert pose_table([own, given])["matcher"].tolist()[1:3] == ["mutual nearest", "given: kind mutual"]
    with pytest.raises(DataError, match="match these features"):
        run(reader, pair_set(), matches=Given(found, "other"))
    with pytest.raises(ConfigError, match="decided by the given matches"):
        run(reader, pair_set(), PoseProtocol(ratio=0.9), matches=Given(found))
    beyond = Matches(index=found.index + 1, scores=found.scores)
    with pytest.raises(DataError, match="beyond the 50 and 50"):
        run(reader, pair_set(), matches=Given(beyond))


def test_a_pair_has_the_same_errors_in_every_list_and_with_any_cache(store: Any) -> None:
    points0, points1 = projections(90)
    points1 += np.random.default_rng(5).normal(scale=1.0, size=points1.shape)
    images = {"0.png": points0, "1.png": points1, "2.png": points1[::-1], "3.png": points0 + 0.25}
    rows = {"2.png": np.arange(90)[::-1]}
    reader = store({name: features_at(p, rows=rows.get(name)) for name, p in images.items()})
    pairs = [a_pair(), a_pair(name1="2.png"), a_pair(name0="3.png"), a_pair(name0="3.png", name1="2.png")]
    protocols = [PoseProtocol(name=e, estimator=e, repeats=2, max_iterations=1000) for e in ESTIMATORS]
    forward = run(reader, pair_set(*pairs), *protocols)
    backward = run(reader, pair_set(*pairs[::-1]), *protocols, cache_bytes=1)
    for one, other in zip(forward.runs, backward.runs, strict=True):
        assert one.pairs == other.pairs[::-1]
    seeded = run(reader, pair_set(*pairs), *(replace(p, seed=1) for p in protocols))
    assert seeded.runs[0].pairs != forward.runs[0].pairs
    first = forward.runs[0].pairs[0]
    assert len(set(first.pose_errors_deg)) == 2  # repeats differ


def test_features_of_another_version_of_an_image_are_refused(tmp_path: Path) -> None:
    points0, points1 = projections(20)
    with FeatureWriter(tmp_path / "f.h5", StoreHeader(method="toy", fingerprint="f")) as writer:
        for name, points in (("0.png", points0), ("1.png", points1)):
            writer.add(name, features_at(points), image_digest="0" * 64)
        writer.finish()
    (tmp_path / "1.png").write_bytes(b"other")
    with (
        FeatureReader(tmp_path / "f.h5") as reader,
        pytest.raises(DataError, match=r"another version of .*1\.png"),
    ):
        run(reader, pair_set(root=tmp_path))


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"threshold_px": 0}, "threshold_px"),
        ({"threshold_frame": "resized"}, "threshold_frame"),
        ({"long_side": 4}, "long_side"),
        ({"confidence": 1.0}, "confidence"),
        ({"repeats": 0}, "repeats"),
        ({"max_matches": 0}, "max_matches"),
        ({"ratio": 1.5}, "ratio"),
        ({"failure_deg": 200.0}, "failure_deg"),
        ({"auc_deg": ()}, "auc_deg"),
        ({"min_iterations": 10, "max_iterations": 5}, "min_iterations"),
        ({"min_baseline": -1.0}, "min_baseline"),
        ({"name": ""}, "name"),
    ],
)
def test_impossible_protocols_are_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}"):
        PoseProtocol(**settings)


def test_protocols_are_named_once_and_published_ones_are_found(store: Any) -> None:
    reader = store({"0.png": features_at(projections(9)[0]), "1.png": features_at(projections(9)[1])})
    with pytest.raises(ConfigError, match="each name once"):
        run(reader, pair_set(), PoseProtocol(), PoseProtocol())
    names = [protocol.name for protocol in (*POSE_PROTOCOLS, *PUBLISHED_POSE_PROTOCOLS)]
    assert len(set(names)) == len(names)
    assert published_protocol("xfeat").estimator_name == "poselib 2.5 px @ long side 1200"
    assert published_protocol("loftr-megadepth").estimator_name == "opencv_ransac 0.5 px @ original size"
    with pytest.raises(ConfigError, match="glue-factory-opencv"):
        published_protocol("gluefactory")
    sweep = threshold_sweep(PoseProtocol(name="p"), (0.5, 2))
    assert [(p.name, p.threshold_px) for p in sweep] == [("p@0.5px", 0.5), ("p@2px", 2)]


# ---------------------------------------------------------------- distances to the true epipolar line
def test_exact_matches_lie_on_their_epipolar_lines() -> None:
    errors = epipolar_errors_px(calibrated(*projections(50)), TRUE_T)
    assert errors.shape == (50,) and errors.max() < 1e-6


def test_a_match_off_its_line_errs_by_as_many_pixels() -> None:
    """A pair without rotation, moved sideways: lines are rows, so distances are differences of rows."""
    T = rigid((0, 0, 0), (1.0, 0, 0))
    points0, points1 = projections(30, T=T)
    rows = np.linspace(-9, 9, 30)
    errors = epipolar_errors_px(calibrated(points0, points1 + [4.0, 0] + rows[:, None] * [0, 1]), T)
    np.testing.assert_allclose(errors, np.abs(rows), atol=1e-9)


def test_the_larger_of_both_images_counts() -> None:
    """The second camera sees everything at half the size: the same error is twice as many pixels in the first."""
    T = rigid((0, 0, 0), (1.0, 0, 0))
    K_half = np.diag([0.5, 0.5, 1]) @ K
    points0, points1 = projections(10, T=T)
    matches = CalibratedMatches(
        points0=points0, points1=points1 / 2 + [0, 1.5], K0=K, K1=K_half, size0=SIZE, size1=(320, 240)
    )
    np.testing.assert_allclose(epipolar_errors_px(matches, T), 3.0, atol=1e-9)


def test_without_translation_there_is_no_line() -> None:
    turn = rigid((0.02, 0.05, 0), (0, 0, 0))
    assert np.isnan(epipolar_errors_px(calibrated(*projections(7, T=turn)), turn)).all()
    assert epipolar_errors_px(calibrated(np.zeros((0, 2)), np.zeros((0, 2))), TRUE_T).shape == (0,)


# ---------------------------------------------------------------- size of extraction
@pytest.mark.parametrize(
    "stated, is_warned", [({"resize_long_side": 64}, False), ({"resize_short_side": None}, True), ({}, False)]
)
def test_features_of_another_size_than_the_protocol_asks_for_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stated: dict[str, Any], is_warned: bool
) -> None:
    with FeatureWriter(
        tmp_path / "f.h5", StoreHeader(method="toy", fingerprint="f", settings=stated)
    ) as writer:
        for name, points in zip(("0.png", "1.png"), projections(20), strict=True):
            writer.add(name, features_at(points))
        writer.finish()
    with FeatureReader(tmp_path / "f.h5") as reader, caplog.at_level("WARNING"):
        run(reader, pair_set(), PoseProtocol(long_side=64))
    assert ("extract at that size" in caplog.text) == is_warned


# ---------------------------------------------------------------- real pairs
def evaluate_real(folder: Path, out: Path, *, images: str, offset: float, protocol: PoseProtocol) -> Any:
    root = folder / images
    pairs = read_pose_pairs(folder / "pairs_with_gt.txt", kind="superglue", root=root, pixel_offset=offset)
    sift = build_rootsift(SiftConfig(max_keypoints=4000, contrast_threshold=0.02), None, "cpu")
    extract_features(root, pairs.image_names, extractor=sift, out=out, show_progress=False)
    with FeatureReader(out) as reader:
        return run(reader, pairs, protocol).runs[0]


README_SETTINGS = PoseProtocol(estimator="opencv_ransac", ratio=0.85, max_iterations=1000, repeats=5)


def test_sift_on_rgbd_box_is_as_its_readme_says(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    found = evaluate_real(
        shared_data("rgbd_box"), tmp_path / "f.h5", images=".", offset=0.0, protocol=README_SETTINGS
    )
    np.testing.assert_allclose(found.auc(), (0.56, 0.78, 0.89), atol=0.06)


@pytest.mark.slow
def test_sift_on_sacre_coeur_is_as_its_readme_says(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    found = evaluate_real(
        shared_data("sfm_sacre_coeur"),
        tmp_path / "f.h5",
        images="images",
        offset=0.5,
        protocol=README_SETTINGS,
    )
    np.testing.assert_allclose(found.auc(), (0.46, 0.54, 0.63), atol=0.04)
    assert found.summary()["matches"] == pytest.approx(291, abs=3)
