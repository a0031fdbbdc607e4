"""Members of the descriptor space: resampling that stays in place, blends in closed form, scale maps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from matchlib.errors import ConfigError, ShapeError
from matchlib.geometry.homography import local_scale, warp_points
from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.msnet.config import MSNetConfig
from matchlib.methods.msnet.model import MSNet
from matchlib.methods.msnet.scales import coarse_weight, covariance_loss, true_scale_at_cells
from matchlib.methods.msnet.variants import at_scale, blend, fuse_by_attention, fuse_by_sum, mix, normalise


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ramp(height: int, width: int) -> torch.Tensor:
    return pixel_grid(height, width).T.reshape(1, 2, height, width)


# ---------------------------------------------------------------- resampling
@pytest.mark.parametrize("size", [(8, 12), (9, 12), (7, 11)])
@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_a_ramp_stays_in_place_through_another_scale(size, scale):
    there_and_back = at_scale(lambda x: x, ramp(*size), scale)
    assert there_and_back.shape == (1, 2, *size)
    inner = (..., slice(1, -2), slice(1, -2))  # resizing repeats what lies beyond the border
    torch.testing.assert_close(there_and_back[inner], ramp(*size)[inner], rtol=0, atol=1e-5)


def test_the_coarse_features_are_means_of_two_by_two_cells():
    features = random_maps(2, 3, 6, 8)
    seen = []
    at_scale(lambda x: seen.append(x) or x, features, 0.5)
    torch.testing.assert_close(seen[0], F.avg_pool2d(features, 2))


# ---------------------------------------------------------------- blending
def unit_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Orthogonal unit maps (1, 2, 1, 3), so that the weights can be read off the result."""
    fine, coarse = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    fine[:, 0], coarse[:, 1] = 1.0, 1.0
    return fine, coarse


def test_the_clamped_blend_in_closed_form():
    fine, coarse = unit_pair()
    scale = torch.tensor([[[1.0, 2.0, 1.25]]])
    found = blend(fine, 7.0 * coarse, scale, "clamped")[0, :, 0].T
    length = math.hypot(0.75, 0.25)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0], [0, 1.0], [0.75 / length, 0.25 / length]]))
    extreme = blend(fine, coarse, torch.tensor([[[0.1, 1e9, math.inf]]]), "clamped")[0, :, 0].T
    torch.testing.assert_close(extreme, torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0]]))


def test_the_legacy_blend_extrapolates_below_one_and_keeps_lengths():
    fine, coarse = unit_pair()
    scale = torch.tensor([[[0.4, 5.0, 1.25]]])
    found = blend(fine, 7.0 * coarse, scale, "legacy")[0, :, 0].T
    torch.testing.assert_close(found, torch.tensor([[1.6, -4.2], [0.0, 7.0], [0.75, 1.75]]))


def test_a_scale_map_of_another_size_is_refused():
    fine, coarse = unit_pair()
    with pytest.raises(ShapeError, match="scale: expected shape"):
        blend(fine, coarse, torch.ones(1, 3, 1), "clamped")


@settings(max_examples=40, deadline=None)
@given(weight=st.floats(0, 1), seed=st.integers(0, 99))
def test_mixtures_have_unit_length_and_lie_between(weight, seed):
    fine, coarse = normalise(random_maps(1, 8, 2, 3, seed=seed)), random_maps(1, 8, 2, 3, seed=seed + 100)
    mixed = mix(fine, coarse, torch.full((1, 2, 3), weight))
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(1, 2, 3))
    angle = (
        (mixed * fine).sum(1).clamp(-1, 1).acos(),
        (mixed * normalise(coarse)).sum(1).clamp(-1, 1).acos(),
    )
    whole = (fine * normalise(coarse)).sum(1).clamp(-1, 1).acos()
    torch.testing.assert_close(angle[0] + angle[1], whole, rtol=0, atol=5e-3)


def test_sum_and_attention_in_closed_form():
    fine, coarse = unit_pair()
    expected = torch.full((1, 2, 1, 3), 0.5**0.5)
    torch.testing.assert_close(fuse_by_sum([3.0 * fine, 0.1 * coarse]), expected)
    even = [torch.zeros(1, 1, 1, 3)] * 2
    torch.testing.assert_close(fuse_by_attention([3.0 * fine, 0.1 * coarse], even), expected)
    log3 = [torch.full((1, 1, 1, 3), math.log(3.0)), torch.zeros(1, 1, 1, 3)]
    weighted = fuse_by_attention([fine, coarse], log3)
    torch.testing.assert_close(weighted[:, 0] / weighted[:, 1], torch.full((1, 1, 3), 3.0))


# ---------------------------------------------------------------- members of the model
def model(**settings_) -> MSNet:
    net = MSNet(MSNetConfig(**settings_)).eval()
    net.initialise(0)
    return net


IMAGE = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_an_oracle_scale_of_one_is_fine_and_of_two_is_coarse():
    net = model(variant="v2")
    fine, coarse = net(IMAGE, members="set2").members
    for value, expected in ((1.0, fine), (2.0, normalise(coarse))):
        blended = net(IMAGE, members="oracle_blend", scale=torch.full((1, 10, 14), value)).members
        torch.testing.assert_close(blended[0], expected)
    torch.testing.assert_close(net(IMAGE, members="fine").members[0], fine)
    torch.testing.assert_close(net(IMAGE, members="coarse").members[0], coarse)


@torch.no_grad()
def test_the_predicted_scale_sets_the_weight():
    net = model(variant="v2", scale="predicted")
    torch.testing.assert_close(net(IMAGE, members="predicted_blend").octaves, torch.zeros(1, 10, 14))
    last = net.scale_head.output
    last.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    maps = net(IMAGE, members="predicted_blend")
    assert maps.octaves.std() > 0.01
    fine, coarse = net(IMAGE, members="set2").members
    expected = mix(fine, coarse, torch.sigmoid(4 * maps.octaves))
    torch.testing.assert_close(maps.members[0], expected)
    for bias, alone in ((-30.0, fine), (30.0, normalise(coarse))):
        last.weight.zero_()
        last.bias.fill_(bias)
        torch.testing.assert_close(net(IMAGE, members="predicted_blend").members[0], alone)


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 56), (37, 51), (4, 4), (1, 9)])
@pytest.mark.parametrize("variant", ["v0", "v1", "v2", "attention", "sum"])
def test_every_variant_has_maps_for_every_size(variant, size):
    net = model(variant=variant)
    cells = (-(-size[0] // 4), -(-size[1] // 4))
    scale = torch.full((1, *cells), 1.3) if variant == "v2" else None
    maps = net(torch.rand(1, 3, *size), members=net.config.used_members, scale=scale)
    assert maps.cells == cells and len(maps.members) == (2 if variant == "v1" else 1)
    assert all(m.shape == (1, 128, *cells) and m.isfinite().all() for m in maps.members)
    sets = maps.read(0, torch.tensor([[0.0, 0.0], [cells[1] - 1.0, cells[0] - 1.0]]))
    torch.testing.assert_close(sets.norm(dim=2), torch.ones(2, len(maps.members)))


def test_members_without_what_they_need_are_refused():
    with pytest.raises(ConfigError, match="oracle_blend needs the true scale"):
        model(variant="v2")(IMAGE, members="oracle_blend")
    with pytest.raises(ConfigError, match="predicted_blend needs"):
        model()(IMAGE, members="predicted_blend")
    with pytest.raises(ConfigError, match="attention needs"):
        model()(IMAGE, members="attention")


# ---------------------------------------------------------------- scales
def test_the_true_scale_is_the_inverse_of_the_enlargement():
    H = torch.tensor([[0.5, 0, 3], [0, 0.5, -2], [0, 0, 1]], dtype=torch.float64)
    scales = true_scale_at_cells(torch.stack([H, torch.linalg.inv(H)]), (3, 4))
    assert scales.shape == (2, 3, 4) and scales.dtype == torch.float32
    torch.testing.assert_close(scales, torch.tensor([2.0, 0.5])[:, None, None].expand(2, 3, 4))


def test_the_true_scale_against_areas_of_small_squares():
    H = torch.tensor([[1.1, 0.1, 5], [-0.05, 0.9, 2], [2e-3, -1e-3, 1]], dtype=torch.float64)
    scale = true_scale_at_cells(H[None], (5, 6))[0].double()
    step = 1e-3
    for row in range(5):
        for column in range(6):
            x, y = 4.0 * column, 4.0 * row
            square = [[x - step, y - step], [x + step, y - step], [x + step, y + step], [x - step, y + step]]
            a, b = warp_points(torch.tensor(square, dtype=torch.float64), H).unbind(1)
            area = 0.5 * (a * b.roll(-1) - a.roll(-1) * b).sum().abs()
            assert scale[row, column].item() == pytest.approx(2 * step / math.sqrt(area), rel=1e-5)


def test_scales_of_both_directions_are_inverse_at_corresponding_points():
    H = torch.tensor([[1.1, 0.1, 5], [-0.05, 0.9, 2], [2e-3, -1e-3, 1]], dtype=torch.float64)
    points = 30 * torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = local_scale(H, points) * local_scale(torch.linalg.inv(H), warp_points(points, H))
    torch.testing.assert_close(product, torch.ones(20, dtype=torch.float64))


def test_the_covariance_loss_in_closed_form():
    true = torch.tensor([2.0, 0.5, 4.0, 1.0], dtype=torch.float64)
    octaves0 = torch.tensor([0.3, 0.1, -1.0, 5.0], dtype=torch.float64)
    exact = octaves0 + true.log2()
    assert covariance_loss(octaves0, exact, true, transition_octaves=0.5).item() == 0.0
    assert covariance_loss(octaves0 + 9, exact + 9, true, transition_octaves=0.5).item() == pytest.approx(0.0)
    off = exact + torch.tensor([0.25, -0.25, 2.0, 0.0], dtype=torch.float64)
    # squares 0.25^2 / (2 * 0.5) twice, linear 2 - 0.25 once
    assert covariance_loss(octaves0, off, true, transition_octaves=0.5).item() == pytest.approx(
        (2 * 0.0625 + 1.75) / 4
    )
    leaves = [octaves0.clone().requires_grad_(), off.clone().requires_grad_()]
    torch.autograd.gradcheck(lambda a, b: covariance_loss(a, b, true, transition_octaves=0.5), leaves)


def test_the_weight_of_the_coarse_member_rises_by_one_per_octave_at_its_centre():
    octaves = torch.tensor([-30.0, 0.0, 30.0, 1e-3])
    weight = coarse_weight(octaves)
    torch.testing.assert_close(weight[:3], torch.tensor([0.0, 0.5, 1.0]))
    assert (weight[3] - weight[1]).item() / 1e-3 == pytest.approx(1.0, rel=1e-3)
