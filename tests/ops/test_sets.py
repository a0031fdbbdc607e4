"""Nearest sets of descriptors: the definition, the excluded pair of coarse members, ties, edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.ops import mining_native
from matchlib.ops.extension import ExtensionInfo
from matchlib.ops.nearest import mutual_nearest
from matchlib.ops.sets import MemberPairs, mutual_nearest_in_sets, nearest_in_sets


@pytest.fixture(params=["reference", "native"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native":
        request.getfixturevalue("native_extension")
        info = ExtensionInfo("native", "", frozenset({"cpu"}))
    else:
        info = ExtensionInfo("reference", "switched off by the test")
    monkeypatch.setattr(mining_native, "load_extension", lambda: info)


def whole_numbers(count: int, members: int, depth: int, seed: int) -> torch.Tensor:
    """Sets whose dot products are exact, with many ties."""
    values = np.random.default_rng(seed).integers(-2, 3, (count, members, depth))
    return torch.from_numpy(values.astype(np.float32))


def similarities(sets0: torch.Tensor, sets1: torch.Tensor, member_pairs: str) -> np.ndarray:
    """(N, M): the definition, with all member pairs written out."""
    pairs = torch.einsum("nsd,mtd->nmst", sets0.double(), sets1.double())
    if member_pairs == "not_coarse_coarse":
        pairs[..., -1, -1] = -torch.inf
    return pairs.flatten(2).amax(2).numpy()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 60),
    members=st.integers(1, 3),
    depth=st.integers(1, 9),
    member_pairs=st.sampled_from(["all", "not_coarse_coarse"]),
    seed=st.integers(0, 99),
)
def test_ties_go_to_the_lowest_index_both_ways(
    n: int, m: int, members: int, depth: int, member_pairs: MemberPairs, seed: int
) -> None:
    sets0, sets1 = whole_numbers(n, members, depth, seed), whole_numbers(m, members, depth, seed + 100)
    expected = similarities(sets0, sets1, member_pairs)
    index, similarity = nearest_in_sets(sets0, sets1, member_pairs=member_pairs)
    if member_pairs == "not_coarse_coarse" and members == 1:
        assert index.tolist() == [-1] * n and similarity.tolist() == [-np.inf] * n
        assert mutual_nearest_in_sets(sets0, sets1, member_pairs=member_pairs)[0].shape == (0, 2)
        return
    best1, best0 = expected.argmax(axis=1), expected.argmax(axis=0)
    assert index.tolist() == best1.tolist() and similarity.tolist() == expected.max(axis=1).tolist()
    pairs, values = mutual_nearest_in_sets(sets0, sets1, member_pairs=member_pairs)
    assert pairs.tolist() == [[i, int(j)] for i, j in enumerate(best1) if best0[j] == i]
    assert values.tolist() == [expected[i, j] for i, j in pairs.tolist()]


def unit_sets(count: int, members: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, members, 64, generator=generator), dim=2)


@pytest.mark.parametrize("member_pairs", ["all", "not_coarse_coarse"])
def test_real_valued_sets_over_several_tiles(member_pairs: MemberPairs) -> None:
    sets0, sets1 = unit_sets(1300, 2, 0), unit_sets(1700, 2, 1)
    expected = similarities(sets0, sets1, member_pairs)
    index, similarity = nearest_in_sets(sets0, sets1, member_pairs=member_pairs)
    assert index.tolist() == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(similarity.numpy(), expected.max(axis=1), rtol=1e-6)


def test_sets_of_one_are_plain_descriptors() -> None:
    sets0, sets1 = unit_sets(300, 1, 0), unit_sets(200, 1, 1)
    pairs, similarity = mutual_nearest_in_sets(sets0, sets1)
    expected_pairs, expected = mutual_nearest(sets0[:, 0], sets1[:, 0])
    assert torch.equal(pairs, expected_pairs)
    torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-6)


def test_equal_coarse_members_count_only_when_they_may() -> None:
    fine, other, coarse = torch.eye(3)
    sets0 = torch.stack([fine, coarse])[None]
    sets1 = torch.stack([torch.stack([other, coarse]), torch.stack([0.5 * fine, other])])
    assert nearest_in_sets(sets0, sets1)[0].tolist() == [0]
    assert nearest_in_sets(sets0, sets1, member_pairs="not_coarse_coarse")[0].tolist() == [1]


def test_members_are_compared_beyond_float32() -> None:
    """Both sets reach 1 in float32; only in float64 is the second one's other member nearer."""
    tiny = 2.0**-14  # its square is lost beside 1 in float32
    sets0 = torch.tensor([[[1.0, 0.0], [1.0, tiny]]])
    sets1 = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, tiny], [0.0, 0.0]]])
    index, similarity = nearest_in_sets(sets0, sets1)
    assert index.tolist() == [1] and similarity.item() == 1.0


@pytest.mark.parametrize(("n", "m", "members"), [(0, 3, 2), (3, 0, 2), (0, 0, 2), (3, 2, 0)])
@pytest.mark.parametrize("member_pairs", ["all", "not_coarse_coarse"])
def test_nothing_to_compare(n: int, m: int, members: int, member_pairs: MemberPairs) -> None:
    sets0, sets1 = torch.ones(n, members, 4), torch.ones(m, members, 4)
    index, similarity = nearest_in_sets(sets0, sets1, member_pairs=member_pairs)
    assert index.tolist() == [-1] * n and similarity.tolist() == [-np.inf] * n
    pairs, values = mutual_nearest_in_sets(sets0, sets1, member_pairs=member_pairs)
    assert pairs.shape == (0, 2) and pairs.dtype == torch.int64 and values.shape == (0,)


def test_wrong_arguments_are_named() -> None:
    sets = torch.ones(3, 2, 4)
    with pytest.raises(ShapeError, match=r"sets1: expected shape \(M, 2, 4\)"):
        nearest_in_sets(sets, torch.ones(3, 1, 4))
    with pytest.raises(ShapeError, match="member_pairs: expected"):
        nearest_in_sets(sets, sets, member_pairs="some")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="sets0: expected float32 or float64"):
        nearest_in_sets(sets.half(), sets.half())
    with pytest.raises(ShapeError, match="sets1: expected torch.float32"):
        nearest_in_sets(sets, sets.double())
    with pytest.raises(ShapeError, match="sets1: expected finite"):
        mutual_nearest_in_sets(sets, sets / 0)
