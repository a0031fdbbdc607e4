"""ALIKE: the published network's own outputs, keypoints with and without sub-pixel step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.feature.aliked.aliked import DKD
from torch import Tensor

from matchlib.errors import ConfigError, DataError
from matchlib.features.maxima import local_maxima
from matchlib.methods.alike.config import AlikeConfig
from matchlib.methods.alike.detection import select_keypoints
from matchlib.methods.alike.inference import build, build_dense, dense_maps
from matchlib.methods.alike.network import WIDTHS, AlikeNetwork
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol

AS_RECORDED = AlikeConfig(sub_pixel=False, max_keypoints=10**6)
"""The settings of the recorded outputs: radius 2, threshold 0.2, no limit, no sub-pixel step."""


@pytest.fixture
def weights(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("weights") / "alike-t.pth"


@pytest.fixture
def recorded(shared_data: Callable[[str], Path]) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs of the published implementation with the published weights."""
    with np.load(shared_data("weights") / "alike-t.reference.npz") as stored:
        return dict(stored)


def by_place(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    whole = points.round()  # recorded whole pixels have rounding errors that would change the order
    return np.lexsort((whole[:, 0], whole[:, 1]))


def test_keypoints_scores_and_descriptors_are_the_published_ones(
    weights: Path, recorded: dict[str, Any]
) -> None:
    features = build(AS_RECORDED, weights, "cpu").extract(recorded["image_rgb"])
    ours, theirs = by_place(features.keypoints), by_place(recorded["keypoints_xy"])
    assert len(features) == 236 and features.image_size == (192, 160)
    np.testing.assert_allclose(features.keypoints[ours], recorded["keypoints_xy"][theirs], atol=1e-4)
    np.testing.assert_allclose(features.scores[ours], recorded["keypoint_scores"][theirs], atol=1e-4)
    # The published code cuts positions such as 4.9999986 down to 4: 54 of its descriptors are of the pixel beside.
    whole = recorded["keypoints_xy"][theirs]
    is_cut = (np.floor(whole) != whole.round()).any(axis=1)
    expected = recorded["keypoint_descriptors"][theirs]
    assert is_cut.sum() == 54
    np.testing.assert_allclose(features.descriptors[ours][~is_cut], expected[~is_cut], atol=1e-4)
    dense = build_dense(AS_RECORDED, weights, "cpu").describe(recorded["image_rgb"])
    as_published = dense.at(torch.from_numpy(np.floor(whole)))[:, 0].numpy()
    np.testing.assert_allclose(as_published, expected, atol=1e-4)
    assert (np.diff(features.scores) <= 0).all()


def test_dense_descriptors_are_the_published_ones(weights: Path, recorded: dict[str, Any]) -> None:
    dense = build_dense(AS_RECORDED, weights, "cpu").describe(recorded["image_rgb"])
    points = torch.from_numpy(recorded["grid_yx"][:, ::-1].astype(np.float32))
    np.testing.assert_allclose(dense.at(points)[:, 0].numpy(), recorded["descriptors"], atol=1e-5)


def test_sub_pixel_step_stays_close_and_changes_little(weights: Path, recorded: dict[str, Any]) -> None:
    whole = build(AS_RECORDED, weights, "cpu").extract(recorded["image_rgb"])
    refined = build(AlikeConfig(max_keypoints=10**6), weights, "cpu").extract(recorded["image_rgb"])
    distance = np.linalg.norm(whole.keypoints[:, None] - refined.keypoints[None], axis=2).min(axis=0)
    assert len(whole) == len(refined) and 0.05 < np.median(distance) < 1.0


@pytest.mark.parametrize("size", [(160, 192), (101, 75), (33, 32)])
def test_padding_and_cropping_keep_places(
    weights: Path, recorded: dict[str, Any], size: tuple[int, int]
) -> None:
    image = np.ascontiguousarray(recorded["image_rgb"][: size[0], : size[1]])
    features = build(AS_RECORDED, weights, "cpu").extract(image)
    assert (features.keypoints >= 3).all()
    assert (features.keypoints <= np.array([size[1] - 3, size[0] - 3])).all()
    dense = build_dense(AS_RECORDED, weights, "cpu").describe(image).at(torch.from_numpy(features.keypoints))
    np.testing.assert_allclose(dense[:, 0].numpy(), features.descriptors, atol=1e-5)
    assert len(build(AS_RECORDED, weights, "cpu").extract(np.full((*size, 3), 80, np.uint8))) == 0


def test_any_size_has_maps_of_that_size() -> None:
    network = AlikeNetwork((4, 4, 4, 8)).eval()
    with torch.no_grad():
        scores, descriptors = dense_maps(network, torch.rand(1, 3, 45, 70))
    assert scores.shape == (45, 70) and descriptors.shape == (8, 45, 70)
    torch.testing.assert_close(descriptors.norm(dim=0), torch.ones(45, 70))


def greedy_maxima(scores: Tensor, radius: int) -> set[tuple[int, int]]:
    """All pixels in falling order of score, each kept unless a kept one is within its square."""
    kept: list[tuple[int, int]] = []
    for index in scores.flatten().argsort(descending=True).tolist():
        row, column = divmod(index, scores.shape[1])
        if all(max(abs(row - r), abs(column - c)) > radius for r, c in kept):
            kept.append((row, column))
    return set(kept)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.integers(1, 3))
def test_maxima_are_apart_and_among_those_of_greedy_suppression(seed: int, radius: int) -> None:
    scores = torch.rand(17, 13, generator=torch.Generator().manual_seed(seed))
    found = {(int(r), int(c)) for r, c in torch.nonzero(local_maxima(scores, radius))}
    assert found <= greedy_maxima(scores, radius)  # equal but for chains longer than the rounds of recovery
    best = divmod(int(scores.argmax()), 13)
    assert best in found


def test_soft_maximum_is_kornias() -> None:
    """The same formula in kornia's ALIKED: compare where both, with their different suppressions, find a point."""
    scores = torch.rand(40, 50, generator=torch.Generator().manual_seed(5)) * 0.4 + 0.5
    reference = DKD(radius=2, scores_th=0.2)(scores[None, None])
    theirs = (reference[0][0] + 1) / 2 * torch.tensor([49.0, 39.0])
    theirs = theirs[(theirs > 4).all(dim=1)]  # the borders that are left out differ by a pixel
    ours = select_keypoints(scores, AlikeConfig())
    distance = torch.cdist(theirs.double(), ours.double()).min(dim=1).values
    assert len(theirs) >= 20 and distance.max() < 1e-4
    assert (ours - ours.round()).abs().max() > 0.1


def test_limit_keeps_the_best(weights: Path, recorded: dict[str, Any]) -> None:
    whole = build(AS_RECORDED, weights, "cpu").extract(recorded["image_rgb"])
    few = build(AlikeConfig(sub_pixel=False, max_keypoints=20), weights, "cpu").extract(recorded["image_rgb"])
    np.testing.assert_array_equal(few.scores, whole.scores[:20])


def test_registered_strict_and_honest_about_variants(weights: Path) -> None:
    spec = METHODS.get("alike")
    assert spec.weights == "foreign" and load_symbol(spec.extractor) is build
    assert load_symbol(spec.dense or "") is build_dense
    with pytest.raises(ConfigError, match="weights: expected a file with the published weights of alike-t"):
        build(AlikeConfig(), None, "cpu")
    message = (
        r"alike-t.pth: expected weights of alike-n; .*'block1.conv1.weight': expected shape \(16, 3, 3, 3\)"
    )
    with pytest.raises(DataError, match=message):
        build(AlikeConfig(variant="alike-n"), weights, "cpu")
    with pytest.raises(DataError, match="expected weights of alike-t"):
        build(AlikeConfig(), weights.with_name("r2d2_WAF_N16.pt"), "cpu")
    for wrong in ({"nms_radius": 0}, {"score_threshold": 1.0}, {"max_keypoints": 0}):
        with pytest.raises(ConfigError, match=f"^alike.{next(iter(wrong))}: expected"):
            AlikeConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", sorted(WIDTHS))
def test_every_variant_builds_from_its_own_file(variant: Any, tmp_path: Path) -> None:
    network = AlikeNetwork(WIDTHS[variant])
    torch.save(network.state_dict(), tmp_path / "w.pth")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    extractor = build(AlikeConfig(variant=variant, score_threshold=0.0), tmp_path / "w.pth", "cpu")
    features = extractor.extract(image)
    assert extractor.name == variant and features.descriptors.shape[1] == WIDTHS[variant][3]
    assert len(features) > 5
