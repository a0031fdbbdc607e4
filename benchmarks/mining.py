"""Speed and memory of hardest-negative mining and of nearest sets, beside the ways PyTorch offers, as a Markdown table.

    python benchmarks/mining.py [--quick] [--threads 2] [--repeats 5] [--clock cpu] [--no-memory]

The contenders take turns, and the minimum over the turns counts, so that other load hits all alike. "Ceiling" is
the best rate of a bare float32 matrix product, MKL or oneDNN, measured in the same turns: the case's own block
and a square one; rates above 100 % are possible. `--clock cpu` counts the processor's time of all threads instead
of the wall's, which other programs disturb less. Memory is the growth of the resident high-water mark over that
before the search, each contender in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import growth_mib, own_process, write
from torch import Tensor

from matchlib.ops.extension import load_extension
from matchlib.ops.mining import hardest_negatives
from matchlib.ops.sets import nearest_in_sets

RADIUS = 4.0


@dataclass(frozen=True, slots=True)
class Case:
    """A search: B images, N queries each, a map of height x width cells, D numbers; members > 1: nearest sets."""

    name: str
    batch: int
    queries: int
    height: int
    width: int
    depth: int
    members: int = 1

    @property
    def flops(self) -> float:
        pairs = self.batch * self.queries * self.height * self.width * self.members**2
        return 2.0 * pairs * self.depth


CASES = (
    Case("training step, interval 4", 1, 3000, 15, 20, 128),
    Case("training step, every cell", 1, 3000, 60, 80, 128),
    Case("batch of 8", 8, 1024, 60, 80, 256),
    Case("240 x 320, D 128", 1, 1000, 240, 320, 128),
    Case("240 x 320, D 256", 1, 1000, 240, 320, 256),
    Case("dense-dense 240 x 320, an eighth", 1, 9600, 240, 320, 128),
    Case("sparse sets of 2", 1, 1000, 1000, 1, 128, members=2),
)


@dataclass(frozen=True, slots=True)
class Inputs:
    queries: Tensor
    candidates: Tensor
    centres: Tensor


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.measure_memory:
        name, contender = options.measure_memory
        case = next(case for case in CASES if case.name == name)
        sys.stdout.write(f"{memory_of(contenders(case)[contender], make_inputs(case))}\n")
        return
    write(
        f"{options.threads} threads, minimum of {options.repeats}, {options.clock} time; torch {torch.__version__}; "
        f"extension: {load_extension().backend}\n\n"
        "| case | GFLOP | contender | ms | GFLOP/s | of ceiling | memory, MiB |\n|---|---|---|---|---|---|---|\n"
    )
    for case in CASES[:3] + CASES[-1:] if options.quick else CASES:
        report(case, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smaller cases only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out the memory column"
    )
    parser.add_argument("--measure-memory", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_inputs(case: Case) -> Inputs:
    """Unit-length descriptors; a query is its cell's, disturbed: so its own disc holds what is most similar."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    normalize = torch.nn.functional.normalize
    if case.members > 1:
        sets0, sets1 = (
            normalize(random(n, case.members, case.depth), dim=2) for n in (case.queries, case.height)
        )
        return Inputs(sets0, sets1, random(0))
    candidates = normalize(random(case.batch, case.depth, case.height, case.width), dim=1)
    size = torch.tensor([case.width - 1, case.height - 1])
    centres = size * torch.rand(case.batch, case.queries, 2, generator=generator)
    cell = (centres.round().long() * torch.tensor([1, case.width])).sum(-1)
    own = candidates.flatten(2).gather(2, cell[:, None].expand(-1, case.depth, -1)).mT
    return Inputs(normalize(own + 0.05 * random(*own.shape), dim=2), candidates, centres)


# ---------------------------------------------------------------- contenders
Contender = Callable[[Inputs], object]


def contenders(case: Case) -> dict[str, Contender]:
    if case.members > 1:
        found: dict[str, Contender] = {
            "einsum of all members + max": lambda i: (
                torch.einsum("nsd,mtd->nmst", i.queries, i.candidates).flatten(2).amax(2).max(1)
            ),
            "matchlib, reference": lambda i: nearest_in_sets(i.queries, i.candidates, backend="reference"),
        }
        if load_extension().serves("cpu"):
            found["matchlib, native"] = lambda i: nearest_in_sets(i.queries, i.candidates, backend="native")
        return found
    found = {"blocked mm + disc scatter + max": blocked, "matchlib, reference": ours("reference")}
    if case.batch * case.queries * case.height * case.width < 100_000_000:  # the others store all scores
        found = {
            "cdist + coordinate mask + topk": cdist_topk,
            "bmm + coordinate mask + max": bmm_max,
            **found,
        }
    if load_extension().serves("cpu"):
        found["matchlib, native"] = ours("native")
    return found


def ours(backend: str) -> Contender:
    return lambda i: hardest_negatives(i.queries, i.candidates, i.centres, RADIUS, backend=backend)  # type: ignore[arg-type]


def coordinate_mask(i: Inputs) -> Tensor:
    height, width = i.candidates.shape[2:]
    cell = torch.arange(height * width)
    cells = torch.stack([cell % width, cell // width], dim=1).float()
    return (cells - i.centres[:, :, None]).square().sum(-1) < RADIUS**2


def cdist_topk(i: Inputs) -> Tensor:
    distance = torch.cdist(i.queries, i.candidates.flatten(2).mT)
    distance[coordinate_mask(i)] = torch.inf
    return distance.topk(1, dim=2, largest=False).indices


def bmm_max(i: Inputs) -> Tensor:
    similarity = i.queries @ i.candidates.flatten(2)
    height, width = i.candidates.shape[2:]
    cell = torch.arange(height * width)
    cells = torch.stack([cell % width, cell // width], dim=1).float()
    similarity[torch.cdist(i.centres, cells) < RADIUS] = -torch.inf
    return similarity.max(dim=2).indices


def blocked(i: Inputs, rows: int = 512, columns: int = 4800) -> Tensor:
    """What one would write by hand in PyTorch: float32 only, ties as they fall."""
    height, width = i.candidates.shape[2:]
    offset = torch.arange(-4, 6)
    index = torch.zeros(i.queries.shape[:2], dtype=torch.int64)
    for b in range(len(i.queries)):
        flat = i.candidates[b].flatten(1)
        for top in range(0, i.queries.shape[1], rows):
            part = slice(top, top + rows)
            query, centre = i.queries[b, part], i.centres[b, part]
            x = centre[:, 0].floor().long()[:, None, None] + offset
            y = centre[:, 1].floor().long()[:, None, None] + offset[:, None]
            inside = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2 < RADIUS**2
            inside &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
            row, cell = inside.nonzero()[:, 0], (y * width + x)[inside]
            best = torch.full((len(query),), -torch.inf)
            for left in range(0, height * width, columns):
                tile = query @ flat[:, left : left + columns]
                in_tile = (cell >= left) & (cell < left + columns)
                tile[row[in_tile], cell[in_tile] - left] = -torch.inf
                value, at = tile.max(dim=1)
                better = value > best
                best = torch.where(better, value, best)
                index[b, part] = torch.where(better, at + left, index[b, part])
    return index


def ceilings(case: Case) -> dict[str, tuple[Callable[[], object], float]]:
    """Bare products and their operations: the case's block, and a square; by MKL and by oneDNN."""
    found: dict[str, tuple[Callable[[], object], float]] = {}
    for n, m in ((1024, 4800), (2048, 2048)):
        a, b, out = torch.randn(n, case.depth), torch.randn(m, case.depth), torch.empty(n, m)
        flops = 2.0 * n * m * case.depth

        def by_default(a: Tensor = a, b: Tensor = b, out: Tensor = out) -> None:
            torch.mm(a, b.T, out=out)

        def by_onednn(run: Callable[[], None] = by_default) -> None:
            torch.set_float32_matmul_precision(
                "medium"
            )  # asks for oneDNN; full float32 where there is no AMX
            run()
            torch.set_float32_matmul_precision("highest")

        found[f"mm {n} x {m}"] = (by_default, flops)
        found[f"mm {n} x {m}, oneDNN"] = (by_onednn, flops)
    return found


# ---------------------------------------------------------------- measuring
def report(case: Case, options: argparse.Namespace) -> None:
    inputs = make_inputs(case)
    runs: dict[str, Callable[[], object]] = {
        name: lambda run=run: run(inputs) for name, run in contenders(case).items()
    }
    bare = ceilings(case)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds = measure({**runs, **{name: run for name, (run, _) in bare.items()}}, options.repeats, clock)
    ceiling = max(flops / seconds[name] for name, (_, flops) in bare.items())
    for name in runs:
        rate = case.flops / seconds[name]
        memory = separate_memory(case, name, options) if options.memory else "-"
        write(
            f"| {case.name} | {case.flops / 1e9:.2f} | {name} | {seconds[name] * 1e3:.1f} | {rate / 1e9:.0f} "
            f"| {rate / ceiling:.0%} | {memory} |\n"
        )
    write(f"| {case.name} | | (ceiling) | | {ceiling / 1e9:.0f} | | |\n")


def measure(
    runs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of the fastest of `repeats` turns; a first turn warms up."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


def separate_memory(case: Case, contender: str, options: argparse.Namespace) -> str:
    return own_process(__file__, "--threads", str(options.threads), "--measure-memory", case.name, contender)


def memory_of(contender: Contender, inputs: Inputs) -> int:
    """Growth of the resident high-water mark in MiB; a small search first loads the libraries."""
    if inputs.candidates.dim() == 4:
        small = Inputs(inputs.queries[:, :64], inputs.candidates[:, :, :8], inputs.centres[:, :64])
    else:
        small = Inputs(inputs.queries[:64], inputs.candidates[:64], inputs.centres)
    contender(small)
    return growth_mib(lambda: contender(inputs))


if __name__ == "__main__":
    main()
