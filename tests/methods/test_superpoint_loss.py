"""SuperPoint's targets and losses against closed forms, loops written from the formulas, float64 gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError, ShapeError
from matchlib.methods.superpoint.loss import (
    corresponding_cells,
    descriptor_loss,
    detector_loss,
    normalise_similarity,
)
from matchlib.methods.superpoint.postprocess import heatmap
from matchlib.methods.superpoint.targets import NO_POINT, cell_targets, whole_cells
from matchlib.methods.superpoint.training_config import LossConfig

FORMS = ("normalised", "paper")


def translation(dx: float, dy: float) -> torch.Tensor:
    H = torch.eye(3, dtype=torch.float64)
    H[0, 2], H[1, 2] = dx, dy
    return H


def perspective() -> torch.Tensor:
    return torch.tensor([[0.9, 0.1, 3.0], [-0.08, 1.05, -2.0], [2e-3, -1e-3, 1.0]], dtype=torch.float64)


# ---------------------------------------------------------------- targets
def test_points_become_classes_of_their_cells():
    points = torch.tensor([[0.0, 0.0], [15.4, 6.6], [23.0, 15.0], [-0.6, 3.0], [24.0, 3.0]])
    classes, counts = cell_targets([points], torch.ones(1, 16, 24, dtype=torch.bool), [5], purpose="test")
    assert classes.tolist() == [[[0, 7 * 8 + 7, NO_POINT], [NO_POINT, NO_POINT, 7 * 8 + 7]]]
    assert counts.all()


@given(x=st.integers(0, 39), y=st.integers(0, 23))
@settings(max_examples=50, deadline=None)
def test_the_heat_map_of_a_target_peaks_at_the_point(x, y):
    valid = torch.ones(1, 24, 40, dtype=torch.bool)
    classes, _ = cell_targets([torch.tensor([[x, y]]).float()], valid, [0], purpose="test")
    logits = torch.nn.functional.one_hot(classes, 65).permute(0, 3, 1, 2).float() * 10
    row, column = divmod(int(heatmap(logits)[0].argmax()), 40)
    assert (column, row) == (x, y)


def test_one_of_several_points_in_a_cell_is_drawn_evenly():
    points = torch.tensor([[1.0, 0.0], [5.0, 2.0], [5.2, 2.1], [6.0, 7.0]])  # two on one pixel
    valid = torch.ones(600, 8, 8, dtype=torch.bool)
    classes, _ = cell_targets([points] * 600, valid, range(600), purpose="test")
    drawn = {label: int((classes == label).sum()) for label in (1, 2 * 8 + 5, 7 * 8 + 6)}
    assert sum(drawn.values()) == 600
    assert all(150 <= count <= 250 for count in drawn.values())  # 200 expected, deviation 11.5
    again, _ = cell_targets([points] * 600, valid, range(600), purpose="test")
    other, _ = cell_targets([points] * 600, valid, range(600), purpose="other")
    assert torch.equal(classes, again) and not torch.equal(classes, other)


def test_only_whole_cells_count():
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[0, 3, 12] = False
    assert whole_cells(valid).tolist() == [[[True, False], [True, True]]]


def test_targets_refuse_what_has_no_cells():
    with pytest.raises(ShapeError, match="multiples of 8"):
        cell_targets([torch.empty(0, 2)], torch.ones(1, 12, 16, dtype=torch.bool), [0], purpose="test")
    with pytest.raises(ShapeError, match="seeds: expected 1"):
        cell_targets([torch.empty(0, 2)], torch.ones(1, 8, 16, dtype=torch.bool), [0, 1], purpose="test")


# ---------------------------------------------------------------- detector
def test_detector_loss_is_the_mean_over_cells_that_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 65, 3, 4, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 65, (2, 3, 4), generator=generator)
    counts = torch.rand(2, 3, 4, generator=generator) < 0.6
    means = []
    for picture in range(2):
        losses = []
        for row, column in counts[picture].nonzero().tolist():
            cell = logits[picture, :, row, column].numpy()
            losses.append(math.log(np.exp(cell).sum()) - cell[classes[picture, row, column]])
        means.append(np.mean(losses))
    assert float(detector_loss(logits, classes, counts)) == pytest.approx(np.mean(means), rel=1e-12)


def test_equal_logits_cost_the_logarithm_of_the_classes():
    loss = detector_loss(torch.zeros(1, 65, 2, 2), torch.full((1, 2, 2), 7), torch.ones(1, 2, 2).bool())
    assert float(loss) == pytest.approx(math.log(65))


def test_a_picture_without_cells_that_count_costs_nothing_and_keeps_its_gradient():
    logits = torch.randn(1, 65, 2, 2, requires_grad=True)
    loss = detector_loss(logits, torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2).bool())
    loss.backward()
    assert float(loss.detach()) == 0.0 and logits.grad is not None and not logits.grad.any()


def test_detector_gradient():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 65, 1, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(0, 65, (2, 1, 2), generator=generator)
    counts = torch.tensor([[[True, False]], [[True, True]]])
    assert torch.autograd.gradcheck(lambda x: detector_loss(x, classes, counts), (logits,))


def test_half_precision_is_raised():
    logits = torch.randn(1, 65, 2, 2).bfloat16()
    assert (
        detector_loss(logits, torch.zeros(1, 2, 2).long(), torch.ones(1, 2, 2).bool()).dtype == torch.float32
    )


# ---------------------------------------------------------------- correspondence
@pytest.mark.parametrize("centres", ["exact", "legacy"])
@pytest.mark.parametrize("radius", [4.0, 7.5, 8.0, 20.0])
def test_corresponding_cells_against_a_loop(centres, radius):
    config = LossConfig(correspondence_radius_px=radius, cell_centres=centres)
    H, offset = perspective(), {"exact": 3.5, "legacy": 4.0}[centres]
    found = corresponding_cells(H, (4, 5), config)
    for i in range(20):
        x, y, w = H.numpy() @ [8 * (i % 5) + offset, 8 * (i // 5) + offset, 1.0]
        for j in range(20):
            distance = math.hypot(x / w - (8 * (j % 5) + offset), y / w - (8 * (j // 5) + offset))
            assert bool(found[i, j]) == (distance <= radius), (i, j, distance)


def test_a_distance_of_exactly_the_radius_corresponds():
    found = corresponding_cells(translation(8, 0), (1, 4), LossConfig(correspondence_radius_px=8.0))
    # Cell i lies on cell i + 1, and 8 px from i and i + 2.
    assert found.int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    narrow = corresponding_cells(translation(8, 0), (1, 4), LossConfig(correspondence_radius_px=7.5))
    assert narrow.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_nothing_behind_the_horizon_corresponds():
    H = torch.eye(3, dtype=torch.float64)
    H[2, 0] = -1 / 19.5  # x = 19.5, the centre of the third cell, goes to infinity; beyond it all is mirrored
    found = corresponding_cells(H, (1, 6), LossConfig(correspondence_radius_px=1000.0))
    assert found.any(dim=1).tolist() == [True, True, False, False, False, False]


# ---------------------------------------------------------------- descriptor
def loop_loss(d0, d1, H, counts0, counts1, config) -> float:
    """The published formulas, one pair of cells at a time."""
    batch, _, h, w = d0.shape
    losses = []
    for b in range(batch):
        a = [v / np.linalg.norm(v) for v in d0[b].flatten(1).T.numpy()]
        c = [v / np.linalg.norm(v) for v in d1[b].flatten(1).T.numpy()]
        asked = np.outer(counts0[b].flatten().numpy(), counts1[b].flatten().numpy())
        t = np.array([[x @ y for y in c] for x in a])
        if config.descriptor == "normalised":
            t = np.maximum(t * asked, 0)
            t = t / np.maximum(np.sqrt((t**2).sum(axis=1, keepdims=True)), 1e-6)
            t = t / np.maximum(np.sqrt((t**2).sum(axis=0, keepdims=True)), 1e-6)
        total = 0.0
        for i in range(h * w):
            x, y, z = H[b].numpy() @ [8 * (i % w) + 3.5, 8 * (i // w) + 3.5, 1.0]
            for j in range(h * w):
                same = math.hypot(x / z - (8 * (j % w) + 3.5), y / z - (8 * (j // w) + 3.5)) <= 8
                if not asked[i, j]:
                    continue
                if same:
                    total += config.lambda_d * max(0.0, config.positive_margin - t[i, j])
                else:
                    total += max(0.0, t[i, j] - config.negative_margin)
        losses.append(total / asked.sum())
    return float(np.mean(losses))


def problem(batch: int = 2, dim: int = 5, h: int = 3, w: int = 4):
    generator = torch.Generator().manual_seed(3)
    d0, d1 = (torch.randn(batch, dim, h, w, generator=generator, dtype=torch.float64) for _ in range(2))
    counts0, counts1 = (torch.rand(batch, h, w, generator=generator) < 0.8 for _ in range(2))
    H = torch.stack([perspective(), translation(5, -3)])[:batch]
    return d0, d1, H, counts0, counts1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", [None, 3.0])
def test_descriptor_loss_against_a_loop(form, weight):
    config = LossConfig(descriptor=form, positive_weight=weight, scale_with_cells=False)
    given = problem()
    found = descriptor_loss(*given, config)
    assert float(found.loss) == pytest.approx(loop_loss(*given, config), rel=1e-10)
    assert float(found.positive + found.negative) == pytest.approx(float(found.loss), rel=1e-12)


def test_a_perfect_map_costs_nothing():
    """Orthogonal descriptors, each cell its own, on identical views."""
    perfect = torch.eye(6, dtype=torch.float64).reshape(1, 6, 2, 3)
    everything = torch.ones(1, 2, 3, dtype=torch.bool)
    for form in FORMS:
        config = LossConfig(descriptor=form, correspondence_radius_px=7.5)
        found = descriptor_loss(7 * perfect, perfect, translation(0, 0)[None], everything, everything, config)
        assert float(found.loss) == pytest.approx(0.0, abs=1e-12)


def test_closed_form_of_the_papers_loss():
    """With the radius 8 the four neighbours of a cell correspond as well: 7 edges of a 2 x 3 grid, both ways."""
    perfect = torch.eye(6, dtype=torch.float64).reshape(1, 6, 2, 3)
    everything = torch.ones(1, 2, 3, dtype=torch.bool)
    config = LossConfig(descriptor="paper", scale_with_cells=False)
    found = descriptor_loss(perfect, perfect, translation(0, 0)[None], everything, everything, config)
    assert float(found.positive) == pytest.approx(250 * 14 / 36)
    same = torch.ones(1, 1, 2, 3, dtype=torch.float64)  # one descriptor everywhere: only false pairs cost
    found = descriptor_loss(same, same, translation(0, 0)[None], everything, everything, config)
    assert float(found.positive) == 0.0
    assert float(found.negative) == pytest.approx((1 - 0.2) * (36 - 6 - 14) / 36)


@pytest.mark.parametrize(("form", "scales_negative"), [("paper", False), ("normalised", True)])
def test_weights_follow_the_number_of_cells(form, scales_negative):
    """A view of 12 cells has 1/100 of the published ones; at 1,200 cells nothing changes."""
    given = problem()
    plain = descriptor_loss(*given, LossConfig(descriptor=form, scale_with_cells=False))
    scaled = descriptor_loss(*given, LossConfig(descriptor=form))
    assert float(scaled.positive) == pytest.approx(float(plain.positive) / 100)
    assert float(scaled.negative) == pytest.approx(float(plain.negative) / (100 if scales_negative else 1))
    assert float(scaled.loss) == pytest.approx(float(scaled.positive + scaled.negative))
    full = problem(batch=1, dim=3, h=30, w=40)
    alike = [float(descriptor_loss(*full, LossConfig(scale_with_cells=on)).loss) for on in (True, False)]
    assert alike[0] == alike[1] > 0


def test_similarities_are_clamped_and_scaled_by_rows_then_columns():
    scaled = normalise_similarity(torch.tensor([[3.0, 4.0], [-1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(scaled, torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_descriptor_gradient(form):
    d0, d1, H, counts0, counts1 = problem(batch=1, dim=3, h=2, w=3)
    d0.requires_grad_(), d1.requires_grad_()
    config = LossConfig(descriptor=form)
    assert torch.autograd.gradcheck(
        lambda a, b: descriptor_loss(a, b, H, counts0, counts1, config).loss, (d0, d1)
    )


@pytest.mark.parametrize("form", FORMS)
def test_cells_that_show_nothing_have_no_influence(form):
    d0, d1, H, counts0, counts1 = problem()
    config = LossConfig(descriptor=form)
    before = float(descriptor_loss(d0, d1, H, counts0, counts1, config).loss)
    d0, d1 = d0.requires_grad_(), d1.requires_grad_()
    descriptor_loss(d0, d1, H, counts0, counts1, config).loss.backward()
    assert not d0.grad.movedim(1, -1)[~counts0].any() and not d1.grad.movedim(1, -1)[~counts1].any()
    assert d0.grad.movedim(1, -1)[counts0].any()
    changed = d1.detach().clone()
    changed.movedim(1, -1)[~counts1] = 9.0
    assert float(descriptor_loss(d0.detach(), changed, H, counts0, counts1, config).loss) == before


@pytest.mark.parametrize("form", FORMS)
def test_no_overlap_costs_nothing_and_gives_no_nan(form):
    d0, d1, H, counts0, counts1 = problem()
    d0.requires_grad_()
    found = descriptor_loss(
        d0, d1, H, torch.zeros_like(counts0), torch.zeros_like(counts1), LossConfig(descriptor=form)
    )
    found.loss.backward()
    assert float(found.loss.detach()) == 0.0 and not d0.grad.any() and d0.grad.isfinite().all()


def test_published_weights():
    assert (LossConfig().lambda_d, LossConfig().lambda_descriptor) == (0.05, 10_000.0)
    paper = LossConfig(descriptor="paper")
    assert (paper.lambda_d, paper.lambda_descriptor) == (250.0, 1e-4)
    assert LossConfig(positive_weight=2.0, descriptor_weight=0.0).lambda_descriptor == 0.0


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"positive_weight": -1.0}, "loss.positive_weight"),
        ({"descriptor_weight": math.nan}, "loss.descriptor_weight"),
        ({"positive_margin": 0.1}, "loss.positive_margin"),
        ({"correspondence_radius_px": 0.0}, "loss.correspondence_radius_px"),
    ],
)
def test_impossible_settings_are_refused(change, key):
    with pytest.raises(ConfigError, match=f"superpoint.training.{key}"):
        LossConfig(**change)


def test_wrong_shapes_are_refused():
    d0, d1, H, counts0, counts1 = problem()
    with pytest.raises(ShapeError, match="descriptors1"):
        descriptor_loss(d0, d1[:, :-1], H, counts0, counts1, LossConfig())
    with pytest.raises(ShapeError, match="logits"):
        detector_loss(torch.zeros(1, 64, 2, 2), torch.zeros(1, 2, 2).long(), torch.ones(1, 2, 2).bool())


# ---------------------------------------------------------------- dual softmax
def dual_softmax_loop(d0, d1, H, counts0, counts1, config) -> float:
    """One direction, from the definition: places, similarities and cross-entropies one at a time."""
    _, h, w = d0.shape
    places, left, right = [], [], []
    for y in range(h):
        for x in range(w):
            centre = torch.tensor([8 * x + 3.5, 8 * y + 3.5, 1.0], dtype=torch.float64)
            warped = H @ centre
            if warped[2] * H[2, 2] <= 0 or not counts0[y, x]:
                continue
            u, v = ((warped[:2] / warped[2]) - 3.5) / 8
            if not (0 <= u <= w - 1 and 0 <= v <= h - 1) or not counts1[round(float(v)), round(float(u))]:
                continue
            x0, y0 = min(int(u), w - 2), min(int(v), h - 2)
            a, b = float(u) - x0, float(v) - y0
            read = (1 - a) * (1 - b) * d1[:, y0, x0] + a * (1 - b) * d1[:, y0, x0 + 1]
            read = read + (1 - a) * b * d1[:, y0 + 1, x0] + a * b * d1[:, y0 + 1, x0 + 1]
            places.append((warped[:2] / warped[2]).numpy())
            left.append((d0[:, y, x] / d0[:, y, x].norm()).numpy())
            right.append((read / read.norm()).numpy())
    total = 0.0
    for i in range(len(places)):
        for ours, theirs in ((left, right), (right, left)):
            rivals = [
                np.exp(config.softmax_scale * ours[i] @ theirs[j])
                for j in range(len(places))
                if j == i or np.linalg.norm(places[i] - places[j]) >= config.correspondence_radius_px
            ]
            total -= 0.5 * (config.softmax_scale * ours[i] @ theirs[i] - math.log(sum(rivals)))
    return total / len(places)


@pytest.mark.parametrize("radius", [0.5, 9.0])
def test_dual_softmax_against_a_loop(radius):
    generator = torch.Generator().manual_seed(3)
    config = LossConfig(descriptor="dual_softmax", correspondence_radius_px=radius, softmax_scale=7.0)
    d0, d1 = torch.randn(2, 2, 5, 4, 5, generator=generator, dtype=torch.float64)
    counts0, counts1 = torch.rand(2, 2, 4, 5, generator=generator) > 0.15
    H = torch.stack([translation(2.0, -3.3), perspective()])
    found = descriptor_loss(d0, d1, H, counts0, counts1, config)
    wanted = 0.0
    for pair in range(2):
        there = (d0[pair], d1[pair], H[pair], counts0[pair], counts1[pair])
        back = (d1[pair], d0[pair], torch.linalg.inv(H[pair]), counts1[pair], counts0[pair])
        wanted += 0.25 * (dual_softmax_loop(*there, config) + dual_softmax_loop(*back, config))
    assert float(found.loss) == pytest.approx(wanted, rel=1e-6)


def test_dual_softmax_gradient():
    config = LossConfig(descriptor="dual_softmax", softmax_scale=3.0)
    d0, d1 = torch.randn(2, 1, 3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everything = torch.ones(1, 3, 4, dtype=torch.bool)

    def loss(first, second):
        return descriptor_loss(
            first, second, translation(3.0, 1.5)[None], everything, everything, config
        ).loss

    assert torch.autograd.gradcheck(loss, (d0.requires_grad_(), d1.requires_grad_()), atol=1e-5)


def test_dual_softmax_of_alike_descriptors_is_the_logarithm_of_the_places():
    config = LossConfig(descriptor="dual_softmax", correspondence_radius_px=1.0)
    alike = torch.ones(1, 4, 3, 4)
    everything = torch.ones(1, 3, 4, dtype=torch.bool)
    found = descriptor_loss(
        alike, alike, torch.eye(3, dtype=torch.float64)[None], everything, everything, config
    )
    assert float(found.loss) == pytest.approx(math.log(12))
    assert float(found.positive) == pytest.approx(-config.softmax_scale)


def test_dual_softmax_without_overlap_costs_nothing_and_keeps_its_gradient():
    config = LossConfig(descriptor="dual_softmax")
    d0, d1 = torch.randn(2, 1, 4, 3, 4).requires_grad_(), torch.randn(2, 1, 4, 3, 4)
    everything = torch.ones(1, 3, 4, dtype=torch.bool)
    found = descriptor_loss(d0[0], d1[0], translation(500.0, 0.0)[None], everything, everything, config)
    found.loss.backward()
    assert float(found.loss.detach()) == 0.0
    assert not d0.grad.any()
