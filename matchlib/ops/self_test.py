"""Compare a freshly built extension with the reference; run by `build_extension` in a process of its own.

`python -m matchlib.ops.self_test LIBRARY` prints `{"devices": [...], "reason": "..."}`: the devices whose
kernels ran and agree. It ends with a traceback, and status 1, if one disagrees.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import torch

from matchlib.errors import BuildError
from matchlib.ops import deform_conv_native, mining_native, nearest, sampled_similarity_native
from matchlib.ops.deform_conv import modulated_deform_conv2d_reference
from matchlib.ops.extension import ExtensionInfo, load_library
from matchlib.ops.mining import Backend, hardest_negatives
from matchlib.ops.sampled_similarity_reference import sampled_similarity_reference

_BACKENDS: tuple[Backend, Backend] = ("auto", "reference")


def run(library: Path) -> dict[str, object]:
    """Load and try out `library`. Raises BuildError where a kernel and the reference differ."""
    try:
        load_library(library)
    except OSError as error:
        return {"devices": [], "reason": f"built, but it does not load: {error}"}
    devices = ["cpu"]
    if torch.cuda.is_available() and torch._C._dispatch_has_kernel_for_dispatch_key(
        "matchlib_native::deform_im2col", "CUDA"
    ):
        devices.append("cuda")
    loaded = ExtensionInfo("native", "", frozenset(devices))
    with mock.patch.object(deform_conv_native, "load_extension", lambda: loaded):
        for device in devices:
            for dtype in (torch.float32, torch.float64):
                _check_deform_conv(torch.device(device), dtype)
    _check_nearest(loaded)
    with mock.patch.object(mining_native, "load_extension", lambda: loaded):
        for device in devices:
            for memory_format in (torch.contiguous_format, torch.channels_last):
                _check_mining(torch.device(device), memory_format)
    for device in devices:
        for dtype in (torch.float32, torch.float64):
            for zeros in (False, True):
                _check_sampled_similarity(torch.device(device), dtype, zeros)
    return {"devices": devices, "reason": ""}


def _check_deform_conv(device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # 20 channels: neither a multiple of a vector nor of a warp; offsets reach outside the map.
    arguments = [
        random(2, 20, 7, 9),
        4 * random(2, 18, 4, 5),
        random(2, 9, 4, 5),
        random(6, 20, 3, 3),
        random(6),
    ]
    tensors = [t.to(device, dtype).requires_grad_() for t in arguments]
    input, offset, mask, weight, bias = tensors
    grad_output = random(2, 6, 4, 5).to(device, dtype)
    results = []
    for function in (deform_conv_native.modulated_deform_conv2d_op, modulated_deform_conv2d_reference):
        output = function(input, offset, mask, weight, bias, 2, 1, 1)
        results.append([output.detach(), *torch.autograd.grad(output, tensors, grad_output)])
    names = ("output", "grad_input", "grad_offset", "grad_mask", "grad_weight", "grad_bias")
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for name, native, reference in zip(names, *results, strict=True):
        error = (native - reference).abs().max() / reference.abs().max()
        if not error < tolerance:
            raise BuildError(
                f"deform_conv on {device} in {dtype}: {name} differs from the reference by {error:.1e}"
            )


def _check_nearest(loaded: ExtensionInfo) -> None:
    generator = torch.Generator().manual_seed(0)
    # Small whole numbers: every product is exact, and ties are frequent.
    sets = [torch.randint(-2, 3, (n, 4), generator=generator).float() for n in (70, 1100)]
    found = []
    for info in (loaded, ExtensionInfo("reference", "")):
        with mock.patch.object(nearest, "load_extension", lambda info=info: info):
            pairs = nearest.mutual_nearest(*sets, block=600)
            found.append(
                [*pairs, *nearest.mutual_nearest_with_second(*sets, both_directions=True, block=600)]
            )
    if not all(torch.equal(native, reference) for native, reference in zip(*found, strict=True)):
        raise BuildError("nearest: the native kernel finds other pairs or seconds than the reference")


def _check_mining(device: torch.device, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    # 1,850 cells in several tiles; all cells of the second image tie.
    maps = torch.randn(2, 21, 37, 50, generator=generator)
    maps[1] = maps[1, :, :1, :1]
    queries = torch.randn(2, 200, 21, generator=generator)
    centres = 50 * torch.rand(2, 200, 2, generator=generator)
    valid = torch.rand(2, 37, 50, generator=generator) > 0.1
    found = [
        hardest_negatives(
            *(queries.to(device), maps.to(device, memory_format=memory_format), centres.to(device), 5.0),
            k=2,
            valid=valid.to(device),
            backend=backend,
        )
        for backend in _BACKENDS
    ]
    if not torch.equal(found[0].index, found[1].index):
        raise BuildError(f"mining on {device}: the native kernel finds other cells than the reference")
    if not torch.equal(found[0].similarity, found[1].similarity):
        raise BuildError(f"mining on {device}: the native kernel finds other similarities than the reference")


def _check_sampled_similarity(device: torch.device, dtype: torch.dtype, zeros: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    # 37 positions in and around a map of 11 x 13 cells; 70 numbers: no multiple of a vector or a warp.
    queries, maps = random(2, 50, 70).requires_grad_(), random(2, 11, 13, 70).requires_grad_()
    positions, grad = 6 + 5 * random(2, 50, 37, 2), random(2, 50, 37)
    results = []
    for function in (sampled_similarity_native.sampled_similarity_op, sampled_similarity_reference):
        output = function(queries, maps, positions, zeros)
        results.append([output.detach(), *torch.autograd.grad(output, [queries, maps], grad)])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for name, native, reference in zip(("output", "grad_queries", "grad_maps"), *results, strict=True):
        error = (native - reference).abs().max() / reference.abs().max()
        if not error < tolerance:
            raise BuildError(
                f"sampled_similarity on {device} in {dtype}: {name} differs from the reference by {error:.1e}"
            )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]))) + "\n")
