"""Exactness, tie rule, seconds, edge cases and memory of the nearest neighbour search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.feature import match_mnn

from matchlib.errors import ShapeError
from matchlib.ops import nearest as module
from matchlib.ops.extension import ExtensionInfo
from matchlib.ops.matmul import matmul_nt
from matchlib.ops.nearest import mutual_nearest, mutual_nearest_with_second, nearest


@pytest.fixture(params=["reference", "native"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the library-only path and with the kernel."""
    if request.param == "native":
        request.getfixturevalue("native_extension")
        info = ExtensionInfo("native", "", frozenset({"cpu"}))
    else:
        info = ExtensionInfo("reference", "switched off by the test")
    monkeypatch.setattr(module, "load_extension", lambda: info)


def whole_numbers(rows: int, width: int, seed: int) -> torch.Tensor:
    """Descriptors whose products are exact in any order of addition, with many ties."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, (rows, width)).astype(np.float32))


def brute_force(
    descriptors0: torch.Tensor, descriptors1: torch.Tensor
) -> tuple[list[tuple[int, int]], list[float]]:
    """The definition, in NumPy float64: argmax takes the first of equals."""
    similarity = descriptors0.double().numpy() @ descriptors1.double().numpy().T
    best1, best0 = similarity.argmax(axis=1), similarity.argmax(axis=0)
    pairs = [(i, int(j)) for i, j in enumerate(best1) if best0[j] == i]
    return pairs, [similarity[pair] for pair in pairs]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    d=st.integers(1, 6),
    block=st.integers(1, 80),
    seed=st.integers(0, 9),
)
def test_ties_within_and_across_tiles_go_to_the_lowest_index(
    n: int, m: int, d: int, block: int, seed: int
) -> None:
    descriptors0, descriptors1 = whole_numbers(n, d, seed), whole_numbers(m, d, seed + 100)
    pairs, similarity = brute_force(descriptors0, descriptors1)
    index, found = mutual_nearest(descriptors0, descriptors1, block=block)
    assert [tuple(pair) for pair in index.tolist()] == pairs
    assert found.tolist() == similarity


def test_one_way_search_agrees_with_the_definition_over_several_default_tiles() -> None:
    descriptors0, descriptors1 = whole_numbers(1100, 8, 0), whole_numbers(5300, 8, 1)
    index, similarity = nearest(descriptors0, descriptors1)
    expected = (descriptors0.double() @ descriptors1.double().T).numpy().argmax(axis=1)
    assert index.tolist() == expected.tolist()
    assert torch.equal(similarity, (descriptors0 * descriptors1[index]).sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_real_valued_descriptors_match_kornia(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [
        torch.nn.functional.normalize(torch.randn(n, 128, generator=generator, dtype=dtype), dim=1)
        for n in (1500, 1200)
    ]
    index, similarity = mutual_nearest(*sets)
    distance, expected = match_mnn(*sets)
    order = expected[:, 0].argsort()  # kornia lists the pairs in the order of the smaller set
    distance, expected = distance[order], expected[order]
    assert torch.equal(index, expected)
    torch.testing.assert_close((2 - 2 * similarity).sqrt(), distance[:, 0], rtol=0, atol=2e-6)


def test_similarities_are_exact_to_float32_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    sets = [
        torch.nn.functional.normalize(torch.randn(800, 256, generator=generator), dim=1) for _ in range(2)
    ]
    index, similarity = mutual_nearest(*sets)
    truth = (sets[0][index[:, 0]].double() * sets[1][index[:, 1]].double()).sum(1)
    # bfloat16, which some processors substitute for float32 on request, would be off by 1e-3.
    assert (similarity - truth).abs().max() < 1e-6


def test_swapping_the_sets_swaps_the_pairs() -> None:
    descriptors0, descriptors1 = whole_numbers(90, 5, 3), whole_numbers(60, 5, 4)
    forward, _ = mutual_nearest(descriptors0, descriptors1, block=16)
    backward, _ = mutual_nearest(descriptors1, descriptors0, block=16)
    assert sorted(forward.tolist()) == sorted(backward.flip(1).tolist())


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty_sets_give_empty_pairs(n: int, m: int) -> None:
    index, similarity = mutual_nearest(torch.ones(n, 4), torch.ones(m, 4))
    assert index.shape == (0, 2) and index.dtype == torch.int64
    assert similarity.shape == (0,) and similarity.dtype == torch.float32
    one_way, values = nearest(torch.ones(n, 4), torch.ones(m, 4))
    assert one_way.tolist() == [-1] * n and values.tolist() == [-np.inf] * n


def test_equal_descriptors_give_one_pair() -> None:
    index, _ = mutual_nearest(torch.ones(1300, 4), torch.ones(2700, 4))
    assert index.tolist() == [[0, 0]]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    d=st.integers(1, 6),
    block=st.integers(1, 80),
    seed=st.integers(0, 9),
    both_directions=st.booleans(),
)
def test_seconds_are_the_largest_of_all_other_similarities(
    n: int, m: int, d: int, block: int, seed: int, both_directions: bool
) -> None:
    descriptors0, descriptors1 = whole_numbers(n, d, seed), whole_numbers(m, d, seed + 100)
    index, similarity, second = mutual_nearest_with_second(
        descriptors0, descriptors1, both_directions=both_directions, block=block
    )
    pairs, expected = brute_force(descriptors0, descriptors1)
    assert [tuple(pair) for pair in index.tolist()] == pairs
    assert similarity.tolist() == expected
    whole = descriptors0.double().numpy() @ descriptors1.double().numpy().T
    others = [(np.delete(whole[i], j), np.delete(whole[:, j], i)) for i, j in pairs]
    seconds = [[one.max(initial=-np.inf) for one in pair[: 1 + both_directions]] for pair in others]
    assert second.tolist() == seconds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(500, 1000), (37, 517), (512, 31), (3, 1024)])
def test_seconds_of_one_tile_are_bitwise_those_of_the_sorted_product(
    n: int, m: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    sets = [torch.randn(count, 24, generator=generator, dtype=dtype) for count in (n, m)]
    index, similarity, second = mutual_nearest_with_second(*sets, both_directions=True)
    product = matmul_nt(*sets)
    rows, columns = product.topk(2, dim=1).values, product.topk(2, dim=0).values
    assert torch.equal(similarity, rows[index[:, 0], 0]) and second.dtype == dtype
    assert torch.equal(second, torch.stack([rows[index[:, 0], 1], columns[1, index[:, 1]]], dim=1))


def test_seconds_survive_from_tile_to_tile() -> None:
    descriptors0, descriptors1 = whole_numbers(1100, 12, 5), whole_numbers(2300, 12, 6)
    index, _, second = mutual_nearest_with_second(descriptors0, descriptors1, both_directions=True)
    product = descriptors0 @ descriptors1.T  # whole numbers: exact
    assert len(index) > 20
    assert torch.equal(second[:, 0], product.topk(2, dim=1).values[index[:, 0], 1])
    assert torch.equal(second[:, 1], product.topk(2, dim=0).values[1, index[:, 1]])


def test_where_two_tie_the_second_equals_the_best() -> None:
    index, similarity, second = mutual_nearest_with_second(
        torch.ones(600, 4), torch.ones(1300, 4), both_directions=True
    )
    assert (index.tolist(), similarity.tolist(), second.tolist()) == ([[0, 0]], [4.0], [[4.0, 4.0]])


def test_without_another_descriptor_the_second_is_minus_infinity() -> None:
    one, three = torch.ones(1, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert mutual_nearest_with_second(one, three, both_directions=True)[2].tolist() == [[1.0, -np.inf]]
    assert mutual_nearest_with_second(three, one, both_directions=True)[2].tolist() == [[-np.inf, 1.0]]
    assert mutual_nearest_with_second(one, one, both_directions=False)[2].tolist() == [[-np.inf]]


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("both_directions", [False, True])
def test_empty_sets_give_empty_seconds(n: int, m: int, both_directions: bool) -> None:
    index, similarity, second = mutual_nearest_with_second(
        torch.ones(n, 4), torch.ones(m, 4), both_directions=both_directions
    )
    assert (index.shape, similarity.shape, second.shape) == ((0, 2), (0,), (0, 1 + both_directions))
    assert second.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_loses_in_the_kernel(native_extension: Path, dtype: torch.dtype) -> None:
    """Products of finite descriptors may overflow to infinities of both signs, whose sum is NaN."""
    tile = torch.from_numpy(np.random.default_rng(0).normal(size=(70, 600))).to(dtype)
    tile[torch.from_numpy(np.random.default_rng(1).uniform(size=tile.shape) < 0.3)] = torch.nan
    tile[5], tile[:, 7] = torch.nan, torch.nan
    sides = [module._Best.none_yet(count, tile, seconds=True) for count in tile.shape]
    module._update_native(tile, slice(0, 70), slice(0, 600), *sides)
    for side, numbers in zip(
        sides, (tile.nan_to_num(-torch.inf), tile.nan_to_num(-torch.inf).T), strict=True
    ):
        best = numbers.topk(2, dim=1)
        assert torch.equal(side.value, best.values[:, 0]) and torch.equal(side.second, best.values[:, 1])
        assert torch.equal(side.index, torch.where(best.values[:, 0].isinf(), -1, best.indices[:, 0]))


def test_kernel_refuses_results_that_do_not_fit(native_extension: Path) -> None:
    tile = torch.zeros(4, 6)
    rows, columns = (module._Best.none_yet(count, tile, seconds=True) for count in tile.shape)
    short = module._Best(columns.value, columns.index, columns.second[:5])
    nothing = module._Best.none_yet(0, tile, seconds=False)
    for bad, message in (
        (short, "expected as many as best values"),
        (nothing, "come with the best of columns"),
    ):
        with pytest.raises(RuntimeError, match=message):
            module._update_native(tile, slice(0, 4), slice(0, 6), rows, bad)
    outside = slice(1, 5)
    with pytest.raises(RuntimeError, match="outside of the result"):
        module._update_native(tile, outside, slice(0, 6), rows, columns)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    descriptors = torch.zeros(5, 4)
    descriptors[3, 2] = bad
    with pytest.raises(ShapeError, match="descriptors1: expected finite values"):
        mutual_nearest(torch.ones(2, 4), descriptors)


@pytest.mark.parametrize(
    ("descriptors1", "message"),
    [
        (torch.ones(3, 5), r"descriptors1: expected shape \(M, 4\), got \(3, 5\)"),
        (torch.ones(4), "descriptors1: expected shape"),
        (torch.ones(3, 4, dtype=torch.float64), "descriptors1: expected torch.float32 on cpu"),
    ],
)
def test_misfits_are_named(descriptors1: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        mutual_nearest(torch.ones(2, 4), descriptors1)


def test_integers_and_blocks_of_nothing_are_refused() -> None:
    with pytest.raises(ShapeError, match="float32 or float64"):
        mutual_nearest(torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="block: expected at least 1"):
        mutual_nearest(torch.ones(2, 4), torch.ones(2, 4), block=0)


def test_views_and_tensors_that_want_gradients_are_accepted() -> None:
    descriptors = whole_numbers(6, 40, 7).T.requires_grad_()
    index, similarity = mutual_nearest(descriptors, descriptors)
    assert not similarity.requires_grad
    pairs, _ = brute_force(descriptors.detach(), descriptors.detach())
    assert [tuple(pair) for pair in index.tolist()] == pairs


_PEAK_MEMORY = """
import torch
from matchlib.ops.nearest import mutual_nearest
generator = torch.Generator().manual_seed(0)
sets = [torch.randn(20_000, 16, generator=generator) for _ in range(2)]
mutual_nearest(sets[0][:600], sets[1][:3000])
def high_water_kb():  # getrusage's figure would be inherited from the process of the tests
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
open("/proc/self/clear_refs", "w").write("5")  # the mark starts again from what is resident now
before = high_water_kb()
mutual_nearest(*sets)
print((high_water_kb() - before) / 1024)
"""


def test_the_whole_matrix_is_never_in_memory(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = "native" in request.node.callspec.params.values()
    folder = request.getfixturevalue("native_extension") if native else ""
    monkeypatch.setenv("MATCHLIB_EXTENSION", str(folder))
    output = subprocess.run(
        [sys.executable, "-c", _PEAK_MEMORY], capture_output=True, text=True, check=True
    ).stdout
    assert float(output) < 100, "20,000 x 20,000 similarities take 1,526 MiB"
