from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.geometry.sampling import (
    inside,
    legacy_resize,
    pixel_grid,
    sample_bilinear,
    sample_depth,
)


def test_integer_positions_give_the_pixels_themselves():
    values = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    torch.testing.assert_close(sample_bilinear(values, pixel_grid(3, 4)), values.flatten(1), rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_sampling_agrees_with_grid_sample_everywhere_even_outside(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    points = torch.rand(2, 11, 2, generator=generator, dtype=torch.float64) * 12 - 1.5
    size = torch.tensor([width, height])
    grid = torch.where(size > 1, 2 * points / (size - 1).clamp_min(1) - 1, 0.0)
    expected = F.grid_sample(values, grid[:, :, None], align_corners=True, padding_mode="border")[..., 0]
    torch.testing.assert_close(sample_bilinear(values, points), expected, rtol=0, atol=1e-12)


def test_a_neighbour_of_weight_zero_does_not_enter():
    values = torch.tensor([[[1.0, float("nan")], [3.0, float("nan")]]])
    assert sample_bilinear(values, torch.tensor([[0.0, 0.5]])).item() == 2


def test_leading_dimensions_must_agree():
    with pytest.raises(ShapeError, match="expected"):
        sample_bilinear(torch.zeros(2, 1, 4, 4), torch.zeros(3, 5, 2))


def test_nan_positions_do_not_spread():
    nan = torch.tensor([[float("nan"), 1.0]])
    assert torch.isfinite(sample_bilinear(torch.ones(1, 3, 3), nan)).all()
    assert not inside(nan, 3, 3).item()


def test_depth_is_known_only_where_all_neighbours_are():
    depth = torch.tensor([[1.0, 2, 0], [3, 4, 5], [6, 7, 8]])
    points = torch.tensor(
        [[0.5, 0.5], [1.5, 0.5], [1.0, 0.5], [2.0, 0.0], [1.5, 1.5], [-0.1, 0], [2, 2.1], [2, 2]]
    )
    values, known = sample_depth(depth, points)
    assert known.tolist() == [True, False, True, False, True, False, False, True]
    assert values.tolist() == [2.5, 0, 3.0, 0, 6.0, 0, 0, 8.0]


def test_legacy_resize_gives_tensorflows_numbers():
    row = legacy_resize(torch.tensor([[[0.0, 1, 2, 3]]]), (1, 16))[0, 0].tolist()
    assert row == [k / 4 for k in range(12)] + [3, 3, 3, 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(1, 20))
def test_legacy_resize_reads_position_p_times_in_over_out(height, width, out_height, out_width):
    values = torch.rand(1, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    grid = pixel_grid(out_height, out_width).double() * torch.tensor([width / out_width, height / out_height])
    expected = sample_bilinear(values.double(), grid).reshape(1, out_height, out_width)
    torch.testing.assert_close(
        legacy_resize(values, (out_height, out_width)).double(), expected, rtol=0, atol=1e-5
    )


def test_gradients_are_exact():
    values = torch.rand(
        2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    points = torch.tensor([[0.3, 1.7], [2.2, 2.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample_bilinear, (values, points))
    assert torch.autograd.gradcheck(lambda v: legacy_resize(v, (7, 3)), (values,))
    depth = (values[0].detach() + 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda d, p: sample_depth(d, p)[0], (depth, points))
