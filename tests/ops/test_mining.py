"""Hardest negatives: the contract against a brute-force definition, on every back end that runs here."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import BuildError, ShapeError
from matchlib.ops import mining, mining_native, mining_reference
from matchlib.ops.extension import ExtensionInfo
from matchlib.ops.mining import Backend, MinedNegatives, hardest_negatives
from matchlib.ops.mining_native import hardest_cells_op


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every back end that runs here; "native" is the freshly built extension."""
    if request.param == "native":
        request.getfixturevalue("use_native")
    name: Backend = request.param
    return name


@pytest.fixture
def use_native(native_extension: object, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ExtensionInfo("native", "", frozenset({"cpu"}))
    for module in (mining, mining_native):
        monkeypatch.setattr(module, "load_extension", lambda: info)


def dot(query: np.ndarray, candidate: np.ndarray) -> float:
    """The documented order of additions, one number at a time."""
    sums = [0.0] * 8
    for d, (a, b) in enumerate(zip(query.tolist(), candidate.tolist(), strict=True)):
        sums[d % 8] += a * b
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))


def brute_force(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    centres: torch.Tensor,
    radius: float,
    *,
    interval: int = 1,
    phase: tuple[int, int] = (0, 0),
    k: int = 1,
    suppression_radius: float | None = None,
    valid: torch.Tensor | None = None,
) -> tuple[list[list[list[int]]], list[list[list[float]]]]:
    """The contract, loop by loop, in Python's float64."""
    height, width = candidates.shape[2:]
    found: list[list[list[int]]] = []
    values: list[list[list[float]]] = []
    for b in range(len(queries)):
        found.append([])
        values.append([])
        for n in range(queries.shape[1]):
            left = {}
            cx, cy = centres[b, n].tolist()
            for y in range(phase[1], height, interval):
                for x in range(phase[0], width, interval):
                    is_valid = valid is None or bool(valid[b, y, x])
                    if is_valid and not (x - cx) ** 2 + (y - cy) ** 2 < radius**2:
                        left[y * width + x] = dot(queries[b, n].numpy(), candidates[b, :, y, x].numpy())
            picks: list[int] = []
            scores: list[float] = []
            while len(picks) < k:
                best = min(left, key=lambda cell: (-left[cell], cell), default=-1)
                picks.append(best)
                scores.append(float(np.float32(left.pop(best))) if best >= 0 else -np.inf)
                if best >= 0 and suppression_radius is not None:
                    py, px = divmod(best, width)
                    left = {
                        cell: score
                        for cell, score in left.items()
                        if not (cell % width - px) ** 2 + (cell // width - py) ** 2 < suppression_radius**2
                    }
            found[-1].append(picks)
            values[-1].append(scores)
    return found, values


def assert_is(found: MinedNegatives, expected: tuple[list[list[list[int]]], list[list[list[float]]]]) -> None:
    assert found.index.tolist() == expected[0]
    assert found.similarity.tolist() == expected[1]
    assert found.index.dtype == torch.int64


def problem(
    batch: int, count: int, depth: int, height: int, width: int, seed: int = 0, *, whole_numbers: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, map and centres; with whole numbers many dot products are equal."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, count, depth, generator=generator)
    candidates = torch.randn(batch, depth, height, width, generator=generator)
    if whole_numbers:
        queries, candidates = queries.round(), candidates.round()
    size = torch.tensor([width, height])
    centres = (size + 2) * torch.rand(batch, count, 2, generator=generator) - 1.5
    return queries, candidates, centres


@st.composite
def options(draw: st.DrawFn) -> dict[str, object]:
    interval = draw(st.integers(1, 3))
    return {
        "radius": draw(st.sampled_from([0.0, 1.0, 1.5, 2.0, 20.0])),
        "interval": interval,
        "phase": (draw(st.integers(0, interval - 1)), draw(st.integers(0, interval - 1))),
        "k": draw(st.integers(1, 3)),
        "suppression_radius": draw(st.sampled_from([None, 0.0, 1.0, 2.5])),
    }


@pytest.mark.parametrize("channels_last", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, most) for most in (2, 11, 19, 6, 9)]),
    options=options(),
    seed=st.integers(0, 99),
    whole_numbers=st.booleans(),
    masked=st.booleans(),
)
def test_all_back_ends_equal_the_definition(
    native_extension: object,
    channels_last: bool,
    sizes: tuple[int, int, int, int, int],
    options: dict[str, object],
    seed: int,
    whole_numbers: bool,
    masked: bool,
) -> None:
    queries, candidates, centres = problem(*sizes, seed, whole_numbers=whole_numbers)
    centres = (2 * centres).round() / 2  # so that cells at exactly the radius occur
    valid = torch.rand(len(queries), *sizes[3:], generator=torch.Generator().manual_seed(seed)) > 0.3
    options = {**options, "valid": valid if masked else None}
    radius = options.pop("radius")
    expected = brute_force(queries, candidates, centres, radius, **options)  # type: ignore[arg-type]
    if channels_last:
        candidates = candidates.contiguous(memory_format=torch.channels_last)
    for info in (ExtensionInfo("native", "", frozenset({"cpu"})), ExtensionInfo("reference", "")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mining_native, "load_extension", lambda info=info: info)
            found = hardest_negatives(queries, candidates, centres, radius, **options)  # type: ignore[arg-type]
        assert_is(found, expected)


@settings(max_examples=30, deadline=None)
@given(
    depth=st.sampled_from([3, 8, 33, 128]),
    cells=st.sampled_from([7, 50, 700, 5300]),
    seed=st.integers(0, 999),
)
def test_descriptors_that_differ_by_one_bit_are_told_apart(
    native_extension: object, depth: int, cells: int, seed: int
) -> None:
    """Float32 cannot order these; the 5,300 cells fill several tiles and every list of hits."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(depth).astype(np.float32)
    base /= np.linalg.norm(base)
    map_MD = np.tile(base, (cells, 1))
    changed = random.integers(0, depth, cells)
    direction = np.where(random.random(cells) < 0.5, np.float32(-9), np.float32(9))
    map_MD[np.arange(cells), changed] = np.nextafter(base[changed], direction)
    map_MD[random.random(cells) < 0.3] = base
    queries = torch.from_numpy(np.stack([base, np.roll(base, 1)]))[None]
    candidates = torch.from_numpy(map_MD.T.copy())[None, :, None]
    centres = torch.tensor([[[3.0, 0.0], [float(cells), 0.0]]])
    scores = mining_reference.exact_scores(
        queries[0].repeat_interleave(cells, 0), torch.from_numpy(map_MD).repeat(2, 1)
    ).view(2, cells)
    x = torch.arange(cells)
    for row in range(2):
        scores[row, (x - centres[0, row, 0]).abs() < 2] = -torch.inf
    expected = scores.numpy().argmax(axis=1).tolist()  # the first of equals
    for info in (ExtensionInfo("native", "", frozenset({"cpu"})), ExtensionInfo("reference", "")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mining_native, "load_extension", lambda info=info: info)
            found = hardest_negatives(queries, candidates, centres, 2.0)
        assert found.index[0, :, 0].tolist() == expected


def test_exact_scores_are_the_documented_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    for depth in (0, 1, 7, 8, 30):
        a, b = (torch.randn(5, depth, generator=generator) for _ in range(2))
        expected = [dot(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
        assert mining_reference.exact_scores(a, b).tolist() == expected


def test_many_tiles_and_threads_find_what_one_product_finds(backend: Backend) -> None:
    """Several strips, ragged rows and columns; real-valued, so that float64 decides alone."""
    queries, candidates, centres = problem(2, 333, 40, 61, 83)
    scores = torch.einsum("bnd,bdhw->bnhw", queries.double(), candidates.double())
    y, x = torch.meshgrid(torch.arange(61), torch.arange(83), indexing="ij")
    distance_sq = (x - centres[..., 0, None, None].double()) ** 2 + (y - centres[..., 1, None, None]) ** 2
    expected = scores.masked_fill(distance_sq < 4.0**2, -torch.inf).flatten(2).max(dim=2)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = hardest_negatives(queries, candidates, centres, 4.0, backend=backend)
            assert torch.equal(found.index[..., 0], expected.indices)
            torch.testing.assert_close(found.similarity[..., 0], expected.values.float(), rtol=1e-6, atol=0)
    finally:
        torch.set_num_threads(before)


def test_a_constant_map_gives_the_first_cell_outside_of_the_disc(backend: Backend) -> None:
    queries, candidates = torch.ones(1, 1, 6), torch.ones(1, 6, 70, 90)
    found = hardest_negatives(queries, candidates, torch.tensor([[[0.0, 0.0]]]), 2.0, k=3, backend=backend)
    assert found.index.tolist() == [[[2, 3, 4]]] and found.similarity.tolist() == [[[6.0] * 3]]


def test_everything_excluded_gives_minus_one(backend: Backend) -> None:
    queries, candidates, centres = problem(2, 3, 4, 5, 7)
    found = hardest_negatives(queries, candidates, centres, 50.0, k=2, backend=backend)
    assert (found.index == -1).all() and (found.similarity == -torch.inf).all()


def test_a_cell_at_exactly_the_radius_stays(backend: Backend) -> None:
    candidates = torch.zeros(1, 1, 5, 7)
    candidates[0, 0, 2, 3:] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    centre = torch.tensor([[[3.0, 2.0]]])
    found = {
        radius: hardest_negatives(
            torch.ones(1, 1, 1), candidates, centre, radius, backend=backend
        ).index.item()
        for radius in (0.0, 1.0, 1.01, 2.0, 2.01)
    }
    assert found == {0.0: 17, 1.0: 18, 1.01: 19, 2.0: 19, 2.01: 20}


@pytest.mark.parametrize("centre", [(-1.0, 2.0), (-1e9, 3.0), (6.6, 4.4), (1e30, -1e30)])
def test_centres_outside_of_the_map_exclude_what_they_reach(
    backend: Backend, centre: tuple[float, float]
) -> None:
    queries, candidates, _ = problem(1, 1, 4, 5, 7)
    centres = torch.tensor([[centre]])
    found = hardest_negatives(queries, candidates, centres, 3.2, k=35, backend=backend)
    assert_is(found, brute_force(queries, candidates, centres, 3.2, k=35))


def test_images_of_a_batch_do_not_meet(backend: Backend) -> None:
    queries, candidates, centres = problem(3, 4, 5, 6, 7)
    together = hardest_negatives(queries, candidates, centres, 1.5, backend=backend)
    for b in range(3):
        part = slice(b, b + 1)
        alone = hardest_negatives(queries[part], candidates[part], centres[part], 1.5, backend=backend)
        assert torch.equal(together.index[part], alone.index)


@pytest.mark.parametrize("width", [8, 16, 48])  # panels of the kernels for the three instruction sets
def test_few_valid_cells_that_span_a_panel(backend: Backend, width: int) -> None:
    queries, candidates, centres = problem(1, 20, 3, 1, width)
    valid = torch.zeros(1, 1, width, dtype=torch.bool)
    valid[..., [0, 2, 5, width - 1]] = True
    found = hardest_negatives(queries, candidates, centres, 0.0, k=4, valid=valid, backend=backend)
    assert_is(found, brute_force(queries, candidates, centres, 0.0, k=4, valid=valid))


def test_suppression_keeps_picks_apart(backend: Backend) -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    candidates = -((x - 12).square() + (y - 9).square())[None, None]  # one hill: its cells crowd at the top
    found = hardest_negatives(
        torch.ones(1, 1, 1), candidates, torch.zeros(1, 1, 2), 0.0, k=4, suppression_radius=3, backend=backend
    )
    picks = found.index[0, 0]
    points = torch.stack([picks % 30, picks // 30], dim=1).double()
    assert picks[0] == 9 * 30 + 12
    assert (torch.cdist(points, points) + 99 * torch.eye(4)).min() >= 3


def test_sizes_of_zero(backend: Backend) -> None:
    for batch, count, depth, height, width in [(0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 4, 0, 6)]:
        queries, candidates, centres = problem(batch, count, depth, height, width)
        found = hardest_negatives(queries, candidates, centres, 1.0, k=2, backend=backend)
        assert found.index.shape == (batch, count, 2) and (found.index == -1).all()
    queries, candidates, centres = problem(1, 2, 0, 3, 3)
    found = hardest_negatives(queries, candidates, centres * 0, 1.0, backend=backend)
    assert found.index.flatten().tolist() == [1, 1] and (found.similarity == 0).all()


def test_any_layout_of_the_map_gives_the_same(backend: Backend) -> None:
    queries, candidates, centres = problem(2, 9, 5, 12, 14)
    expected = hardest_negatives(queries, candidates, centres, 2.0, backend=backend)
    wide = torch.zeros(2, 5, 12, 40)
    wide[..., 3:17] = candidates
    layouts = [wide[..., 3:17], candidates.mT.contiguous().mT, candidates.flip(0).contiguous().flip(0)]
    for layout in layouts:
        found = hardest_negatives(queries, layout, centres, 2.0, backend=backend)
        assert torch.equal(found.index, expected.index) and torch.equal(found.similarity, expected.similarity)


def test_tiny_values_are_not_lost_in_underflow(backend: Backend) -> None:
    """Float32 products of these are zero; the float64 rule still orders them."""
    candidates = torch.full((1, 4, 1, 60), 1e-25)
    candidates[..., 41] = 2e-25
    queries = torch.full((1, 1, 4), 1e-25)
    found = hardest_negatives(queries, candidates, torch.zeros(1, 1, 2), 1.0, backend=backend)
    assert found.index.item() == 41


def test_float64_descriptors_are_ordered_in_float64() -> None:
    candidates = torch.ones(1, 1, 1, 9, dtype=torch.float64)
    candidates[..., 5] += 1e-14
    queries = torch.ones(1, 1, 1, dtype=torch.float64)
    found = hardest_negatives(queries, candidates, torch.zeros(1, 1, 2), 1.0)
    assert found.index.item() == 5 and found.similarity.dtype == torch.float64
    assert found.similarity.item() == 1 + 1e-14


def test_reduced_precision_of_products_changes_nothing(backend: Backend) -> None:
    queries, candidates, centres = problem(1, 40, 32, 20, 20)
    expected = hardest_negatives(queries, candidates, centres, 2.0, backend=backend)
    torch.set_float32_matmul_precision("medium")
    try:
        found = hardest_negatives(queries, candidates, centres, 2.0, backend=backend)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.index, expected.index)


@pytest.mark.parametrize("uses_onednn", [False, True])
def test_mixed_precision_of_the_program_changes_nothing(
    backend: Backend, uses_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matchlib.ops.matmul._onednn_is_faster", lambda: uses_onednn)
    queries, candidates, centres = problem(1, 200, 8, 40, 60)
    queries, candidates = (  # alike: bfloat16 cannot tell them apart
        torch.nn.functional.normalize(1 + 0.3 * tensor, dim=dim)
        for tensor, dim in ((queries, 2), (candidates, 1))
    )
    expected = hardest_negatives(queries, candidates, centres, 2.0, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hardest_negatives(queries, candidates, centres, 2.0, backend=backend)
    assert torch.equal(found.index, expected.index)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["queries", "candidates", "centres"])
def test_values_that_are_not_finite_are_named(backend: Backend, bad: float, where: str) -> None:
    tensors = dict(zip(("queries", "candidates", "centres"), problem(1, 3, 4, 5, 7), strict=True))
    tensors[where].view(-1)[5] = bad
    with pytest.raises(ShapeError, match=f"{where}: expected finite"):
        hardest_negatives(**tensors, radius=1.0, backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.ones(1, 3, 5)}, r"candidates: expected shape \(1, 5, H, W\)"),
        ({"queries": torch.ones(1, 3, 4).half()}, "queries: expected float32 or float64"),
        ({"queries": torch.full((1, 3, 4), 1e20)}, "queries: expected values up to 1e"),
        ({"candidates": torch.ones(1, 4, 5, 7).double()}, "candidates: expected torch.float32"),
        ({"centres": torch.ones(1, 2, 2)}, "centres: expected shape"),
        ({"centres": torch.ones(1, 3, 2, dtype=torch.int64)}, "centres: expected floating point"),
        ({"valid": torch.ones(1, 5, 6, dtype=torch.bool)}, "valid: expected shape"),
        ({"valid": torch.ones(1, 5, 7)}, "valid: expected torch.bool"),
        ({"radius": -1.0}, "radius: expected"),
        ({"radius": float("nan")}, "radius: expected"),
        ({"suppression_radius": -1.0}, "suppression_radius: expected"),
        ({"k": 0}, "k: expected at least 1"),
        ({"interval": 0}, "interval: expected at least 1"),
        ({"interval": 2, "phase": (2, 0)}, r"phase: expected \(x, y\)"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    queries, candidates, centres = problem(1, 3, 4, 5, 7)
    arguments = {"queries": queries, "candidates": candidates, "centres": centres, "radius": 1.0, **changes}
    with pytest.raises(ShapeError, match=message):
        hardest_negatives(**arguments)  # type: ignore[arg-type]


def test_native_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "load_extension", lambda: ExtensionInfo("reference", "no compiler"))
    with pytest.raises(BuildError, match="no compiler"):
        hardest_negatives(*problem(1, 3, 4, 5, 7), 1.0, backend="native")


def test_no_gradient_flows_and_none_is_asked_for(backend: Backend) -> None:
    queries, candidates, centres = problem(1, 3, 4, 5, 7)
    found = hardest_negatives(
        queries.requires_grad_(), candidates.requires_grad_(), centres, 1.0, backend=backend
    )
    assert not found.similarity.requires_grad


def test_operator_passes_torchs_own_checks(use_native: None) -> None:
    queries, candidates, centres = problem(2, 5, 4, 5, 7)
    cells, first_cell = torch.arange(35).repeat(2), torch.tensor([0, 35, 70])
    arguments = (queries, candidates, cells, first_cell, centres.double()[:, :, None], torch.ones(1).double())
    torch.library.opcheck(hardest_cells_op, arguments)


MEMORY = """
import torch
from matchlib.ops.mining import hardest_negatives
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
queries, candidates = torch.randn(1, 4000, 8, generator=generator), torch.randn(1, 8, 150, 150, generator=generator)
centres = 150 * torch.rand(1, 4000, 2, generator=generator)
hardest_negatives(queries[:, :64], candidates, centres[:, :64], 4.0)
def high_water_kb():  # getrusage's figure would be inherited from the process of the tests
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
open("/proc/self/clear_refs", "w").write("5")  # the mark starts again from what is resident now
before = high_water_kb()
hardest_negatives(queries, candidates, centres, 4.0)
print(high_water_kb() - before)
"""


@pytest.mark.parametrize("native", [False, True])
def test_memory_stays_far_below_the_matrix_of_scores(
    native: bool, built: tuple[object, object], native_extension: object
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MATCHLIB_EXTENSION": str(built[0]) if native else ""},
    )
    matrix_kb = 4000 * 150 * 150 * 4 // 1024
    assert int(result.stdout) < matrix_kb / 4
