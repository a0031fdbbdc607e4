"""Pictures of the best and worst pairs: the protocol's own matches, the same pairs for all, inputs of the same run."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matchlib.datasets.images import write_image
from matchlib.datasets.pose_pairs import PosePair, PosePairSet, write_pose_pairs
from matchlib.errors import DataError
from matchlib.evaluation.pose import evaluate_pose
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.evaluation.pose_result import PoseResult, write_pose_result
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.visualization.build import build_report
from matchlib.visualization.pose_pictures import MAX_METHODS, pose_pictures
from matchlib.visualization.pose_section import PoseEntry
from matchlib.visualization.sfm_entries import pose_entries

SIZE = (160, 120)
K = np.array([[150.0, 0, 79.5], [0, 150.0, 59.5], [0, 0, 1]])
COUNT = 60
PROTOCOL = PoseProtocol(max_keypoints=40, ratio=0.95, max_matches=25, threshold_frame="resized", long_side=80)


def true_pose(view: int) -> np.ndarray:
    """Camera `view` stands `view` units to the right of camera 0, all look the same way."""
    T = np.eye(4)
    T[0, 3] = -float(view)
    return T


def seen_from(view: int, noise_px: float) -> np.ndarray:
    """Keypoints (N, 2): the same points of space in every view, and an error that grows with the view."""
    rng = np.random.default_rng(0)
    z = rng.uniform(20, 60, COUNT)
    first = rng.uniform([40, 10], [150, 110], (COUNT, 2))
    moved = first - np.stack([view * K[0, 0] / z, np.zeros(COUNT)], axis=1)
    return moved + np.random.default_rng(view).normal(scale=noise_px * view, size=(COUNT, 2))


def write_features(path: Path, *, noise_px: float) -> None:
    table = np.random.default_rng(7).normal(size=(COUNT, 16)).astype(np.float32)
    with FeatureWriter(path, StoreHeader(method="placed", fingerprint=f"{noise_px}")) as writer:
        for view in range(5):
            writer.add(
                f"{view}.png",
                Features(
                    keypoints=seen_from(view, noise_px).astype(np.float32),
                    scores=np.linspace(1, 0.1, COUNT, dtype=np.float32),
                    descriptors=table / np.linalg.norm(table, axis=1, keepdims=True),
                    image_size=SIZE,
                ),
            )
        writer.finish()


@dataclasses.dataclass(frozen=True)
class World:
    pairs: PosePairSet
    features: dict[str, Path]
    results: dict[str, PoseResult]

    def entries(self) -> list[tuple[PoseResult, PoseEntry]]:
        return [(result, pose_entries(result)[0]) for result in self.results.values()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two methods on pairs of view 0 with views 1 to 4, one exact, one not."""
    rng = np.random.default_rng(1)
    for view in range(5):
        write_image(tmp_path / f"{view}.png", rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    pairs = PosePairSet(
        name="toy",
        root=tmp_path,
        pairs=tuple(
            PosePair(name0="0.png", name1=f"{view}.png", K0=K, K1=K, T_0to1=true_pose(view))
            for view in range(1, 5)
        ),
    )
    features, results = {}, {}
    for label, noise_px in (("exact", 0.0), ("noisy", 0.3)):
        features[label] = tmp_path / f"{label}.h5"
        write_features(features[label], noise_px=noise_px)
        with FeatureReader(features[label]) as reader:
            results[label] = evaluate_pose(
                reader, pairs, (PROTOCOL, PoseProtocol(name="other")), label=label, show_progress=False
            )
    return World(pairs=pairs, features=features, results=results)


def test_the_matches_of_the_first_protocol_are_drawn(world: World) -> None:
    best, worst = pose_pictures(world.entries(), world.features, world.pairs)
    assert [picture.label for picture in best] == ["exact", "noisy"] * 2
    mean = np.mean([[row.pose_error_deg for row in r.runs[0].pairs] for r in world.results.values()], axis=0)
    easiest_first = [("0.png", f"{view}.png") for view in 1 + np.argsort(mean)]
    assert [picture.pair for picture in best[::2]] == easiest_first[:2]
    assert [picture.pair for picture in worst[::2]] == easiest_first[:1:-1]
    for picture in (*best, *worst):
        run = world.results[picture.label].runs[0]
        row = next(row for row in run.pairs if (row.name0, row.name1) == picture.pair)
        assert (
            len(picture.keypoints0) == row.matches == 25
        )  # of 60 keypoints: 40 by score, then 25 by similarity
        assert picture.error_deg == row.pose_error_deg and picture.estimator == PROTOCOL.estimator_name
        assert picture.image0.shape == picture.image1.shape == (SIZE[1], SIZE[0], 3)


def test_errors_are_in_pixels_of_the_original_images(world: World) -> None:
    """Cameras differ sideways only: lines are rows, and the truth of both methods is the same."""
    best, worst = pose_pictures(world.entries(), world.features, world.pairs)
    for picture in (*best, *worst):
        rows = np.abs(picture.keypoints1[:, 1] - picture.keypoints0[:, 1])
        np.testing.assert_allclose(picture.errors_px, rows, atol=1e-4)
    assert max(picture.errors_px.max() for picture in (*best, *worst)) > 1


def test_only_the_best_methods_are_drawn_in_table_order(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (noisy, noisy_entry), (exact, exact_entry) = world.entries()[::-1]
    copies = [f"exact-{number}" for number in range(MAX_METHODS - 1)]
    entries = [(noisy, noisy_entry), (exact, exact_entry)]
    entries += [(replace(exact, label=label), replace(exact_entry, label=label)) for label in copies]
    features = world.features | dict.fromkeys(copies, world.features["exact"])
    with caplog.at_level(logging.INFO, logger="matchlib"):
        best, worst = pose_pictures(entries, features, world.pairs, count=1)
    assert [picture.label for picture in best] == ["exact", *copies] and len(worst) == MAX_METHODS
    assert "no pictures of relative poses by noisy" in caplog.text


def test_methods_without_features_or_with_given_matches_are_left_out(world: World) -> None:
    (exact, exact_entry), (noisy, noisy_entry) = world.entries()
    best, worst = pose_pictures(world.entries(), {"noisy": world.features["noisy"]}, world.pairs)
    assert {picture.label for picture in (*best, *worst)} == {"noisy"}
    given = [(replace(exact, matcher="given"), exact_entry), (noisy, noisy_entry)]
    best, worst = pose_pictures(given, world.features, world.pairs)
    assert {picture.label for picture in (*best, *worst)} == {"noisy"}
    assert pose_pictures(world.entries(), {}, world.pairs) == ([], [])


def test_a_pair_that_lacks_an_image_is_not_drawn(world: World) -> None:
    entries = [(replace(result, missing_images=("4.png",)), entry) for result, entry in world.entries()]
    best, worst = pose_pictures(entries, world.features, world.pairs, count=9)
    assert {picture.pair[1] for picture in (*best, *worst)} == {"1.png", "2.png", "3.png"}


def test_inputs_of_another_run_are_refused(world: World) -> None:
    features = world.features | {"exact": world.features["noisy"]}
    with pytest.raises(DataError, match=r"noisy\.h5: expected the features that 'exact' was evaluated with"):
        pose_pictures(world.entries(), features, world.pairs)
    others = replace(world.pairs, pairs=world.pairs.pairs[:3])
    with pytest.raises(DataError, match="toy: expected the pairs that 'exact' was evaluated on"):
        pose_pictures(world.entries(), world.features, others)


def test_an_image_of_another_size_is_refused(world: World) -> None:
    write_image(world.pairs.root / "0.png", np.zeros((60, 80, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"0\.png: expected the image that the features were taken from"):
        pose_pictures(world.entries(), world.features, world.pairs)


def test_the_report_shows_them(world: World, tmp_path: Path) -> None:
    paths = [tmp_path / f"{label}.json" for label in world.results]
    for path, result in zip(paths, world.results.values(), strict=True):
        write_pose_result(result, path)
    write_pose_pairs(world.pairs, tmp_path / "pairs.json")
    common = {"results": [], "training": [], "features": {}, "hpatches_root": None, "published": []}
    given = {
        "pose_features": world.features,
        "pose_pairs": tmp_path / "pairs.json",
        "pose_root": world.pairs.root,
    }
    build_report(tmp_path / "with.html", about={}, poses=paths, **common, **given)
    build_report(tmp_path / "without.html", about={}, poses=paths, **common)
    text = (tmp_path / "with.html").read_text()
    assert text.count("data:image/jpeg") == 8 and "exact: 25 matches, pose error" in text
    assert "data:image/jpeg" not in (tmp_path / "without.html").read_text()
