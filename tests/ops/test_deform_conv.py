"""The deformable convolution: closed forms, gradients in float64, and both back ends against each other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matchlib.errors import BuildError, ShapeError
from matchlib.ops import deform_conv, deform_conv_native
from matchlib.ops.deform_conv import modulated_deform_conv2d, modulated_deform_conv2d_reference
from matchlib.ops.extension import ExtensionInfo

BACKENDS = ["reference", "portable", "native"]


@pytest.fixture
def convolve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The public function with one back end; indirect parameter."""
    if request.param == "native":
        request.getfixturevalue("use_native")
    return functools.partial(modulated_deform_conv2d, backend=request.param)


@pytest.fixture
def use_native(native_extension: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ExtensionInfo("native", "", frozenset({"cpu"}))
    monkeypatch.setattr("matchlib.ops.extension.load_extension", lambda: info)
    monkeypatch.setattr(deform_conv_native, "load_extension", lambda: info)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without compiler, whatever extension lies in the working directory."""
    info = ExtensionInfo("reference", "switched off by the test")
    monkeypatch.setattr("matchlib.ops.extension.load_extension", lambda: info)
    monkeypatch.setattr(deform_conv_native, "load_extension", lambda: info)


def problem(
    *,
    batch: int = 2,
    channels: int = 3,
    size: tuple[int, int] = (6, 5),
    outputs: int = 4,
    kernel: tuple[int, int] = (3, 3),
    reach: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **integers: int,
) -> list[Tensor]:
    """Random input, offset, mask, weight, bias; offsets are normal with standard deviation `reach` pixels."""
    generator = torch.Generator().manual_seed(seed)
    random = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    stride, padding, dilation = (integers.get(name, 1) for name in ("stride", "padding", "dilation"))
    height, width = (
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True)
    )
    taps = kernel[0] * kernel[1]
    tensors = [
        random(batch, channels, *size),
        reach * random(batch, 2 * taps, height, width),
        random(batch, taps, height, width),
        random(outputs, channels, *kernel),
        random(outputs),
    ]
    return [tensor.to(dtype) for tensor in tensors]


@pytest.mark.parametrize("convolve", BACKENDS, indirect=True)
@pytest.mark.parametrize("integers", [{}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": 0}])
def test_without_offsets_it_is_a_convolution(
    convolve: Callable[..., Tensor], integers: dict[str, int]
) -> None:
    input, offset, mask, weight, bias = problem(size=(9, 7), **integers)
    output = convolve(input, torch.zeros_like(offset), torch.ones_like(mask), weight, bias, **integers)
    expected = F.conv2d(input, weight, bias, **{"padding": 1, **integers})
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("convolve", BACKENDS, indirect=True)
def test_equal_offsets_shift_the_map_in_the_order_dy_dx(convolve: Callable[..., Tensor]) -> None:
    input, offset, mask, weight, _ = problem(size=(8, 8))
    offset[:, 0::2], offset[:, 1::2] = 2, -1
    output = convolve(input, offset, torch.full_like(mask, 0.5), weight)
    shifted = F.pad(input, (1, 0, 0, 2))[:, :, 2:, :8]  # shifted[y, x] = input[y + 2, x - 1]
    # Taps left of the map see shifted pixels, not padding: compare where no tap leaves the shifted map.
    torch.testing.assert_close(output[:, :, 1:-1, 1:-1], 0.5 * F.conv2d(shifted, weight), rtol=0, atol=1e-12)


@pytest.mark.parametrize("convolve", BACKENDS, indirect=True)
def test_a_linear_ramp_is_sampled_exactly_between_pixels(convolve: Callable[..., Tensor]) -> None:
    y, x = torch.meshgrid(*(torch.arange(9, dtype=torch.float64),) * 2, indexing="ij")
    ramp = (3 * y - 2 * x + 5)[None, None]
    _, offset, mask, _, _ = problem(batch=1, channels=1, size=(9, 9), reach=0.3)
    offset = offset.clamp(-0.9, 0.9)
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 1, 1] = 1
    output = convolve(ramp, offset, mask, weight)
    expected = mask[:, 4] * (ramp[0] + 3 * offset[:, 8] - 2 * offset[:, 9])
    torch.testing.assert_close(output[0, :, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("convolve", BACKENDS, indirect=True)
@pytest.mark.parametrize(
    ("offset_y", "factor"), [(-0.25, 0.75), (-0.75, 0.25), (-1.0, 0.0), (-7.0, 0.0), (1e30, 0.0)]
)
def test_the_map_fades_to_zero_within_one_pixel(
    convolve: Callable[..., Tensor], offset_y: float, factor: float
) -> None:
    offset = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    offset[0, 0] = offset_y
    ones = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert convolve(8 * ones, offset, ones, ones, padding=0).item() == pytest.approx(8 * factor, abs=1e-15)


CASES = {
    "plain": {},
    "far outside": {"reach": 8.0},
    "stride 2, odd size": {"stride": 2, "size": (7, 5), "reach": 2.0},
    "dilation 2": {"dilation": 2, "padding": 2},
    "no padding": {"padding": 0},
    "kernel 1x2": {"kernel": (1, 2), "padding": 0},
    "one pixel": {"size": (1, 1), "reach": 0.4},
}


@pytest.mark.parametrize("convolve", BACKENDS, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_all_five_tensors(convolve: Callable[..., Tensor], case: str) -> None:
    integers = {name: n for name, n in CASES[case].items() if name in ("stride", "padding", "dilation")}
    tensors = problem(**{"channels": 2, "outputs": 2, "size": (4, 3), **CASES[case]})
    # Finite differences need every position away from the kinks at whole pixels.
    part = tensors[1] - tensors[1].floor()
    tensors[1] = tensors[1].floor() + part.clamp(0.05, 0.95)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(functools.partial(convolve, **integers), tensors, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_back_ends_agree(use_native: None, case: str, dtype: torch.dtype) -> None:
    integers = {name: n for name, n in CASES[case].items() if name in ("stride", "padding", "dilation")}
    compare(problem(**{"channels": 37, "size": (12, 11), **CASES[case]}, dtype=dtype), integers)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 5),
    height=st.integers(3, 12),
    width=st.integers(3, 12),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    reach=st.sampled_from([0.0, 0.5, 5.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_all_back_ends_agree_on_any_problem(native_extension: Path, **size: int) -> None:
    info = ExtensionInfo("native", "", frozenset({"cpu"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matchlib.ops.extension.load_extension", lambda: info)
        patch.setattr(deform_conv_native, "load_extension", lambda: info)
        integers = {name: size[name] for name in ("stride", "padding")}
        height, width = size.pop("height"), size.pop("width")
        compare(problem(size=(height, width), **size), integers)


def compare(tensors: list[Tensor], integers: dict[str, int]) -> None:
    """Output and gradients of all back ends; also at offset zero, where all must take one side of the kink."""
    tensors = [tensor.requires_grad_() for tensor in tensors]
    dtype = tensors[0].dtype
    tolerance = 3e-5 if dtype == torch.float32 else 1e-11
    results = []
    for backend in ("native", "portable", "reference"):
        output = modulated_deform_conv2d(*tensors, **integers, backend=backend)
        grad_output = torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)
        results.append([output.detach(), *torch.autograd.grad(output, tensors, grad_output)])
    for native, portable, reference in zip(*results, strict=True):
        scale = float(reference.abs().max()) if reference.numel() else 1.0
        for fast in (native, portable):
            torch.testing.assert_close(fast, reference, rtol=0, atol=tolerance * max(1.0, scale))


def test_many_blocks_give_what_one_block_gives(use_native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deform_conv_native._COLUMNS_BYTES, "cpu", 7 * 3 * 9 * 8)  # seven positions at a time
    compare(problem(size=(9, 8), reach=3.0), {})


def test_results_do_not_depend_on_the_number_of_threads(use_native: None) -> None:
    """The kernels alone: the order in which a library adds up its products is its own affair."""
    tensors = problem(channels=40, size=(15, 14), reach=4.0, dtype=torch.float32)
    pixels = tensors[0][0].permute(1, 2, 0).contiguous()
    grad_columns = torch.randn(210, 360, generator=torch.Generator().manual_seed(1))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out = [
                torch.zeros(210, 360),
                torch.zeros_like(pixels),
                torch.zeros(18, 15, 14),
                torch.zeros(9, 15, 14),
            ]
            torch.ops.matchlib_native.deform_col2im(
                grad_columns, pixels, tensors[1][0], tensors[2][0], 3, 3, 1, 1, 1, 0, 0, *out
            )
            found.append(out)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("integers", [{}, {"stride": 2}, {"dilation": 2, "padding": 2}])
def test_without_the_extension_the_operator_has_the_gradients_of_the_reference(
    without_native: None, integers: dict[str, int]
) -> None:
    arguments = tuple(integers.get(name, 1) for name in ("stride", "padding", "dilation"))
    tensors = [tensor.requires_grad_() for tensor in problem(reach=3.0, **integers)]
    outputs = [
        modulated_deform_conv2d_reference(*tensors, *arguments),
        deform_conv_native.modulated_deform_conv2d_op(*tensors, *arguments),
    ]
    torch.testing.assert_close(*outputs)
    ahead = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, found = (torch.autograd.grad(output, tensors, ahead) for output in outputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_operator_keeps_torch_library_rules(
    request: pytest.FixtureRequest, native: bool, with_bias: bool
) -> None:
    request.getfixturevalue("use_native" if native else "without_native")
    *tensors, bias = (tensor.requires_grad_() for tensor in problem(reach=2.0))
    arguments = (*tensors, bias if with_bias else None, 1, 1, 1)
    torch.library.opcheck(deform_conv_native.modulated_deform_conv2d_op, arguments)
    detached = [tensor.detach() for tensor in tensors]
    grad_output = torch.ones_like(modulated_deform_conv2d_reference(*detached, None, 1, 1, 1))
    torch.library.opcheck(
        deform_conv_native.modulated_deform_conv2d_backward_op,
        (grad_output, *detached, 1, 1, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("convolve", BACKENDS, indirect=True)
def test_half_precision_is_computed_in_float32(convolve: Callable[..., Tensor]) -> None:
    tensors = problem(reach=2.0, dtype=torch.float32)
    low = tensors[0].bfloat16()
    output = convolve(low, *tensors[1:])
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, convolve(low.float(), *tensors[1:]).bfloat16())


@pytest.mark.parametrize("convolve", BACKENDS, indirect=True)
def test_a_nan_offset_is_not_hidden(convolve: Callable[..., Tensor]) -> None:
    input, offset, *rest = problem()
    offset[0, 3, 2, 2] = torch.nan
    output = convolve(input, offset, *rest)
    assert output[0, :, 2, 2].isnan().all() and not output[1].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": torch.zeros(2, 9, 6, 5)}, r"offset: expected shape \(2, 18, 6, 5\), got \(2, 9, 6, 5\)"),
        ({"mask": torch.zeros(2, 9, 5, 5)}, "mask: expected shape"),
        ({"weight": torch.zeros(4, 2, 3, 3)}, r"weight: expected shape \(O, 3, h, w\)"),
        ({"bias": torch.zeros(3)}, r"bias: expected shape \(4\)"),
        ({"stride": 0}, "stride: expected at least 1, got 0"),
        ({"padding": -1}, "padding: expected at least 0, got -1"),
        ({"dilation": 9}, "too small for this kernel"),
        ({"backend": "cuda"}, "backend: expected"),
        ({"input": torch.zeros(2, 3, 6, 5, dtype=torch.int64)}, "input: expected floating point"),
    ],
)
def test_misfits_are_named(change: dict[str, object], message: str) -> None:
    names = ("input", "offset", "mask", "weight", "bias")
    arguments = dict(zip(names, problem(), strict=True)) | change
    with pytest.raises(ShapeError, match=message):
        modulated_deform_conv2d(**arguments)


def test_asking_for_a_missing_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ExtensionInfo("reference", "none was built")
    monkeypatch.setattr("matchlib.ops.extension.load_extension", lambda: missing)
    with pytest.raises(BuildError, match="no native kernel for cpu tensors: none was built"):
        modulated_deform_conv2d(*problem(), backend="native")
    assert modulated_deform_conv2d(*problem(), backend="auto").shape == (2, 4, 6, 5)


def test_output_size_follows_the_formula_of_conv2d() -> None:
    input, weight = torch.zeros(1, 1, 11, 8), torch.zeros(1, 1, 3, 2)
    found = deform_conv.output_size(input, weight, stride=2, padding=1, dilation=2)
    assert found == F.conv2d(input, weight, stride=2, padding=1, dilation=2).shape[2:]
