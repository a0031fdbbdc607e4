"""Losses against loops written from the formulas, and gradients in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from matchlib.methods.aslfeat.config import LossConfig
from matchlib.methods.aslfeat.correspondences import Correspondences
from matchlib.methods.aslfeat.loss import (
    circle_loss,
    descriptor_loss,
    detector_weighted_mean,
    excluded_negatives,
    retrieval_accuracy,
)

N, D = 9, 5


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Correspondences]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(N, D, generator=generator, dtype=torch.float64)
    noise = 0.7 * torch.randn(N, D, generator=generator, dtype=torch.float64)
    points0 = 60 * torch.rand(N, 2, generator=generator, dtype=torch.float64)
    points1 = 60 * torch.rand(N, 2, generator=generator, dtype=torch.float64)
    points0[1] = points0[0] + torch.tensor([3.0, 4.0])  # neighbours in image 0 only
    points1[3] = points1[2] + torch.tensor([0.0, 11.9])  # neighbours in image 1 only
    return F.normalize(base, dim=1), F.normalize(base + noise, dim=1), Correspondences(points0, points1)


def is_no_negative(i: int, j: int, s: np.ndarray, points: np.ndarray, radius: float) -> bool:
    if i == j or math.sqrt(max(2 - 2 * s[i, j], 1e-6)) < 0.008:
        return True
    return math.dist(points[i], points[j]) < radius


def loop_loss(d0, d1, found, config) -> np.ndarray:
    s = np.clip(d0.numpy() @ d1.numpy().T, -1, 1)
    points = (found.points0.numpy(), found.points1.numpy())
    result = np.zeros(N)
    for k in range(N):
        for matrix, where in ((s, points[1]), (s.T, points[0])):
            allowed = [j for j in range(N) if not is_no_negative(k, j, matrix, where, config.safe_radius_px)]
            if config.descriptor == "hard_contrastive":
                d = np.sqrt(np.maximum(2 - 2 * matrix[k], 1e-6))
                term = max(d[k] - config.positive_margin, 0)
                if allowed:
                    term += max(config.negative_margin - min(d[j] for j in allowed), 0)
            else:
                g, m = config.circle_scale, config.circle_margin
                positive = -g * (matrix[k, k] - (1 - m)) * max(1 + m - matrix[k, k], 0)
                total = sum(math.exp(g * (matrix[k, j] - m) * max(matrix[k, j] + m, 0)) for j in allowed)
                if config.circle_excluded == "shifted":
                    total += N - len(allowed)
                if total == 0:
                    continue
                x = positive + math.log(total)
                term = (x if x > 30 else math.log1p(math.exp(x))) / g
            result[k] += 0.5 * term
    return result


CONFIGS = [
    LossConfig(descriptor="hard_contrastive"),
    LossConfig(descriptor="circle"),
    LossConfig(descriptor="circle", circle_excluded="shifted"),
    LossConfig(descriptor="circle", circle_scale=8.0, circle_margin=0.25),
    LossConfig(descriptor="circle", circle_scale=8.0, circle_excluded="shifted"),
    LossConfig(descriptor="hard_contrastive", safe_radius_px=1000.0),
    LossConfig(descriptor="circle", safe_radius_px=1000.0),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_agree_with_loops(config, seed):
    d0, d1, found = problem(seed)
    losses = descriptor_loss(d0, d1, found, config)
    np.testing.assert_allclose(losses.numpy(), loop_loss(d0, d1, found, config), rtol=1e-8, atol=1e-12)


def test_shifted_circle_loss_charges_for_what_is_excluded():
    # The fault: with the positive pair far from solved, every excluded entry adds exp(0) = 1 to the sum.
    d0, d1, found = problem()
    masked = descriptor_loss(d0, d1, found, LossConfig(safe_radius_px=1000.0))
    shifted = descriptor_loss(d0, d1, found, LossConfig(safe_radius_px=1000.0, circle_excluded="shifted"))
    assert not masked.any()
    assert shifted.sum() > 0.1


def test_exclusion_is_per_direction():
    d0, d1, found = problem()
    row, column = excluded_negatives(d0 @ d1.T, found, 12.0)
    assert row.diagonal().all() and column.diagonal().all()
    assert column[0, 1] and column[1, 0] and row[2, 3] and row[3, 2]
    far1 = math.dist(found.points1[0], found.points1[1]) >= 12
    far0 = math.dist(found.points0[2], found.points0[3]) >= 12
    assert far0 and far1 and not row[0, 1] and not column[2, 3]


@pytest.mark.parametrize("config", CONFIGS[:4])
def test_gradients_in_float64(config):
    d0, d1, found = problem()
    if config.descriptor == "circle":
        # The weights of the circle loss carry no gradient by definition, so it is checked with them held.
        s = (d0 @ d1.T).requires_grad_()
        excluded = torch.eye(N, dtype=torch.bool)
        weight = (s + config.circle_margin).detach().clamp_min(0)
        held = (1 + config.circle_margin - s.diagonal()).detach().clamp_min(0)
        g, m = config.circle_scale, config.circle_margin

        def with_held_weights(x: torch.Tensor) -> torch.Tensor:
            logits = (g * weight * (x - m)).masked_fill(excluded, -1e9)
            return F.softplus(-g * held * (x.diagonal() - 1 + m) + logits.logsumexp(1)).sum() / g

        (ours,) = torch.autograd.grad(
            circle_loss(s, excluded, LossConfig(circle_scale=g, circle_margin=m)).sum(), s
        )
        (expected,) = torch.autograd.grad(with_held_weights(s), s)
        torch.testing.assert_close(ours, expected)
        assert torch.autograd.gradcheck(with_held_weights, s)
        return
    raw0, raw1 = d0.clone().requires_grad_(), d1.clone().requires_grad_()

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return descriptor_loss(F.normalize(a, dim=1), F.normalize(b, dim=1), found, config)

    assert torch.autograd.gradcheck(loss, (raw0, raw1))


@pytest.mark.parametrize("descriptor", ["circle", "hard_contrastive"])
def test_gradients_are_finite_for_equal_descriptors_and_no_negatives(descriptor):
    same = F.normalize(torch.ones(40, 8), dim=1).requires_grad_()
    found = Correspondences(torch.zeros(40, 2), torch.zeros(40, 2))
    descriptor_loss(same, same, found, LossConfig(descriptor=descriptor)).sum().backward()
    assert same.grad.isfinite().all()


def test_order_of_correspondences_does_not_matter():
    d0, d1, found = problem()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    shuffled = Correspondences(found.points0[order], found.points1[order])
    config = LossConfig()
    direct = descriptor_loss(d0, d1, found, config)[order]
    torch.testing.assert_close(descriptor_loss(d0[order], d1[order], shuffled, config), direct)


def test_detector_weighting_is_a_weighted_mean():
    loss, s0, s1 = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 2.0])
    assert detector_weighted_mean(loss, s0, s1).item() == pytest.approx((6 * 1 + 2 * 3) / 8, rel=1e-6)
    scores = torch.ones(2, requires_grad=True)
    detector_weighted_mean(loss, scores, s1).backward()
    assert scores.grad[0] < 0 < scores.grad[1], "descending raises the score where the loss is low"


def test_retrieval_accuracy_counts_both_directions():
    d0 = torch.eye(4)
    d1 = torch.stack([d0[0], d0[1], d0[2], F.normalize(d0[2] + 0.1 * d0[3], dim=0)])
    # Row 3 finds its partner (only one with that component); column 3 is nearer to point 2.
    assert retrieval_accuracy(d0, d1).item() == pytest.approx(0.5 * (1.0 + 0.75))
    assert retrieval_accuracy(d0, d0.roll(1, 0)).item() == 0.0
