"""Sampled similarity: against `grid_sample`, loops and closed forms, on every back end that runs here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matchlib.errors import BuildError, ShapeError
from matchlib.ops import sampled_similarity as module
from matchlib.ops import sampled_similarity_native as native_module
from matchlib.ops.extension import ExtensionInfo
from matchlib.ops.sampled_similarity import Backend, Padding, sampled_similarity
from matchlib.ops.sampled_similarity_reference import corners, sampled_similarity_reference

PADDINGS: tuple[Padding, ...] = ("border", "zeros")
both_paddings = pytest.mark.parametrize("padding", PADDINGS)


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
    monkeypatch.setattr(module, "load_extension", lambda: info)


def problem(
    batch: int = 2,
    count: int = 5,
    samples: int = 7,
    depth: int = 9,
    size: tuple[int, int] = (6, 8),
    *,
    seed: int = 0,
    reach: float = 3.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, maps and positions from `reach` cells outside of the map on one side to as many on the other."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, count, depth, generator=generator, dtype=torch.float64)
    maps = torch.randn(batch, depth, *size, generator=generator, dtype=torch.float64)
    extent = torch.tensor([size[1] - 1 + 2 * reach, size[0] - 1 + 2 * reach])
    positions = (
        extent * torch.rand(batch, count, samples, 2, generator=generator, dtype=torch.float64) - reach
    )
    return queries.to(dtype), maps.to(dtype), positions.to(dtype)


def by_grid_sample(queries: Tensor, maps: Tensor, positions: Tensor, padding: Padding) -> Tensor:
    """What the operator replaces: PyTorch samples the vectors, einsum multiplies them."""
    size = torch.tensor([maps.shape[3], maps.shape[2]], dtype=positions.dtype)
    # align_corners=False puts -1 and 1 on the outer edges of the cells. Border padding there clamps to the edge
    # cells' centres, as ours does.
    grid = (2 * positions + 1) / size - 1
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return torch.einsum("bnd,bdnk->bnk", queries, sampled)


def with_gradients(output: Tensor, inputs: tuple[Tensor, ...], seed: int = 9) -> list[Tensor]:
    ahead = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad(output, inputs, ahead.to(output.dtype))]


def assert_equals_grid_sample(
    tensors: tuple[Tensor, Tensor, Tensor], padding: Padding, backend: Backend, tolerance: float
) -> None:
    queries, maps, positions = tensors
    inputs = (queries.requires_grad_(), maps.requires_grad_())
    found = with_gradients(sampled_similarity(*inputs, positions, padding=padding, backend=backend), inputs)
    expected = with_gradients(by_grid_sample(*inputs, positions, padding), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- values and gradients
@both_paddings
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.integers(1, 37)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 99),
    channels_last=st.booleans(),
)
def test_all_back_ends_equal_grid_sample_on_any_problem(
    native_extension: object,
    padding: Padding,
    sizes: tuple[int, int, int, int],
    size: tuple[int, int],
    seed: int,
    channels_last: bool,
) -> None:
    queries, maps, positions = problem(*sizes, size, seed=seed)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    info = ExtensionInfo("native", "", frozenset({"cpu"}))
    backends: tuple[Backend, ...] = ("reference", "native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_extension", lambda: info)
        for backend in backends:
            assert_equals_grid_sample((queries, maps, positions), padding, backend, 1e-10)


@both_paddings
def test_float32_is_as_exact_as_float32_can_be(backend: Backend, padding: Padding) -> None:
    """Against float64, at the sizes of a window search; no sum of 128 products of normals exceeds 100 here."""
    queries, maps, positions = problem(2, 60, 192, 128, (30, 40), dtype=torch.float32)
    found = sampled_similarity(queries, maps, positions, padding=padding, backend=backend)
    expected = sampled_similarity(
        queries.double(), maps.double(), positions, padding=padding, backend="reference"
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-5)


@both_paddings
def test_gradients_in_float64(backend: Backend, padding: Padding) -> None:
    queries, maps, positions = problem(2, 3, 5, 4, (3, 4), reach=1.5)

    def compare(queries: Tensor, maps: Tensor) -> Tensor:
        return sampled_similarity(queries, maps, positions, padding=padding, backend=backend)

    assert torch.autograd.gradcheck(compare, (queries.requires_grad_(), maps.requires_grad_()))


@both_paddings
def test_whole_positions_are_plain_dot_products(backend: Backend, padding: Padding) -> None:
    queries, maps, _ = problem(1, 4, depth=5, size=(3, 6))
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(6.0), indexing="ij")
    positions = torch.stack([x, y], dim=-1).reshape(1, 1, 18, 2).expand(1, 4, 18, 2)
    found = sampled_similarity(queries, maps, positions, padding=padding, backend=backend)
    torch.testing.assert_close(found, queries @ maps.flatten(2))


def test_a_ramp_is_read_exactly_between_cells_and_held_at_the_border(backend: Backend) -> None:
    """A map whose two channels are a cell's own x and y: the similarity with (a, b) is a x + b y."""
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    maps = torch.stack([x, y])[None].double()
    queries, _, positions = problem(1, 6, 20, 2, (5, 7))
    held = positions.clamp(torch.zeros(2), torch.tensor([6.0, 4.0]))
    found = sampled_similarity(queries, maps, positions, padding="border", backend=backend)
    torch.testing.assert_close(found, (queries[:, :, None] * held).sum(-1))


@pytest.mark.parametrize(
    ("x", "expected"),
    [(-1.0, 0.0), (-0.75, 0.25), (0.0, 1.0), (2.0, 1.0), (2.5, 0.5), (3.0, 0.0), (9.0, 0.0)],
)
def test_with_zeros_a_map_fades_over_one_cell(backend: Backend, x: float, expected: float) -> None:
    positions = torch.tensor([x, 0.0]).view(1, 1, 1, 2)
    found = sampled_similarity(
        torch.ones(1, 1, 1), torch.ones(1, 1, 1, 3), positions, padding="zeros", backend=backend
    )
    assert found.item() == expected


@both_paddings
def test_a_map_of_one_cell(backend: Backend, padding: Padding) -> None:
    assert_equals_grid_sample(problem(2, 3, 11, 5, (1, 1), reach=1.4), padding, backend, 1e-12)


@both_paddings
@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_sizes_of_zero(backend: Backend, padding: Padding, sizes: tuple[int, int, int, int]) -> None:
    queries, maps, positions = problem(*sizes)
    inputs = (queries.requires_grad_(), maps.requires_grad_())
    output = sampled_similarity(*inputs, positions, padding=padding, backend=backend)
    assert output.shape == sizes[:3] and not output.any()
    gradients = torch.autograd.grad(output.sum(), inputs)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, inputs, strict=True))


# ---------------------------------------------------------------- places that are none
@both_paddings
def test_a_nan_position_gives_nan_and_no_gradient(backend: Backend, padding: Padding) -> None:
    queries, maps, positions = problem(1, 3, 6)
    inputs = (queries.requires_grad_(), maps.requires_grad_())
    whole = positions.clone()
    positions[0, 1, 2, 0] = math.nan
    positions[0, 1, 4, 1] = math.nan
    bad = positions.isnan().any(-1)
    output = sampled_similarity(*inputs, positions, padding=padding, backend=backend)
    assert torch.equal(output.isnan(), bad)
    found = torch.autograd.grad(torch.where(bad, 0, output).sum(), inputs)
    complete = sampled_similarity(*inputs, whole, padding=padding, backend=backend)
    expected = torch.autograd.grad(complete[~bad].sum(), inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("far", [math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("axis", [0, 1])
def test_places_at_infinity(backend: Backend, far: float, axis: int) -> None:
    """The border there is, with zeros nothing."""
    queries, maps, positions = problem(1, 1, 1, size=(4, 5), dtype=torch.float32, reach=0.0)
    positions[..., axis] = far
    assert sampled_similarity(queries, maps, positions, padding="zeros", backend=backend).item() == 0
    at_border = positions.clone()
    at_border[..., axis] = 0 if far < 0 else (4, 3)[axis]
    found, expected = (
        sampled_similarity(queries, maps, p, padding="border", backend=backend)
        for p in (positions, at_border)
    )
    assert torch.equal(found, expected)


# ---------------------------------------------------------------- how it is computed
@pytest.mark.parametrize("depth", [128, 37])
def test_nothing_depends_on_the_number_of_threads(use_native: None, depth: int) -> None:
    """Some cells are touched by hundreds of queries, so an order of additions that varied would show."""
    queries, maps, positions = problem(2, 400, 50, depth, (5, 6), dtype=torch.float32)
    inputs = (queries.requires_grad_(), maps.requires_grad_())
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 13):
            torch.set_num_threads(number)
            output = sampled_similarity(*inputs, positions, padding="zeros", backend="native")
            found.append(with_gradients(output, inputs))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_more_shares_than_one_block_keeps(use_native: None) -> None:
    """4 MB hold the shares of 655 of these queries; the last block is not full."""
    assert_equals_grid_sample(problem(1, 1500, 200, 3, (40, 50), reach=0.5), "border", "native", 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    queries, maps, positions = problem(dtype=torch.float32)
    queries, maps = queries.to(dtype).requires_grad_(), maps.to(dtype).requires_grad_()
    output = sampled_similarity(queries, maps, positions, backend=backend)
    assert output.dtype == torch.float32
    assert torch.equal(output, sampled_similarity(queries.float(), maps.float(), positions, backend=backend))
    gradients = torch.autograd.grad(output.sum(), (queries, maps))
    assert [g.dtype for g in gradients] == [dtype, dtype]


def test_mixed_precision_of_the_program_changes_nothing(backend: Backend) -> None:
    tensors = problem(dtype=torch.float32)
    expected = sampled_similarity(*tensors, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sampled_similarity(*tensors, backend=backend), expected)


def test_any_layout_gives_the_same(backend: Backend) -> None:
    queries, maps, positions = problem()
    expected = sampled_similarity(queries, maps, positions, backend=backend)
    strided = (
        queries.mT.contiguous().mT,
        torch.cat([maps, maps], dim=3)[..., :8],
        positions.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    )
    torch.testing.assert_close(sampled_similarity(*strided, backend=backend), expected)


def test_operators_pass_torchs_own_checks(use_native: None) -> None:
    queries, maps, positions = problem()
    inputs = (
        queries.requires_grad_(),
        maps.permute(0, 2, 3, 1).contiguous().requires_grad_(),
        positions,
        True,
    )
    torch.library.opcheck(native_module.sampled_similarity_op, inputs)
    torch.library.opcheck(
        native_module.sampled_similarity_backward_op,
        (torch.ones(positions.shape[:3], dtype=torch.float64), *(i.detach() for i in inputs[:3]), True),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_the_sums_after_sorting_are_the_gradient_of_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way CUDA takes, with its two kernels written in PyTorch: the sorting between them is what is tested."""
    queries, maps, positions = problem(3, 4, 6, 5, (4, 5))
    leaf = maps.permute(0, 2, 3, 1).contiguous().requires_grad_()
    grad = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (expected,) = torch.autograd.grad(
        sampled_similarity_reference(queries, leaf, positions, True), leaf, grad
    )

    def shares(*arguments: Tensor) -> None:
        cell, weight = corners(positions, (4, 5), True)
        image = torch.arange(3).view(3, 1, 1, 1)
        arguments[-2].copy_(torch.where(weight > 0, 20 * image + cell, 60).flatten())
        arguments[-1].copy_((weight * grad[..., None]).flatten())

    def gather(queries: Tensor, weights: Tensor, order: Tensor, first: Tensor, _: int, out: Tensor) -> None:
        for cell in range(60):
            chosen = order[first[cell] : first[cell + 1]]
            rows = queries.flatten(0, 1)[chosen // 24]
            out.view(60, 5)[cell] = (weights[chosen, None] * rows).sum(0)

    kernels = torch.ops.matchlib_native
    monkeypatch.setattr(kernels, "sampled_similarity_shares", shares, raising=False)
    monkeypatch.setattr(kernels, "sampled_similarity_gather", gather, raising=False)
    tensors = [grad, queries, leaf.detach(), positions]
    found = native_module._backward_by_sorting(tensors, True, torch.empty_like(queries))
    torch.testing.assert_close(found, expected)


MEMORY = """
import torch
from matchlib.ops.sampled_similarity import sampled_similarity
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
queries = torch.randn(1, 3000, 64, generator=generator).requires_grad_()
maps = torch.randn(1, 64, 100, 100, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
positions = 100 * torch.rand(1, 3000, 64, 2, generator=generator)
def step(n):
    sampled_similarity(queries[:, :n], maps, positions[:, :n]).square().sum().backward()
def high_water_kb():  # getrusage's figure would be inherited from the process of the tests
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
step(32)
open("/proc/self/clear_refs", "w").write("5")  # the mark starts again from what is resident now
before = high_water_kb()
step(3000)
print(high_water_kb() - before)
"""


@pytest.mark.parametrize(("native", "share"), [(False, 1.6), (True, 0.6)])
def test_memory_of_a_step_stays_below_the_sampled_vectors(
    native: bool, share: float, built: tuple[Path, object], native_extension: object
) -> None:
    """The vectors alone are 47 MB, and by way of grid_sample there are four times as many in a step."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MATCHLIB_EXTENSION": str(built[0]) if native else ""},
    )
    assert int(result.stdout) < share * 3000 * 64 * 64 * 4 // 1024


# ---------------------------------------------------------------- misuse
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(2, 5, 8)}, r"maps: expected shape \(2, 8, H, W\), got \(2, 9, 6, 8\)"),
        ({"queries": torch.zeros(5, 9)}, r"queries: expected shape \(B, N, D\)"),
        ({"maps": torch.zeros(2, 9, 0, 8)}, "maps: expected at least one cell, got 0x8"),
        ({"positions": torch.zeros(2, 4, 7, 2)}, r"positions: expected shape \(2, 5, K, 2\)"),
        ({"positions": torch.zeros(2, 5, 7, 3)}, r"positions: expected shape \(2, 5, K, 2\)"),
        ({"positions": torch.zeros(2, 5, 7, 2, dtype=torch.int64)}, "positions: expected floating point"),
        ({"maps": torch.zeros(2, 9, 6, 8, device="meta")}, "maps: expected floating point on cpu"),
        ({"positions": torch.zeros(2, 5, 7, 2, requires_grad=True)}, "positions: expected no gradient"),
        ({"padding": "reflection"}, "padding: expected 'border' or 'zeros', got 'reflection'"),
        ({"backend": "cuda"}, "backend: expected 'auto', 'reference' or 'native', got 'cuda'"),
    ],
)
def test_misfits_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = dict(zip(("queries", "maps", "positions"), problem(), strict=True))
    with pytest.raises(ShapeError, match=message):
        sampled_similarity(**(arguments | change))  # type: ignore[arg-type]


def test_asking_for_a_missing_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ExtensionInfo("reference", "none was built")
    monkeypatch.setattr(module, "load_extension", lambda: missing)
    with pytest.raises(BuildError, match="no native kernel for cpu tensors: none was built; choose"):
        sampled_similarity(*problem(), backend="native")
    expected = sampled_similarity(*problem(), backend="reference")
    assert torch.equal(sampled_similarity(*problem(), backend="auto"), expected)
