"""Speed and memory of sampled similarity beside what one would write in PyTorch, as a Markdown table.

    python benchmarks/sampled_similarity.py [--batch 1 8] [--threads 2] [--repeats 3] [--clock cpu] [--no-memory]

The sizes are those of PoSFeat's descriptor loss: a map of 120 x 160 cells and 128 channels, 1,200 queries, 100 places
on a line (forward only: that search has no gradient) or 192 in a window of 12 x 16 cells. "grid_sample + einsum"
samples all vectors; "full product + gather" multiplies each query with the whole map and interpolates numbers.

The contenders take turns, and the minimum over the turns counts, so that other load hits all alike. `--clock cpu`
counts the processor's time of all threads instead of the wall's. Memory is the growth of the resident high-water
mark over that before the call, each contender in a process of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measuring import growth_mib, own_process, write
from torch import Tensor

from matchlib.ops.extension import load_extension
from matchlib.ops.sampled_similarity import Backend, sampled_similarity
from matchlib.ops.sampled_similarity_reference import corners

HEIGHT, WIDTH, DEPTH, QUERIES = 120, 160, 128, 1200
Contender = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    places: str  # "line" or "window"
    backward: bool


CASES = (
    Case("line, forward", "line", backward=False),
    Case("window, forward", "window", backward=False),
    Case("window, forward + backward", "window", backward=True),
)


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.measure_memory:
        case, batch, contender = options.measure_memory
        chosen = next(c for c in CASES if c.name == case)
        write(f"{memory_of(chosen, int(batch), contenders()[contender])}\n")
        return
    write(
        "| case | batch | contender | ms | times native | peak MiB |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    for case in CASES:
        for batch in options.batch:
            report(case, batch, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out the memory column"
    )
    parser.add_argument(
        "--measure-memory", nargs=3, metavar=("CASE", "BATCH", "CONTENDER"), help=argparse.SUPPRESS
    )
    return parser.parse_args()


def problem(case: Case, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit queries, a map (channels last in memory, as the network leaves it) and places: spread evenly."""
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(batch, QUERIES, DEPTH, generator=generator), dim=2)
    maps = torch.randn(batch, DEPTH, HEIGHT, WIDTH, generator=generator)
    maps = F.normalize(maps, dim=1).contiguous(memory_format=torch.channels_last)
    size = torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
    if case.places == "line":
        # From the left edge to the right one, at random heights.
        ends = size * torch.rand(batch, QUERIES, 2, 2, generator=generator)
        ends[..., 0, 0], ends[..., 1, 0] = 0.0, size[0]
        along = torch.linspace(0, 1, 100)[:, None]
        return queries, maps, ends[:, :, :1] * (1 - along) + ends[:, :, 1:] * along
    centres = size * torch.rand(batch, QUERIES, 1, 2, generator=generator)
    y, x = torch.meshgrid(torch.linspace(-6, 6, 12), torch.linspace(-8, 8, 16), indexing="ij")
    return queries, maps, centres + torch.stack([x, y], dim=-1).reshape(-1, 2)


# ---------------------------------------------------------------- contenders
def contenders() -> dict[str, Contender]:
    found: dict[str, Contender] = {
        "grid_sample + einsum": by_grid_sample,
        "full product + gather": by_full_product,
        "matchlib, reference": ours("reference"),
    }
    if load_extension().serves("cpu"):
        found["matchlib, native"] = ours("native")
    return found


def ours(backend: Backend) -> Contender:
    return lambda queries, maps, positions: sampled_similarity(
        queries, maps, positions, padding="zeros", backend=backend
    )


def by_grid_sample(queries: Tensor, maps: Tensor, positions: Tensor) -> Tensor:
    grid = (2 * positions + 1) / torch.tensor([WIDTH, HEIGHT]) - 1
    return torch.einsum("bnd,bdnk->bnk", queries, F.grid_sample(maps, grid, align_corners=False))


def by_full_product(queries: Tensor, maps: Tensor, positions: Tensor) -> Tensor:
    cell, weight = corners(positions, (HEIGHT, WIDTH), zeros=True)
    products = queries @ maps.flatten(2)
    return (products.gather(2, cell.flatten(2)).view_as(weight) * weight).sum(-1)


# ---------------------------------------------------------------- measuring
def run(case: Case, contender: Contender, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, maps, positions = tensors
    if not case.backward:
        with torch.no_grad():
            contender(queries, maps, positions)
        return
    inputs = (queries.requires_grad_(), maps.requires_grad_())
    torch.autograd.grad(contender(*inputs, positions).square().sum(), inputs)


def report(case: Case, batch: int, options: argparse.Namespace) -> None:
    tensors = problem(case, batch)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    runs = contenders()
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(options.repeats + 1):
        for name, contender in runs.items():
            start = clock()
            run(case, contender, tensors)
            if turn:
                best[name] = min(best[name], clock() - start)
    fastest = best.get("matchlib, native", float("nan"))
    for name, seconds in best.items():
        memory = separate_memory(case, batch, name, options) if options.memory else "-"
        write(
            f"| {case.name} | {batch} | {name} | {1e3 * seconds:.1f} | {seconds / fastest:.1f} | {memory} |\n"
        )


def separate_memory(case: Case, batch: int, contender: str, options: argparse.Namespace) -> str:
    threads = str(options.threads)
    return own_process(__file__, "--threads", threads, "--measure-memory", case.name, str(batch), contender)


def memory_of(case: Case, batch: int, contender: Contender) -> int:
    """Growth of the resident high-water mark in MiB; a call with few queries first loads the libraries."""
    queries, maps, positions = problem(case, batch)
    run(case, contender, (queries[:, :32], maps, positions[:, :32]))
    return growth_mib(lambda: run(case, contender, (queries, maps, positions)))


if __name__ == "__main__":
    main()
