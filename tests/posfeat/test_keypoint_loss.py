"""The policy gradient against a direct transcription, by autograd in float64, and its behaviour on degenerate pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.geometry.epipolar import fundamental_from_pose
from matchlib.methods.posfeat.config import KeypointLossConfig
from matchlib.methods.posfeat.keypoint_loss import KeypointLoss, keypoint_loss
from matchlib.methods.posfeat.proposals import Proposals, propose

SIZE = (96, 64)
CONFIGS = {
    "constant": KeypointLossConfig(),
    "dynamic": KeypointLossConfig(reward="dynamic"),
    "rescaled": KeypointLossConfig(rescale_threshold=True, reward_threshold_px=4.0),
    "soft": KeypointLossConfig(temperature=5.0, good=0.5, bad=-2.0, keypoint_penalty=0.3),
}


def fundamentals(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, 3) float64 of cameras of 96 x 64 px, a different motion each."""
    generator = torch.Generator().manual_seed(seed)
    K = torch.tensor([[80.0, 0, 47.5], [0, 82.0, 31.5], [0, 0, 1]], dtype=torch.float64)
    poses = []
    for _ in range(count):
        axis = torch.randn(3, 3, generator=generator, dtype=torch.float64) * 0.1
        T = torch.eye(4, dtype=torch.float64)
        T[:3, :3] = torch.matrix_exp(axis - axis.T)
        T[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
        poses.append(T)
    return fundamental_from_pose(torch.stack(poses), K, K)


def random_proposals(batch: int, count: int, seed: int, dtype: torch.dtype = torch.float64) -> Proposals:
    """Log-probabilities are leaves, so that a gradient with respect to them can be read."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor(SIZE)
    points = (torch.rand(batch, count, 2, generator=generator) * limits).floor()
    log_prob = -5 * torch.rand(batch, count, generator=generator, dtype=torch.float64).to(dtype)
    accepted = torch.rand(batch, count, generator=generator) < 0.6
    return Proposals(points, log_prob.requires_grad_(), accepted)


def unit_rows(batch: int, count: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    drawn = torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=2).to(dtype)


def transcription(
    proposals0: Proposals,
    proposals1: Proposals,
    descriptors0: torch.Tensor,
    descriptors1: torch.Tensor,
    F: torch.Tensor,
    config: KeypointLossConfig,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of each pair (B,), P over accepted and good matches (B,), P over accepted (B,), as the formulas stand."""
    x0, x1 = (
        torch.cat([p.points.double(), torch.ones_like(p.points[..., :1]).double()], 2)
        for p in (proposals0, proposals1)
    )
    lines1, lines0 = torch.einsum("bij,bnj->bni", F, x0), torch.einsum("bji,bnj->bni", F, x1)
    d1 = torch.einsum("bni,bmi->bnm", lines1, x1).abs() / lines1[..., :2].norm(dim=2)[:, :, None]
    d0 = torch.einsum("bni,bmi->bnm", x0, lines0).abs() / lines0[..., :2].norm(dim=2)[:, None, :]
    mean0, mean1 = d0.mean((1, 2), keepdim=True), d1.mean((1, 2), keepdim=True)
    threshold0 = threshold1 = torch.full_like(mean0, config.reward_threshold_px)
    if config.rescale_threshold:
        threshold0 = threshold0 * mean0 / torch.minimum(mean0, mean1)
        threshold1 = threshold1 * mean1 / torch.minimum(mean0, mean1)
    good = (d0 < threshold0) & (d1 < threshold1)
    reward = torch.where(good, config.good, config.bad).double()
    if config.reward == "dynamic":
        reward = (torch.exp(-d0 / 2) + torch.exp(-d1 / 2) - 2 / math.e).clamp_min(config.bad)
    affinity = -config.temperature * (1 - descriptors0.double() @ descriptors1.double().mT)
    P = (affinity.softmax(2) * affinity.softmax(1)).detach()
    log_P = (affinity.log_softmax(2) + affinity.log_softmax(1)).detach()
    both = (proposals0.accepted[:, :, None] & proposals1.accepted[:, None, :]).double()
    log_pi0, log_pi1 = proposals0.log_prob.double(), proposals1.log_prob.double()
    reinforce = (both * reward * P * (log_P + log_pi0[:, :, None] + log_pi1[:, None, :])).sum((1, 2))
    published_penalty = -config.keypoint_penalty
    counted = (log_pi0 * proposals0.accepted).sum(1) + (log_pi1 * proposals1.accepted).sum(1)
    return -reinforce - published_penalty * counted, (both * P * good).sum((1, 2)), (both * P).sum((1, 2))


def gradients(loss: torch.Tensor, *proposals: Proposals) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p.log_prob for p in proposals]))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("block", [1, 7, 1024])
def test_value_gradient_and_figures_are_those_of_the_published_formulas(name, block):
    config = replace(CONFIGS[name], block=block)
    first, second = random_proposals(3, 40, 1), random_proposals(3, 31, 2)
    descriptors0, descriptors1, F = unit_rows(3, 40, 3), unit_rows(3, 31, 4), fundamentals(3)
    ours = keypoint_loss(first, second, descriptors0, descriptors1, F, config)
    published, good, matches = transcription(first, second, descriptors0, descriptors1, F, config)
    assert good.min() > 0, "an example without good matches shows nothing"
    torch.testing.assert_close(ours.loss, published.mean(), rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(
        gradients(ours.loss, first, second), gradients(published.mean(), first, second), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.matches, matches.mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.good_share, (good / matches).mean(), rtol=1e-10, atol=1e-10)
    accepted = (first.accepted.sum() + second.accepted.sum()).double() / 6
    torch.testing.assert_close(ours.keypoints, accepted)
    torch.testing.assert_close(ours.loss, ours.reinforce + ours.penalty)


def test_float32_agrees_with_float64():
    config = KeypointLossConfig(block=16)
    wide = (random_proposals(2, 50, 1), random_proposals(2, 60, 2), unit_rows(2, 50, 3), unit_rows(2, 60, 4))
    single = torch.float32
    narrow = (
        random_proposals(2, 50, 1, single),
        random_proposals(2, 60, 2, single),
        unit_rows(2, 50, 3, single),
        unit_rows(2, 60, 4, single),
    )
    expected, got = (keypoint_loss(*inputs, fundamentals(2), config) for inputs in (wide, narrow))
    assert got.loss.dtype == single
    torch.testing.assert_close(got.loss.double(), expected.loss, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(
        gradients(got.loss, *narrow[:2]), gradients(expected.loss, *wide[:2]), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)


def test_autocast_changes_nothing():
    inputs = (random_proposals(1, 50, 1, torch.float32), random_proposals(1, 50, 2, torch.float32))
    features = (unit_rows(1, 50, 3, torch.float32), unit_rows(1, 50, 4, torch.float32))
    plain = keypoint_loss(*inputs, *features, fundamentals(1), KeypointLossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = keypoint_loss(*inputs, *features, fundamentals(1), KeypointLossConfig())
    assert torch.equal(plain.loss, mixed.loss)


def single_match(
    dx: float, dy: float, *, log_prob: float = -1.0
) -> tuple[Proposals, Proposals, torch.Tensor]:
    """One proposal in each image, displaced by (dx, dy); lines are the image rows."""
    row_geometry = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]], dtype=torch.float64)
    accepted = torch.ones(1, 1, dtype=torch.bool)
    pair = [
        Proposals(
            torch.tensor([[[x, y]]]),
            torch.full((1, 1), log_prob, dtype=torch.float64, requires_grad=True),
            accepted,
        )
        for x, y in ((30.0, 20.0), (30.0 + dx, 20.0 + dy))
    ]
    return pair[0], pair[1], row_geometry


@pytest.mark.parametrize(("dy", "reward"), [(0.0, 1.0), (1.99, 1.0), (2.01, -0.25), (-30.0, -0.25)])
def test_one_certain_match_has_the_reward_as_its_gradient(dy, reward):
    first, second, F = single_match(40.0, dy)
    same = torch.tensor([[[0.6, 0.8]]], dtype=torch.float64)
    found = keypoint_loss(first, second, same, same, F, KeypointLossConfig())
    for gradient in gradients(found.loss, first, second):
        assert gradient.item() == pytest.approx(-reward + 0.001, abs=1e-12)
    assert found.matches.item() == pytest.approx(1.0)
    assert found.good_share.item() == (reward > 0)


def test_raising_the_score_of_a_rewarded_pair_lowers_the_loss_and_of_a_punished_one_raises_it():
    for dy, sign in ((0.0, -1), (10.0, 1)):
        losses = []
        for raised in (0.0, 1.0):
            scores = [torch.zeros(1, 1, 8, 8, dtype=torch.float64) for _ in range(2)]
            drawn = [propose(s, 8, [3], p) for s, p in zip(scores, ("a", "b"), strict=True)]
            x, y = drawn[0].points[0, 0].long().tolist()
            scores[0][0, 0, y, x] += raised
            first = propose(scores[0], 8, [3], "a")
            assert first.accepted.all() and torch.equal(first.points, drawn[0].points)
            shift = first.points + torch.tensor([5.0, dy])
            second = Proposals(shift, drawn[1].log_prob, torch.ones(1, 1, dtype=torch.bool))
            same = torch.ones(1, 1, 1, dtype=torch.float64)
            losses.append(
                keypoint_loss(first, second, same, same, single_match(0, 0)[2], KeypointLossConfig()).loss
            )
        assert (losses[1] - losses[0]).sign() == sign


@given(seed=st.integers(0, 10_000), scale=st.floats(-1e6, 1e6).filter(lambda s: abs(s) > 1e-6))
@settings(max_examples=25, deadline=None)
def test_swapping_the_images_and_scaling_the_matrix_change_nothing(seed, scale):
    first, second = random_proposals(2, 20, seed), random_proposals(2, 24, seed + 1)
    features = unit_rows(2, 20, seed + 2), unit_rows(2, 24, seed + 3)
    F = fundamentals(2, seed)
    config = KeypointLossConfig(block=9, temperature=10.0)
    forward = keypoint_loss(first, second, *features, F, config)
    back = keypoint_loss(second, first, features[1], features[0], scale * F.mT, config)
    torch.testing.assert_close(back.loss, forward.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.good_share, forward.good_share, rtol=1e-9, atol=1e-9)


def test_a_batch_is_the_mean_of_its_pairs():
    first, second = random_proposals(3, 20, 1), random_proposals(3, 20, 2)
    features, F = (unit_rows(3, 20, 3), unit_rows(3, 20, 4)), fundamentals(3)

    def of(part: slice) -> KeypointLoss:
        chosen = (Proposals(p.points[part], p.log_prob[part], p.accepted[part]) for p in (first, second))
        return keypoint_loss(*chosen, features[0][part], features[1][part], F[part], KeypointLossConfig())

    singles = torch.stack([of(slice(k, k + 1)).loss for k in range(3)])
    torch.testing.assert_close(of(slice(0, 3)).loss, singles.mean())


def test_descriptors_receive_no_gradient():
    features = unit_rows(1, 20, 3).requires_grad_()
    found = keypoint_loss(
        random_proposals(1, 20, 1),
        random_proposals(1, 20, 2),
        features,
        features,
        fundamentals(1),
        KeypointLossConfig(),
    )
    assert torch.autograd.grad(found.loss, features, allow_unused=True) == (None,)


# ---------------------------------------------------------------- degenerate pairs
def everywhere(proposals: Proposals, accepted: bool) -> Proposals:
    return replace(proposals, accepted=torch.full_like(proposals.accepted, accepted))


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_accepted_costs_nothing_and_has_a_zero_gradient(name):
    first = everywhere(random_proposals(1, 20, 1), False)
    second = random_proposals(1, 20, 2)
    found = keypoint_loss(
        first, second, unit_rows(1, 20, 3), unit_rows(1, 20, 4), fundamentals(1), CONFIGS[name]
    )
    assert found.reinforce == 0 and found.matches == 0 and found.good_share == 0
    refused, accepted = gradients(found.loss, first, second)
    assert (refused == 0).all()
    torch.testing.assert_close(accepted, CONFIGS[name].keypoint_penalty * second.accepted.double())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pair_without_baseline_teaches_nothing(name):
    first, second = random_proposals(2, 20, 1), random_proposals(2, 20, 2)
    F = fundamentals(2)
    F[0] = 0
    found = keypoint_loss(first, second, unit_rows(2, 20, 3), unit_rows(2, 20, 4), F, CONFIGS[name])
    assert found.loss.isfinite() and found.good_share.isfinite()
    for gradient in gradients(found.loss, first, second):
        assert (gradient[0] == 0).all() and gradient[1].count_nonzero() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_matrix_makes_the_loss_nan_instead_of_a_wrong_lesson(bad):
    F = fundamentals(2)
    F[1, 0, 0] = bad
    features = unit_rows(2, 20, 3), unit_rows(2, 20, 4)
    for config in CONFIGS.values():
        found = keypoint_loss(random_proposals(2, 20, 1), random_proposals(2, 20, 2), *features, F, config)
        assert found.loss.isnan()


def test_keypoints_without_any_common_view_are_all_discouraged():
    """Image 1 shows only rows far from those of image 0: every reward is the bad one."""
    first, second = (everywhere(random_proposals(1, 20, seed), True) for seed in (1, 2))
    second = replace(second, points=second.points + torch.tensor([0.0, 500.0]))
    F = single_match(0, 0)[2]
    found = keypoint_loss(first, second, unit_rows(1, 20, 3), unit_rows(1, 20, 4), F, KeypointLossConfig())
    assert found.good_share == 0
    for gradient in gradients(found.loss, first, second):
        assert (gradient > 0).all()  # descent makes them less probable


@pytest.mark.parametrize("name", CONFIGS)
def test_a_point_on_the_epipole_is_no_good_match(name):
    F = torch.tensor([[[0.0, -1, 16], [1, 0, -16], [-16, 16, 0]]], dtype=torch.float64)  # forward motion
    assert (F[0] @ torch.tensor([16.0, 16, 1], dtype=torch.float64) == 0).all()
    epipole = Proposals(
        torch.tensor([[[16.0, 16.0]]]),
        torch.zeros(1, 1, dtype=torch.float64, requires_grad=True),
        torch.ones(1, 1, dtype=torch.bool),
    )
    same = torch.ones(1, 1, 1, dtype=torch.float64)
    found = keypoint_loss(epipole, epipole, same, same, F, CONFIGS[name])
    assert found.good_share == 0
    gradient = gradients(found.loss, epipole)[0]  # both images share the same log-probability
    assert gradient.item() == pytest.approx(2 * (CONFIGS[name].keypoint_penalty - CONFIGS[name].bad))


def test_extreme_temperatures_stay_finite():
    features = unit_rows(1, 30, 3, torch.float32)
    for temperature in (1e-3, 1e3):
        found = keypoint_loss(
            random_proposals(1, 30, 1, torch.float32),
            random_proposals(1, 30, 2, torch.float32),
            features,
            -features,
            fundamentals(1),
            KeypointLossConfig(temperature=temperature),
        )
        assert found.loss.isfinite()


def test_shapes_that_do_not_fit_are_named():
    first, second = random_proposals(2, 20, 1), random_proposals(2, 24, 2)
    right = unit_rows(2, 20, 3), unit_rows(2, 24, 4)
    with pytest.raises(ShapeError, match="descriptors1: expected shape"):
        keypoint_loss(first, second, right[0], unit_rows(2, 20, 4), fundamentals(2), KeypointLossConfig())
    with pytest.raises(ShapeError, match="F_0to1: expected shape"):
        keypoint_loss(first, second, *right, fundamentals(1), KeypointLossConfig())
    with pytest.raises(ShapeError, match="log_prob: expected shape"):
        Proposals(first.points, first.log_prob[:, :5], first.accepted)
    for shape in ((0, 20), (1, 0)):
        none = random_proposals(*shape, 1)
        with pytest.raises(ShapeError, match="expected at least one of at least one image"):
            keypoint_loss(
                none, none, unit_rows(*shape, 1), unit_rows(*shape, 1), fundamentals(1), KeypointLossConfig()
            )
