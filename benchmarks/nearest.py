"""Speed of the mutual nearest neighbour search, as ratios to one bare matrix product of the same size.

    python benchmarks/nearest.py [--count 5000] [--width 128] [--threads 2] [--repeats 7]

The contenders take turns, and the minimum over the turns counts, so that other load hits all alike. The bare
product writes into a buffer that already exists: it pays for no memory.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from kornia.feature import match_mnn

from matchlib.ops import nearest
from matchlib.ops.extension import ExtensionInfo, load_extension


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    set0, set1 = (
        torch.nn.functional.normalize(torch.randn(options.count, options.width, generator=generator), dim=1)
        for _ in range(2)
    )
    buffer = torch.empty(options.count, options.count)

    def product_onednn() -> None:
        with precision("medium"):  # full float32 on processors without AMX; the public way to ask for oneDNN
            torch.mm(set0, set1.T, out=buffer)

    without_kernel = ExtensionInfo("reference", "switched off by the benchmark")

    def ours_without_kernel() -> None:
        with mock.patch.object(nearest, "load_extension", lambda: without_kernel):
            nearest.mutual_nearest(set0, set1)

    contenders: dict[str, Callable[[], object]] = {
        "bare product, MKL": lambda: torch.mm(set0, set1.T, out=buffer),
        "bare product, oneDNN": product_onednn,
        "mutual_nearest, plain PyTorch": ours_without_kernel,
        "whole matrix + max both ways": lambda: naive(set0, set1),
        "torch.cdist + min both ways": lambda: naive_distance(set0, set1),
        "kornia match_mnn": lambda: match_mnn(set0, set1),
    }
    if load_extension().serves("cpu"):
        contenders["mutual_nearest, native"] = lambda: nearest.mutual_nearest(set0, set1)
    report(measure(contenders, options.repeats), options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000, help="descriptors in each set")
    parser.add_argument("--width", type=int, default=128, help="numbers in a descriptor")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def naive(set0: torch.Tensor, set1: torch.Tensor) -> torch.Tensor:
    similarity = set0 @ set1.T
    best0, best1 = similarity.max(dim=1).indices, similarity.max(dim=0).indices
    return (best1[best0] == torch.arange(len(best0))).nonzero()


def naive_distance(set0: torch.Tensor, set1: torch.Tensor) -> torch.Tensor:
    distance = torch.cdist(set0, set1)
    best0, best1 = distance.min(dim=1).indices, distance.min(dim=0).indices
    return (best1[best0] == torch.arange(len(best0))).nonzero()


def measure(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest of `repeats` turns; a first turn warms up."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def report(seconds: dict[str, float], options: argparse.Namespace) -> None:
    bare = min(value for name, value in seconds.items() if name.startswith("bare"))
    lines = [
        f"{options.count} x {options.count} x {options.width} float32, {options.threads} threads, "
        f"minimum of {options.repeats}; ratio to the faster bare product",
        *(f"{name:32s} {value * 1e3:9.1f} ms {value / bare:8.2f}" for name, value in seconds.items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
