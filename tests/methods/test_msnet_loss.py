"""The loss: closed form, gradients, and what mined negatives do to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.methods.msnet.loss import contrastive_terms


def at_angles(*degrees: float) -> torch.Tensor:
    """Unit vectors (N, 2); the distance of two of them is 2 sin(angle / 2)."""
    angle = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


ALL = torch.tensor([True, True, True])


def test_closed_form():
    descriptors, partners = at_angles(0, 0, 0), at_angles(60, 0, 90)
    negatives = at_angles(10, 20, 60)  # distances 0.174, 0.347, 1: two within the margin
    terms = contrastive_terms(descriptors, partners, negatives, ALL, margin=0.5)
    assert terms.distance.item() == pytest.approx((1.0 + 0.0 + math.sqrt(2.0)) / 3)
    assert terms.similarity.item() == pytest.approx(0.5 - (chord(10) + chord(20)) / 2)
    assert terms.active_share.item() == pytest.approx(2 / 3)


def test_the_mean_is_over_active_negatives_only():
    far = at_angles(10, 170, 170)
    terms = contrastive_terms(at_angles(0, 0, 0), at_angles(0, 0, 0), far, ALL, margin=0.5)
    assert terms.similarity.item() == pytest.approx(0.5 - chord(10))


def test_no_active_negative_costs_nothing():
    terms = contrastive_terms(at_angles(0), at_angles(0), at_angles(90), ALL[:1], margin=0.5)
    assert (terms.distance.item(), terms.similarity.item(), terms.active_share.item()) == (0.0, 0.0, 0.0)


def test_rows_without_a_mined_negative_are_ignored():
    descriptors = at_angles(0, 0, 0).requires_grad_()
    partners, negatives = at_angles(30, 30, 30), at_angles(10, 20, 0)
    negatives[2] = torch.nan
    mined = torch.tensor([True, True, False])
    terms = contrastive_terms(descriptors, partners, negatives, mined, margin=0.5)
    assert terms.similarity.item() == pytest.approx(0.5 - (chord(10) + chord(20)) / 2)
    assert terms.active_share.item() == 1.0
    terms.similarity.backward()
    assert descriptors.grad[2].abs().sum() == 0
    none = contrastive_terms(at_angles(0), at_angles(0), at_angles(0), torch.tensor([False]), margin=0.5)
    assert none.similarity.item() == 0.0 and none.active_share.item() == 0.0


def test_gradients_flow_through_all_three_and_are_right():
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    near = raw[0] + 0.1 * torch.randn(5, 4, dtype=torch.float64, generator=generator)
    leaves = [tensor.requires_grad_() for tensor in (*raw, near)]
    mined = torch.tensor([True, True, True, False, True])

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        terms = contrastive_terms(*(F.normalize(t, dim=1) for t in tensors), mined, margin=0.5)
        assert terms.active_share == 1.0
        return terms.distance + terms.similarity

    assert torch.autograd.gradcheck(loss, leaves)
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    assert all(g.abs().sum() > 0 for g in gradients)


def test_equal_descriptors_have_a_finite_gradient():
    same = at_angles(0, 40).requires_grad_()
    terms = contrastive_terms(same, same.detach().clone(), same.detach().clone(), ALL[:2], margin=0.5)
    (terms.distance + terms.similarity).backward()
    assert same.grad.isfinite().all()


def test_mismatched_rows_are_refused():
    with pytest.raises(ShapeError, match="negatives: expected shape"):
        contrastive_terms(at_angles(0, 0), at_angles(0, 0), at_angles(0), ALL[:2], margin=0.5)
    with pytest.raises(ShapeError, match="is_mined"):
        contrastive_terms(at_angles(0), at_angles(0), at_angles(0), ALL, margin=0.5)
