"""Heat maps, suppression and descriptor sampling against loops, other libraries and closed forms."""

from __future__ import annotations

import dataclasses

import kornia
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.features.maxima import local_maxima
from matchlib.methods.superpoint.config import DescriptorConfig, DetectionConfig
from matchlib.methods.superpoint.postprocess import (
    box_stencil,
    centroids,
    heatmap,
    select_keypoints,
    square_stencil,
    suppress,
    suppress_greedily,
)
from matchlib.methods.superpoint.sampling import cell_positions, sample_descriptors

EVERYTHING = DetectionConfig(threshold=0.0, nms_radius=0, border=0, max_keypoints=10**6)


def random_heat(height: int, width: int, seed: int, *, levels: int | None = None) -> torch.Tensor:
    """Values in (0, 1); with `levels`, few different ones, so that ties occur."""
    values = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
    return values if levels is None else (values * levels).ceil() / levels


# ---------------------------------------------------------------- heat map
@pytest.mark.parametrize("softmax", ["exact", "legacy_epsilon"])
def test_each_channel_is_one_pixel_of_its_cell(softmax: str) -> None:
    for channel in range(64):
        logits = torch.zeros(1, 65, 2, 3)
        logits[0, channel, 1, 2] = 20.0
        heat = heatmap(logits, softmax=softmax)
        assert heat.shape == (1, 16, 24)
        assert divmod(int(heat[0].argmax()), 24) == (8 + channel // 8, 16 + channel % 8)


def test_exact_probabilities_of_a_cell_and_its_dustbin_sum_to_one() -> None:
    logits = 4 * torch.randn(2, 65, 3, 4, generator=torch.Generator().manual_seed(0))
    sums = F.avg_pool2d(heatmap(logits)[:, None], 8)[:, 0] * 64
    torch.testing.assert_close(sums, 1 - logits.softmax(1)[:, 64])


def test_legacy_softmax_is_the_published_formula() -> None:
    logits = 3 * torch.randn(1, 65, 3, 4, generator=torch.Generator().manual_seed(1)) - 15
    dense = logits.exp()[0]
    dense = dense / (dense.sum(0) + 0.00001)  # the demo's line
    expected = dense[:-1].permute(1, 2, 0).reshape(3, 4, 8, 8).permute(0, 2, 1, 3).reshape(24, 32)
    torch.testing.assert_close(heatmap(logits, softmax="legacy_epsilon")[0], expected)
    assert (heatmap(logits)[0] - expected).abs().max() > 1e-3  # and it differs from the exact one here


def test_legacy_softmax_does_not_overflow() -> None:
    large = torch.full((1, 65, 1, 1), 200.0)
    assert heatmap(large, softmax="legacy_epsilon").sub(1 / 65).abs().max() < 1e-7
    assert heatmap(-large, softmax="legacy_epsilon").abs().max() == 0  # all exponentials vanish beside 1e-5


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="logits: expected"):
        heatmap(torch.zeros(1, 64, 2, 2))


# ---------------------------------------------------------------- suppression
def greedy_oracle(heat: np.ndarray, threshold: float, covers) -> set[tuple[int, int]]:
    """Best first over all pairs: a point stays if no kept point covers it."""
    candidates = [(-heat[y, x], y, x) for y, x in np.argwhere(heat > threshold)]
    kept: list[tuple[int, int]] = []
    for _, y, x in sorted(candidates):
        if not any(covers(abs(y - v), abs(x - u)) for v, u in kept):
            kept.append((int(y), int(x)))
    return set(kept)


def as_set(mask: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in mask.nonzero()}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 18),
    st.integers(1, 18),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.sampled_from([None, 3]),
    st.sampled_from([0.0, 0.5]),
)
def test_greedy_suppression_is_the_loop(height, width, radius, seed, levels, threshold) -> None:
    heat = random_heat(height, width, seed, levels=levels)
    expected = greedy_oracle(heat.numpy(), threshold, lambda dy, dx: max(dy, dx) <= radius)
    assert as_set(suppress_greedily(heat, square_stencil(radius), threshold)) == expected


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(1, 6),
    st.floats(0.0, 0.9),
    st.integers(0, 10**6),
    st.sampled_from([None, 3]),
)
def test_box_suppression_is_the_loop_over_boxes(height, width, side, iou, seed, levels) -> None:
    def covers(dy: int, dx: int) -> bool:
        shared = max(0, side - dy) * max(0, side - dx)
        return shared > iou * (2 * side * side - shared)

    heat = random_heat(height, width, seed, levels=levels)
    expected = greedy_oracle(heat.numpy(), 0.2, covers)
    assert as_set(suppress_greedily(heat, box_stencil(side, iou), 0.2)) == expected


@pytest.mark.parametrize(("side", "iou"), [(4, 0.1), (8, 0.1), (5, 0.3)])
def test_box_suppression_agrees_with_kornia(side: int, iou: float) -> None:
    heat = random_heat(24, 30, seed=side)
    points = torch.cartesian_prod(torch.arange(24), torch.arange(30)).float().flip(1)
    boxes = torch.cat([points - side / 2, points + side / 2], dim=1)
    kept = kornia.geometry.bbox.nms(boxes, heat.flatten(), iou)
    expected = {(int(y), int(x)) for x, y in points[kept]}
    assert as_set(suppress_greedily(heat, box_stencil(side, iou), 0.0)) == expected


def max_pool_oracle(heat: np.ndarray, radius: int) -> set[tuple[int, int]]:
    height, width = heat.shape

    def window(values: np.ndarray, y: int, x: int) -> np.ndarray:
        return values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]

    pixels = [(y, x) for y in range(height) for x in range(width)]
    kept = {(y, x) for y, x in pixels if heat[y, x] == window(heat, y, x).max()}
    for _ in range(2):
        covered = {(y, x) for y, x in pixels if any(max(abs(y - v), abs(x - u)) <= radius for v, u in kept)}
        rest = heat.copy()
        for y, x in covered:
            rest[y, x] = 0
        kept |= {
            (y, x) for y, x in pixels if (y, x) not in covered and rest[y, x] == window(rest, y, x).max()
        }
    return kept


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.sampled_from([None, 4]),
)
def test_max_pool_suppression_is_the_loop(height, width, radius, seed, levels) -> None:
    heat = random_heat(height, width, seed, levels=levels)
    assert as_set(local_maxima(heat, radius)) == max_pool_oracle(heat.numpy(), radius)


def test_first_round_of_max_pool_suppression_agrees_with_kornia() -> None:
    """kornia's has no recovery, so its maxima are among ours, and ours beyond them are covered by none."""
    heat = random_heat(30, 40, seed=0)
    local = kornia.geometry.subpix.nms2d(heat[None, None], (7, 7), mask_only=True)[0, 0]
    inner = torch.zeros_like(local)
    inner[3:-3, 3:-3] = True  # kornia treats the border in another way
    ours = local_maxima(heat, 3)
    assert (local & inner).sum() > 10
    assert not (local & inner & ~ours).any()


def test_recovery_finds_what_a_single_round_misses() -> None:
    heat = torch.zeros(1, 9)
    heat[0, [1, 3, 5]] = torch.tensor([0.9, 0.8, 0.7])  # 0.7 is hidden behind 0.8, which 0.9 suppresses
    assert as_set(local_maxima(heat, 2) & (heat > 0)) == {(0, 1), (0, 5)}


@pytest.mark.parametrize("nms", ["max_pool", "greedy"])
def test_survivors_of_distinct_scores_keep_their_distance(nms: str) -> None:
    heat = random_heat(40, 50, seed=3)
    points, _ = select_keypoints(heat, dataclasses.replace(EVERYTHING, nms=nms, nms_radius=4))
    distance = (points[:, None] - points[None]).abs().amax(dim=2)
    assert len(points) > 10
    assert int((distance <= 4).sum()) == len(points)  # each is near itself only


@pytest.mark.parametrize("nms", ["max_pool", "greedy", "box_iou"])
def test_radius_zero_switches_suppression_off(nms: str) -> None:
    heat = random_heat(6, 7, seed=0)
    assert suppress(heat, dataclasses.replace(EVERYTHING, nms=nms)).all()


# ---------------------------------------------------------------- selection
def test_selection_orders_and_cuts() -> None:
    heat = torch.zeros(10, 12)
    heat[5, 6], heat[4, 4], heat[4, 7], heat[6, 4] = 0.9, 0.5, 0.7, 0.5
    points, scores = select_keypoints(heat, EVERYTHING)
    assert points.tolist() == [[6, 5], [7, 4], [4, 4], [4, 6]]  # equal scores: by row
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.5, 0.5]))
    assert points.dtype == scores.dtype == torch.float32
    points, _ = select_keypoints(heat, dataclasses.replace(EVERYTHING, max_keypoints=2))
    assert points.tolist() == [[6, 5], [7, 4]]
    points, _ = select_keypoints(heat, dataclasses.replace(EVERYTHING, threshold=0.5))  # above, not at
    assert points.tolist() == [[6, 5], [7, 4]]


@pytest.mark.parametrize("border", [0, 1, 4])
def test_border_is_exactly_that_wide(border: int) -> None:
    heat = torch.ones(12, 11)
    points, _ = select_keypoints(heat, dataclasses.replace(EVERYTHING, border=border))
    expected = [(x, y) for y in range(border, 12 - border) for x in range(border, 11 - border)]
    assert {tuple(p) for p in points.int().tolist()} == set(expected)


def test_a_map_inside_its_border_has_no_points() -> None:
    points, scores = select_keypoints(torch.ones(8, 8), dataclasses.replace(EVERYTHING, border=4))
    assert points.shape == (0, 2) and scores.shape == (0,)


@pytest.mark.parametrize("nms", ["max_pool", "greedy", "box_iou"])
def test_a_dark_map_has_no_points(nms: str) -> None:
    points, _ = select_keypoints(torch.zeros(16, 16), DetectionConfig(nms=nms, refine="centroid"))
    assert points.shape == (0, 2)


def test_centroids_of_blobs_are_their_centres() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    centres = torch.tensor([[10.3, 12.0], [27.6, 25.2]])
    heat = sum(torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 0.6**2)) for u, v in centres)
    config = dataclasses.replace(EVERYTHING, threshold=0.3, nms_radius=4, refine="centroid")
    points, _ = select_keypoints(heat, config)
    torch.testing.assert_close(points.sort(dim=0).values, centres, atol=0.02, rtol=0)


def test_centroid_stays_at_the_border_and_where_nothing_weighs() -> None:
    heat = torch.zeros(6, 6)
    heat[0, 0] = 1.0
    points = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    assert torch.equal(centroids(heat, points), points)


# ---------------------------------------------------------------- sampling
def ramp(height: int, width: int) -> torch.Tensor:
    """A map whose two channels are its own cell coordinates x, y, and a third that keeps the length known."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])


PUBLISHED_ERROR_CELLS = {  # of a map of w cells, at the centres of the first and of the last cell
    "exact": lambda w: (0.0, 0.0),
    "legacy_half_pixel": lambda w: (-1 / 16, -1 / 16),
    "legacy_corner_aligned": lambda w: (7 / 16 * (w - 1) / w, -9 / 16 * (w - 1) / w),
    "superglue": lambda w: (0.0, (8 * w - 8) * (w - 1) / (8 * w - 4.5) - (w - 1)),
}


@pytest.mark.parametrize("sampling", PUBLISHED_ERROR_CELLS)
def test_sampling_reads_where_each_program_reads(sampling: str) -> None:
    """A linear ramp gives back the coordinate, so the table of errors can be read off."""
    height, width = 30, 40
    middle = (8 * width - 1) / 2, (8 * height - 1) / 2
    first, last = PUBLISHED_ERROR_CELLS[sampling](width)
    # Not at the outermost cells, where the border takes over.
    points = torch.tensor([[3.5 + 8 * 3, middle[1]], [3.5 + 8 * (width - 4), middle[1]]])
    read = sample_descriptors(ramp(height, width), points, DescriptorConfig(sampling=sampling))
    error = read[:, 0] / read[:, 2] - torch.tensor([3.0, width - 4.0])
    per_cell = (last - first) / (width - 1)  # all four forms are linear in x
    expected = torch.tensor([first + 3 * per_cell, last - 3 * per_cell])
    torch.testing.assert_close(error, expected, atol=2e-4, rtol=0)


def test_published_extremes_of_the_errors() -> None:
    points = torch.tensor([[0.0, 0.0], [320.0, 240.0]])  # the two ends of the image area's coordinate
    exact = cell_positions(points, (40, 30), "exact")
    demo = cell_positions(points, (40, 30), "legacy_corner_aligned") - exact
    torch.testing.assert_close(demo, torch.tensor([[0.4375, 0.4375], [-0.5625, -0.5625]]))
    later = cell_positions(points, (40, 30), "legacy_half_pixel") - exact
    torch.testing.assert_close(later, torch.full((2, 2), -0.0625))


def grid_sample_as(points: torch.Tensor, size: tuple[int, int], form: str) -> tuple[torch.Tensor, bool]:
    """Normalised coordinates as the published programs compute them, and their `align_corners`."""
    area = torch.tensor([8.0 * size[0], 8.0 * size[1]])
    if form == "superglue":
        return (points - 8 / 2 + 0.5) / (area - 8 / 2 - 0.5) * 2 - 1, True
    if form == "exact":
        return (points + 0.5) / area * 2 - 1, False
    return points / (area / 2) - 1, form == "legacy_corner_aligned"


@pytest.mark.parametrize("sampling", PUBLISHED_ERROR_CELLS)
def test_sampling_equals_the_published_calls(sampling: str) -> None:
    generator = torch.Generator().manual_seed(0)
    descriptors = torch.randn(1, 16, 6, 9, generator=generator)
    points = 4 + torch.rand(50, 2, generator=generator) * torch.tensor([63.0, 39.0])
    grid, aligned = grid_sample_as(points, (9, 6), sampling)
    expected = F.grid_sample(descriptors, grid[None, None], align_corners=aligned)[0, :, 0]
    found = sample_descriptors(descriptors[0], points, DescriptorConfig(sampling=sampling))
    torch.testing.assert_close(found, F.normalize(expected, dim=0).T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_exact_sampling_reads_the_upsampled_map(interpolation: str) -> None:
    """The paper's way: the whole map at image size, then normalised; every pixel of it."""
    descriptors = torch.randn(8, 4, 5, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(descriptors[None], scale_factor=8, mode=interpolation, align_corners=False)[0]
    points = torch.cartesian_prod(torch.arange(32.0), torch.arange(40.0)).flip(1)
    found = sample_descriptors(descriptors, points, DescriptorConfig(interpolation=interpolation))
    torch.testing.assert_close(found, F.normalize(full, dim=0).flatten(1).T, atol=2e-5, rtol=0)


def test_bicubic_differs_from_bilinear_but_not_at_centres() -> None:
    descriptors = torch.randn(8, 6, 9, generator=torch.Generator().manual_seed(0))
    bicubic = DescriptorConfig(interpolation="bicubic")
    centre, between = torch.tensor([[35.5, 19.5]]), torch.tensor([[38.0, 21.0]])
    unit = F.normalize(descriptors[:, 2, 4], dim=0)[None]
    torch.testing.assert_close(sample_descriptors(descriptors, centre, bicubic), unit, atol=1e-5, rtol=0)
    linear = sample_descriptors(descriptors, between, DescriptorConfig())
    assert (sample_descriptors(descriptors, between, bicubic) - linear).abs().max() > 1e-2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_border_cells_hold_beyond_their_centres(interpolation: str) -> None:
    descriptors = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    flat = descriptors.clone()
    flat[:, :2, :2] = flat[:, :1, :1]  # bicubic looks one cell further
    points = torch.tensor([[0.0, 0.0], [-50.0, -50.0]])
    read = sample_descriptors(flat, points, DescriptorConfig(interpolation=interpolation))
    torch.testing.assert_close(read, F.normalize(flat[:, 0, 0], dim=0).expand(2, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_no_points_give_no_descriptors(interpolation: str) -> None:
    config = DescriptorConfig(interpolation=interpolation)
    assert sample_descriptors(torch.rand(8, 2, 2), torch.zeros(0, 2), config).shape == (0, 8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_map_of_one_cell_has_one_descriptor(interpolation: str) -> None:
    cell = torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(0))
    read = sample_descriptors(
        cell, torch.tensor([[0.0, 0.0], [7.0, 3.0]]), DescriptorConfig(interpolation=interpolation)
    )
    torch.testing.assert_close(read, F.normalize(cell[:, 0, 0], dim=0).expand(2, -1), atol=1e-6, rtol=0)


def test_sampling_refuses_other_shapes() -> None:
    with pytest.raises(ShapeError, match="points: expected"):
        sample_descriptors(torch.rand(8, 2, 2), torch.zeros(3), DescriptorConfig())
