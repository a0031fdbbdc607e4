"""Modulated deformable convolution (Zhu et al., Deformable ConvNets v2, CVPR 2019, eq. 1) with gradients.

Output position p of a kernel with taps k is `sum_k weight_k * mask_k(p) * input(p * stride - padding + k *
dilation + offset_k(p))`. The input between pixels is bilinear and zero outside the map, as in
`torchvision.ops.deform_conv2d`: a position within one pixel outside the border still gets part of the border
pixel, one further out gets nothing.

Here are two versions in plain PyTorch: the reference, written to be read, and the portable one, which sums
the four pixels of a tap by `embedding_bag` and runs where there is no extension.
`matchlib.ops.deform_conv_native` is the same function as a registered operator with kernels in C++ and CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from matchlib.errors import BuildError, ShapeError, check_shape

Backend = Literal["auto", "reference", "portable", "native"]
Convolve = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, int, int, int], Tensor]


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    backend: Backend = "auto",
) -> Tensor:
    """Convolve `input` with taps that are moved by `offset` and weighted by `mask`.

    input:  (B, C, H, W) floating point; B may be 0.
    offset: (B, 2 * kh * kw, Ho, Wo), pixels of the input, (dy, dx) for each tap, taps row by row.
    mask:   (B, kh * kw, Ho, Wo), one factor for each tap (no sigmoid is applied here).
    weight: (O, C, kh, kw); bias: (O,) or None.
    Returns (B, O, Ho, Wo) with Ho = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1, in the dtype
    of `input`. Half precision and mixed dtypes are computed in float32: offsets of a third of a pixel do not
    survive bfloat16. Differentiable (once) in all five tensors; at whole-pixel positions, where bilinear
    interpolation has a kink, the gradient of the offset is the one towards the next pixel. A NaN offset gives
    NaN.
    backend: "auto" takes the extension where it has a kernel for these tensors, else "portable"; "native"
             insists and raises BuildError with the reason; "portable" and "reference" are plain PyTorch.
    Raises ShapeError for shapes, devices or integers that do not fit.
    """
    _check(input, offset, mask, weight, bias, stride=stride, padding=padding, dilation=dilation)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    given, offset, mask, weight = input.to(dtype), offset.to(dtype), mask.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    convolve = _choose(backend, input.device)
    with torch.autocast(input.device.type, enabled=False):
        return convolve(given, offset, mask, weight, bias, stride, padding, dilation).to(input.dtype)


def modulated_deform_conv2d_reference(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """Sample every tap of every output position, then one matrix product. All tensors of one dtype."""
    y, x = _positions(offset, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    index, factor, _ = _corners(y, x, input.shape[2], input.shape[3])
    columns = input.new_zeros(())
    for corner in range(4):
        flat = index[..., corner].flatten(1)[:, None].expand(-1, input.shape[1], -1)
        pixels = input.flatten(2).gather(2, flat).view(*input.shape[:2], *y.shape[1:])  # (B, C, K, Ho, Wo)
        columns = columns + pixels * factor[:, None, ..., corner]
    output = torch.einsum("bckhw,ock->bohw", columns * mask[:, None], weight.flatten(2))
    return output if bias is None else output + bias[:, None, None]


def modulated_deform_conv2d_portable(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """As the reference, several times faster: pixels are rows of a table, a tap sums four weighted rows."""
    y, x = _positions(offset, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    batch, channels, height, width = input.shape
    index, factor, _ = _corners(y, x, height, width)
    index = index + (torch.arange(batch, device=input.device) * (height * width)).view(-1, 1, 1, 1, 1)
    columns = F.embedding_bag(
        _corner_rows(index),
        input.permute(0, 2, 3, 1).reshape(-1, channels),
        per_sample_weights=_corner_rows(factor * mask[..., None]),
        mode="sum",
    )
    rows = columns.view(batch, y.shape[2], y.shape[3], y.shape[1] * channels)
    return F.linear(rows, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def portable_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `modulated_deform_conv2d_portable` in input, offset, mask and weight.

    Written out, because the kernel of an operator runs below autograd, which records nothing there.
    """
    (batch, channels, height, width), (outputs, _, *kernel) = input.shape, weight.shape
    y, x = _positions(offset, (kernel[0], kernel[1]), stride, padding, dilation)
    index, factor, missing = _corners(y, x, height, width)
    index = index + (torch.arange(batch, device=input.device) * (height * width)).view(-1, 1, 1, 1, 1)
    index_R4, factor_R4 = _corner_rows(index), _corner_rows(factor)
    slope_y_R4, slope_x_R4 = (_corner_rows(slope) for slope in _corner_slopes(y, x, missing))
    scaled_R4 = _corner_rows(factor * mask[..., None])
    pixels_PC = input.permute(0, 2, 3, 1).reshape(-1, channels)
    grad_rows = grad_output.permute(0, 2, 3, 1).reshape(-1, outputs)
    grad_columns_RC = (grad_rows @ weight.permute(0, 2, 3, 1).flatten(1)).view(-1, channels)
    columns_RC = F.embedding_bag(index_R4, pixels_PC, per_sample_weights=scaled_R4, mode="sum")
    grad_taps = grad_rows.T @ columns_RC.view(len(grad_rows), -1)
    grad_pixels_PC = torch.zeros_like(pixels_PC)
    dots = []
    for corner in range(4):
        at = index_R4[:, corner]
        dots.append((pixels_PC[at] * grad_columns_RC).sum(1))
        grad_pixels_PC.index_add_(0, at, scaled_R4[:, corner, None] * grad_columns_RC)
    dots_R4 = torch.stack(dots, dim=1)

    def per_tap(corners_R4: Tensor) -> Tensor:
        total = (corners_R4 * dots_R4).sum(1)
        return total.view(batch, *offset.shape[2:], -1).permute(0, 3, 1, 2)

    grad_offset = torch.stack([per_tap(slope_y_R4) * mask, per_tap(slope_x_R4) * mask], dim=2)
    return (
        grad_pixels_PC.view(batch, height, width, channels).permute(0, 3, 1, 2),
        grad_offset.flatten(1, 2),
        per_tap(factor_R4),
        grad_taps.view(outputs, *kernel, channels).permute(0, 3, 1, 2),
    )


def _corner_rows(corners: Tensor) -> Tensor:
    """(B, K, Ho, Wo, 4) as one row per image, position and tap: (B Ho Wo K, 4)."""
    return corners.permute(0, 2, 3, 1, 4).reshape(-1, 4)


def _corner_slopes(y: Tensor, x: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives in y and x of the bilinear weights of `_corners`, both (..., 4); 0 where the pixel is missing."""
    down, right = (y - y.floor())[..., None], (x - x.floor())[..., None]
    along_y = torch.cat([right - 1, -right, 1 - right, right], dim=-1)
    along_x = torch.cat([down - 1, 1 - down, -down, down], dim=-1)
    return along_y.masked_fill(missing, 0), along_x.masked_fill(missing, 0)


def _positions(
    offset: Tensor, kernel: tuple[int, int], stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Row and column in the input, (B, K, Ho, Wo) each, of every tap of every output position."""
    height, width = offset.shape[2:]

    def start(count: int, step: int, first: int = 0) -> Tensor:
        return torch.arange(count, device=offset.device, dtype=offset.dtype) * step + first

    tap_y = start(kernel[0], dilation).repeat_interleave(kernel[1])
    tap_x = start(kernel[1], dilation).repeat(kernel[0])
    y = tap_y[:, None, None] + start(height, stride, -padding)[:, None] + offset[:, 0::2]
    x = tap_x[:, None, None] + start(width, stride, -padding) + offset[:, 1::2]
    return y, x


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The four pixels around each position, their bilinear weights, and which are missing, all (..., 4).

    Pixels are numbered row by row. One outside the map is missing: it has weight 0 and the number of some pixel
    inside.
    """
    outside = (y <= -1) | (y >= height) | (x <= -1) | (x >= width)
    y, x = (
        y.masked_fill(outside, -1),
        x.masked_fill(outside, -1),
    )  # also keeps huge values from the integers below
    y0, x0 = y.detach().floor(), x.detach().floor()
    down, right = y - y0, x - x0
    factor = torch.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], dim=-1
    )
    row = torch.stack([y0, y0, y0 + 1, y0 + 1], dim=-1)
    column = torch.stack([x0, x0 + 1, x0, x0 + 1], dim=-1)
    missing = (row < 0) | (row >= height) | (column < 0) | (column >= width) | outside[..., None]
    index = row.nan_to_num().clamp(0, height - 1) * width + column.nan_to_num().clamp(0, width - 1)
    return index.long(), factor.masked_fill(missing, 0), missing


def _choose(backend: Backend, device: torch.device) -> Convolve:
    if backend == "reference":
        return modulated_deform_conv2d_reference
    if backend not in ("auto", "native", "portable"):
        raise ShapeError(f"backend: expected 'auto', 'reference', 'portable' or 'native', got {backend!r}")
    from matchlib.ops import deform_conv_native, extension  # these import this module

    info = extension.load_extension() if backend != "portable" else None
    if info is not None and info.serves(device.type):
        return deform_conv_native.modulated_deform_conv2d_op
    if info is not None and backend == "native":
        raise BuildError(
            f"modulated_deform_conv2d: no native kernel for {device.type} tensors: {info.reason}"
        )
    return modulated_deform_conv2d_portable


def _check(
    input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, **integers: int
) -> None:
    for name, value in integers.items():
        if value < (0 if name == "padding" else 1):
            raise ShapeError(f"{name}: expected at least {0 if name == 'padding' else 1}, got {value}")
    size = check_shape("input", input, "B C H W")
    kernel = check_shape("weight", weight, f"O {size['C']} h w")
    height, width = output_size(input, weight, **integers)
    taps = kernel["h"] * kernel["w"]
    if height < 1 or width < 1 or taps < 1:
        raise ShapeError(
            f"input: a map of {size['H']}x{size['W']} is too small for this kernel; enlarge it or padding"
        )
    check_shape("offset", offset, f"{size['B']} {2 * taps} {height} {width}")
    check_shape("mask", mask, f"{size['B']} {taps} {height} {width}")
    if bias is not None:
        check_shape("bias", bias, str(kernel["O"]))
    for name, tensor in {
        "input": input,
        "offset": offset,
        "mask": mask,
        "weight": weight,
        "bias": bias,
    }.items():
        if tensor is not None and (tensor.device != input.device or not tensor.is_floating_point()):
            raise ShapeError(
                f"{name}: expected floating point on {input.device}, got {tensor.dtype} on {tensor.device}"
            )


def output_size(
    input: Tensor, weight: Tensor, *, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """Rows and columns of the output map."""
    height, width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel in zip(input.shape[2:], weight.shape[2:], strict=True)
    )
    return height, width
