"""Drawing keypoints: the distribution, the log-probabilities and their gradients, addressing, sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.methods.posfeat.proposals import propose


def noise(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, height, width, generator=generator, dtype=torch.float64)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    cell_px=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_whole_cell_proposes_one_of_its_pixels(height, width, cell_px, seed):
    scores = noise(2, height, width)
    if min(height, width) < cell_px:
        with pytest.raises(ShapeError, match=f"at least {cell_px} x {cell_px} px"):
            propose(scores, cell_px, [seed, 1], "test")
        return
    drawn = propose(scores, cell_px, [seed, 1], "test")
    rows, columns = height // cell_px, width // cell_px
    assert drawn.points.shape == (2, rows * columns, 2) and drawn.points.dtype == torch.float32
    assert torch.equal(drawn.points, drawn.points.round())
    cell = (drawn.points / cell_px).floor().long()
    expected = torch.tensor([[column, row] for row in range(rows) for column in range(columns)])
    assert torch.equal(cell, expected.expand(2, -1, -1))


def test_log_probabilities_are_those_of_the_formula():
    scores = noise(2, 16, 24).requires_grad_()
    drawn = propose(scores, 8, [5, 6], "test")
    assert drawn.accepted.any() and not drawn.accepted.all()
    for image in range(2):
        for index, (x, y) in enumerate(drawn.points[image].long().tolist()):
            left, top = x // 8 * 8, y // 8 * 8
            cell = scores[image, 0, top : top + 8, left : left + 8].detach()
            score = scores[image, 0, y, x].item()
            acceptance = 1 / (1 + math.exp(-score))
            decision = acceptance if drawn.accepted[image, index] else 1 - acceptance
            expected = math.log(cell.exp()[y - top, x - left] / cell.exp().sum()) + math.log(decision)
            assert drawn.log_prob[image, index].item() == pytest.approx(expected, abs=1e-12)


def test_gradients_are_those_of_finite_differences():
    draws = [propose(noise(1, 8, 8, seed), 4, [seed], "test").accepted for seed in range(8)]
    assert torch.cat(draws).any() and not torch.cat(draws).all()
    for seed in range(8):
        scores = noise(1, 8, 8, seed).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s, seed=seed: propose(s, 4, [seed], "test").log_prob, (scores,)
        )


def test_pixels_and_acceptance_follow_their_distributions():
    """20,000 equal cells of 2 x 2 pixels; deviations up to five standard errors."""
    cell = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    cells = 20_000
    drawn = propose(cell.repeat(1, 1, 1, cells), 2, [11], "test")
    x, y = (drawn.points[0] % 2).long().unbind(1)
    probability = cell.flatten().softmax(0)
    for entry, expected in enumerate(probability.tolist()):
        chosen = 2 * y + x == entry
        tolerance = 5 * math.sqrt(expected * (1 - expected) / cells)
        assert chosen.double().mean().item() == pytest.approx(expected, abs=tolerance)
        acceptance = cell.flatten()[entry].sigmoid().item()
        tolerance = 5 * math.sqrt(acceptance * (1 - acceptance) / int(chosen.sum()))
        assert drawn.accepted[0][chosen].double().mean().item() == pytest.approx(acceptance, abs=tolerance)


def test_scores_of_the_head_accept_at_least_half():
    """Scores are >= 0, so that each acceptance has a probability of at least 0.5, at score 0 exactly that."""
    cells = 40_000
    drawn = propose(torch.zeros(1, 1, 8, 8 * cells), 8, [4], "test")
    share = drawn.accepted.double().mean().item()
    assert share == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / cells))
    scores = torch.nn.functional.softplus(noise(1, 480, 640)).float()
    assert propose(scores, 8, [4], "test").accepted.double().mean() > 0.5


def test_a_certain_pixel_is_always_proposed_and_extreme_scores_stay_finite():
    scores = torch.zeros(1, 1, 32, 32)
    scores[..., 3::8, 5::8] = 1e4
    scores.requires_grad_()
    drawn = propose(scores, 8, [0], "test")
    assert torch.equal(drawn.points % 8, torch.tensor([5.0, 3.0]).expand(1, 16, 2))
    assert drawn.accepted.all() and (drawn.log_prob == 0).all()
    drawn.log_prob.sum().backward()
    assert scores.grad.isfinite().all()


def test_an_image_is_drawn_by_its_own_seed_and_the_purpose_alone():
    scores = noise(3, 32, 32)
    together = propose(scores, 8, [7, 8, 9], "first")
    alone = propose(scores[1:2], 8, [8], "first")
    assert torch.equal(together.points[1:2], alone.points) and torch.equal(
        together.accepted[1:2], alone.accepted
    )
    torch.testing.assert_close(together.log_prob[1:2], alone.log_prob)
    assert not torch.equal(propose(scores[1:2], 8, [8], "second").points, alone.points)
    assert not torch.equal(propose(scores[1:2], 8, [9], "first").points, alone.points)


def test_the_global_generator_is_neither_used_nor_moved():
    torch.manual_seed(1)
    first = propose(noise(1, 32, 32), 8, [3], "test")
    state = torch.get_rng_state()
    second = propose(noise(1, 32, 32), 8, [3], "test")
    assert torch.equal(first.points, second.points) and torch.equal(state, torch.get_rng_state())


def test_half_precision_is_raised():
    scores = noise(1, 32, 32).bfloat16()
    drawn = propose(scores, 8, [3], "test")
    assert drawn.log_prob.dtype == torch.float32
    torch.testing.assert_close(drawn.log_prob, propose(scores.float(), 8, [3], "test").log_prob)


def test_seeds_must_be_one_per_image():
    with pytest.raises(ShapeError, match="seeds: expected one for each of 2 images, got 1"):
        propose(noise(2, 16, 16), 8, [1], "test")
    with pytest.raises(ShapeError, match="scores: expected shape"):
        propose(noise(2, 16, 16)[:, 0], 8, [1, 2], "test")
