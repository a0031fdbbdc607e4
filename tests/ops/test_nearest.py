"""Exactness, tie rule, edge cases and memory of the nearest neighbour search."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.feature import match_mnn

from matchlib.errors import ShapeError
from matchlib.ops import nearest as module
from matchlib.ops.extension import ExtensionInfo
from matchlib.ops.nearest import mutual_nearest, nearest


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
