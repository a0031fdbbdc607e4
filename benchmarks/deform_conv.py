"""Speed of the modulated deformable convolution, forward and backward, as ratios to plain PyTorch.

    python benchmarks/deform_conv.py [--channels 128] [--size 120] [--batch 2] [--threads 2] [--repeats 5]

Three plain versions stand for what people use without a kernel: the readable reference (`gather`), sampling
by `grid_sample`, and the portable version that runs where there is no extension (`embedding_bag`). The bare
products are the three that no version can avoid. The contenders take turns and the minimum counts.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from matchlib.ops import deform_conv
from matchlib.ops.deform_conv import modulated_deform_conv2d
from matchlib.ops.extension import load_extension


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    tensors, grad_output = problem(options, device)
    contenders: dict[str, Callable[..., Tensor]] = {
        "reference (gather)": functools.partial(modulated_deform_conv2d, backend="reference"),
        "grid_sample": by_grid_sample,
        "portable (embedding_bag)": functools.partial(modulated_deform_conv2d, backend="portable"),
    }
    if load_extension().serves(device.type):
        contenders["native"] = functools.partial(modulated_deform_conv2d, backend="native")
    best = {name: (float("inf"), float("inf")) for name in contenders}
    for turn in range(options.repeats + 1):
        for name, convolve in contenders.items():
            times = measure(convolve, tensors, grad_output)
            if turn:
                best[name] = min(best[name], times, key=sum)
    report(best, bare_products(options, device), options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=128, help="of input and output")
    parser.add_argument("--size", type=int, default=120, help="rows and columns of the map")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def problem(options: argparse.Namespace, device: torch.device) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, channels, size = options.batch, options.channels, options.size
    shapes = [
        (batch, channels, size, size),
        (batch, 18, size, size),
        (batch, 9, size, size),
        (channels, channels, 3, 3),
        (channels,),
        (batch, channels, size, size),
    ]
    *tensors, grad_output = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return [tensor.requires_grad_() for tensor in tensors], grad_output


def by_grid_sample(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The usual way to write it with PyTorch's own sampling; 3x3, stride 1, padding 1."""
    y, x = deform_conv._positions(offset, (3, 3), 1, 1, 1)
    height, width = input.shape[2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(input, grid.flatten(1, 2), align_corners=False).unflatten(2, y.shape[1:3])
    return torch.einsum("bckhw,ock->bohw", sampled * mask[:, None], weight.flatten(2)) + bias[:, None, None]


def measure(
    convolve: Callable[..., Tensor], tensors: list[Tensor], grad_output: Tensor
) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    start = now(grad_output)
    output = convolve(*tensors)
    middle = now(grad_output)
    torch.autograd.grad(output, tensors, grad_output)
    return middle - start, now(grad_output) - middle


def now(tensor: Tensor) -> float:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def bare_products(options: argparse.Namespace, device: torch.device) -> float:
    """Seconds of the forward product and the two backward ones, on whole matrices that already exist."""
    rows, channels = options.batch * options.size**2, options.channels
    columns, weight = (
        torch.randn(rows, 9 * channels, device=device),
        torch.randn(9 * channels, channels, device=device),
    )
    output, best = torch.randn(rows, channels, device=device), float("inf")
    grad_columns, grad_weight = torch.empty_like(columns), torch.empty_like(weight)
    for _ in range(options.repeats):
        start = now(output)
        torch.mm(columns, weight, out=output)
        torch.mm(output, weight.T, out=grad_columns)
        torch.mm(columns.T, output, out=grad_weight)
        best = min(best, now(output) - start)
    return best


def report(best: dict[str, tuple[float, float]], bare: float, options: argparse.Namespace) -> None:
    reference = sum(best["reference (gather)"])
    lines = [
        f"{options.channels} channels, {options.size} x {options.size}, batch {options.batch}, 3x3, float32, "
        f"{options.device}, {options.threads} threads, minimum of {options.repeats}",
        f"{'':28s}{'forward':>12s}{'backward':>12s}{'both':>12s}{'speed-up':>12s}",
        *(
            f"{name:28s}{1e3 * times[0]:9.1f} ms{1e3 * times[1]:9.1f} ms{1e3 * sum(times):9.1f} ms"
            f"{reference / sum(times):12.2f}"
            for name, times in best.items()
        ),
        f"{'bare matrix products':28s}{'':24s}{1e3 * bare:9.1f} ms{reference / bare:12.2f}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
