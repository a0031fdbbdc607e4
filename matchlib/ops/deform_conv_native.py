"""Modulated deformable convolution as the operator `matchlib::modulated_deform_conv2d`.

Sampling to columns and back are kernels of the extension (`csrc/deform_conv.cpp`, `.cu`); the products are
the library's. Output positions are handled in blocks, so that columns, nine times the input, are never stored
as a whole: the backward pass samples again.

Where the extension has no kernel for a tensor's device, the operator computes the portable version: a graph
exported on one machine runs on another.

CPU results do not depend on the number of threads up to the library's products. On CUDA the gradient of the
input is summed by atomics, in an order that differs between runs; under
`torch.use_deterministic_algorithms(True)` the operator therefore computes the portable version there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from matchlib.ops.deform_conv import modulated_deform_conv2d_portable, portable_backward
from matchlib.ops.extension import load_extension
from matchlib.ops.matmul import matmul_nt

_SCHEMA = (
    "(Tensor input, Tensor offset, Tensor mask, Tensor weight, Tensor? bias, int stride, int padding, "
    "int dilation) -> Tensor"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, Tensor weight, int stride, int padding, "
    "int dilation) -> (Tensor, Tensor, Tensor, Tensor)"
)
# Bytes of the columns of one block. CPU: two such buffers stay in the last cache; smaller was no faster.
_COLUMNS_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


def _native(tensor: Tensor) -> bool:
    if tensor.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return False
    return load_extension().serves(tensor.device.type)


def _forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    if not _native(input):
        output = modulated_deform_conv2d_portable(
            input, offset, mask, weight, bias, stride, padding, dilation
        )
        return _channels_last(output)
    pixels_BHWC = input.permute(0, 2, 3, 1).contiguous()
    taps_OK = weight.permute(0, 2, 3, 1).flatten(1)
    offset, mask = offset.contiguous(), mask.contiguous()
    output_BHWO = input.new_empty(len(input), *mask.shape[2:], len(weight))
    columns = _columns_buffer(input, weight, mask)
    problem = (*weight.shape[2:], stride, padding, dilation)
    for image, block in _blocks(mask, len(columns)):
        part = columns[: block.stop - block.start]
        torch.ops.matchlib_native.deform_im2col(
            pixels_BHWC[image], offset[image], mask[image], *problem, block.start, _stream(input), part
        )
        output_BHWO[image].flatten(0, 1)[block] = matmul_nt(part, taps_OK)
    if bias is not None:
        output_BHWO += bias
    return output_BHWO.permute(0, 3, 1, 2)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, offset, mask and weight."""
    if not _native(input):
        return _portable_backward(grad_output, input, offset, mask, weight, stride, padding, dilation)
    pixels_BHWC = input.permute(0, 2, 3, 1).contiguous()
    grad_BHWO = grad_output.permute(0, 2, 3, 1).contiguous()
    taps_KO = weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    offset, mask = offset.contiguous(), mask.contiguous()
    grad_pixels, grad_taps_OK = torch.zeros_like(pixels_BHWC), weight.new_zeros(taps_KO.shape[::-1])
    grad_offset, grad_mask = torch.empty_like(offset), torch.empty_like(mask)
    columns = _columns_buffer(input, weight, mask)
    problem = (*weight.shape[2:], stride, padding, dilation)
    for image, block in _blocks(mask, len(columns)):
        part = columns[: block.stop - block.start]
        grad_rows = grad_BHWO[image].flatten(0, 1)[block]
        torch.ops.matchlib_native.deform_col2im(
            matmul_nt(grad_rows, taps_KO),
            *(pixels_BHWC[image], offset[image], mask[image]),
            *(*problem, block.start, _stream(input)),
            *(part, grad_pixels[image], grad_offset[image], grad_mask[image]),
        )
        grad_taps_OK += matmul_nt(grad_rows.T, part.T)
    grad_weight = grad_taps_OK.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
    return grad_pixels.permute(0, 3, 1, 2), grad_offset, grad_mask, grad_weight


def _portable_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_input, grad_offset, grad_mask, grad_weight = portable_backward(
        grad_output, input, offset, mask, weight, stride, padding, dilation
    )
    return (
        _channels_last(grad_input),
        grad_offset.contiguous(),
        grad_mask.contiguous(),
        _channels_last(grad_weight),
    )


def _channels_last(tensor: Tensor) -> Tensor:
    """The layout that all results of the operator have, whoever computes them."""
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _blocks(mask: Tensor, rows: int) -> Iterator[tuple[int, slice]]:
    """Image by image, ranges of at most `rows` output positions."""
    count = mask.shape[2] * mask.shape[3]
    for image in range(len(mask)):
        for start in range(0, count, rows):
            yield image, slice(start, min(start + rows, count))


def _columns_buffer(input: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    width = weight[0].numel()
    rows = _COLUMNS_BYTES[input.device.type] // (width * input.element_size())
    return input.new_empty(max(1, min(rows, mask.shape[2] * mask.shape[3])), width)


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.device.type == "cuda" else 0


# ---------------------------------------------------------------- registration
modulated_deform_conv2d_op = torch.library.custom_op(
    "matchlib::modulated_deform_conv2d", _forward, mutates_args=(), schema=_SCHEMA
)
modulated_deform_conv2d_backward_op = torch.library.custom_op(
    "matchlib::modulated_deform_conv2d_backward", _backward, mutates_args=(), schema=_BACKWARD_SCHEMA
)


@modulated_deform_conv2d_op.register_fake
def _fake_forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    return input.new_empty(len(input), *mask.shape[2:], len(weight)).permute(0, 3, 1, 2)


@modulated_deform_conv2d_backward_op.register_fake
def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        _empty_channels_last(input),
        offset.new_empty(offset.shape),
        mask.new_empty(mask.shape),
        _empty_channels_last(weight),
    )


def _empty_channels_last(like: Tensor) -> Tensor:
    first, channels, height, width = like.shape
    return like.new_empty(first, height, width, channels).permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Tensor | int | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.has_bias, ctx.integers = inputs[4] is not None, inputs[5:]


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    gradients = modulated_deform_conv2d_backward_op(grad_output, *ctx.saved_tensors, *ctx.integers)
    grad_bias = grad_output.sum((0, 2, 3)) if ctx.has_bias else None
    return *gradients, grad_bias, None, None, None


modulated_deform_conv2d_op.register_autograd(_differentiate, setup_context=_setup_context)
