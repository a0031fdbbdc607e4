"""The matcher under its settings against the definition in float64 and against OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError
from matchlib.matching.config import MatcherConfig
from matchlib.matching.matcher import match_descriptors
from matchlib.ops import nearest
from matchlib.ops.matmul import matmul_nt


def unit_rows(seed: int, n: int, d: int) -> torch.Tensor:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def by_definition(a: torch.Tensor, b: torch.Tensor, config: MatcherConfig) -> list[list[int]]:
    """Every clause of the settings as a sentence about the whole distance matrix."""
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    found = []
    for i, j in np.ndindex(*distance.shape):
        keeps = distance[i].argmin() == j and distance[:, j].argmin() == i
        if config.ratio is not None:
            others = [np.delete(distance[i], j)]
            others += [np.delete(distance[:, j], i)] if config.both_directions else []
            keeps &= all(distance[i, j] <= config.ratio * o.min(initial=np.inf) for o in others)
        if config.min_similarity is not None:
            keeps &= bool(1 - distance[i, j] ** 2 / 2 >= config.min_similarity)
        if keeps:
            found.append([i, j])
    return found if len(found) >= config.min_matches else []


CONFIGS = [
    MatcherConfig(),
    MatcherConfig(kind="mutual_ratio", ratio=0.9),
    MatcherConfig(kind="mutual_ratio", ratio=0.9, both_directions=True),
    MatcherConfig(kind="mutual_ratio", ratio=0.75, both_directions=True, min_similarity=0.5),
    MatcherConfig(min_similarity=0.6, min_matches=4),
]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**20), n=st.integers(0, 30), m=st.integers(0, 30), config=st.sampled_from(CONFIGS)
)
def test_matches_are_those_of_the_definition(seed: int, n: int, m: int, config: MatcherConfig) -> None:
    a, b = unit_rows(seed, n, 4), unit_rows(seed + 1, m, 4)
    index, similarity = match_descriptors(a, b, config)
    expected = by_definition(a, b, config)
    assert index.tolist() == expected
    torch.testing.assert_close(similarity, (a @ b.T)[index[:, 0], index[:, 1]])


def test_tiles_of_every_size_agree_with_opencv() -> None:
    """More than one tile both ways (512 x 1024), half of the second image a noisy copy of the first."""
    a = unit_rows(0, 1500, 32).float()
    noisy = a[:900] + 0.7 * unit_rows(1, 900, 32).float()
    b = torch.cat([torch.nn.functional.normalize(noisy, dim=1), unit_rows(2, 1300, 32).float()])
    config = MatcherConfig(kind="mutual_ratio", ratio=0.75, both_directions=True)
    index, _ = match_descriptors(a, b, config)
    both = []
    for query, train in ((a, b), (b, a)):
        pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(query.numpy(), train.numpy(), k=2)
        both.append({(m.queryIdx, m.trainIdx) for m, n in pairs if m.distance <= 0.75 * n.distance})
    expected = sorted(both[0] & {(j, i) for i, j in both[1]})
    assert [tuple(row) for row in index.tolist()] == expected
    assert 300 < len(expected) < 900


def test_both_directions_is_symmetric_and_one_direction_is_not() -> None:
    a, b = unit_rows(3, 200, 4).float(), unit_rows(4, 300, 4).float()
    both = MatcherConfig(kind="mutual_ratio", ratio=0.9, both_directions=True)
    one = MatcherConfig(kind="mutual_ratio", ratio=0.9)
    for config, is_symmetric in ((both, True), (one, False)):
        there = {tuple(row) for row in match_descriptors(a, b, config)[0].tolist()}
        back = {(i, j) for j, i in match_descriptors(b, a, config)[0].tolist()}
        assert (there == back) is is_symmetric and there


def test_of_equal_descriptors_only_those_at_no_distance_pass_the_ratio() -> None:
    """Twice the same descriptor in image 1: the distances 0 and 0 meet every ratio, sqrt(0.8) twice meets none."""
    a = torch.eye(2)
    at_none, at_some = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    config = MatcherConfig(kind="mutual_ratio", ratio=0.99)
    assert match_descriptors(a, torch.stack([at_none, at_none]), config)[0].tolist() == [[0, 0]]
    assert match_descriptors(a[:1], torch.stack([at_some, at_some]), config)[0].tolist() == []


@pytest.mark.parametrize("both_directions", [False, True])
def test_a_single_descriptor_has_nothing_to_compare_with(both_directions: bool) -> None:
    config = MatcherConfig(kind="mutual_ratio", ratio=0.01, both_directions=both_directions)
    assert match_descriptors(unit_rows(5, 1, 4), unit_rows(6, 1, 4), config)[0].tolist() == [[0, 0]]


def test_ratio_in_both_directions_needs_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(a_ND: torch.Tensor, b_MD: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a_ND) * len(b_MD))
        return matmul_nt(a_ND, b_MD)

    monkeypatch.setattr(nearest, "matmul_nt", counted)
    a, b = unit_rows(7, 900, 8), unit_rows(8, 1500, 8)
    match_descriptors(a, b, MatcherConfig(kind="mutual_ratio", ratio=0.9, both_directions=True))
    assert sum(sizes) == len(a) * len(b)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"kind": "mutual_ratio"}, "ratio"),
        ({"ratio": 0.8}, "ratio"),
        ({"both_directions": True}, "both_directions"),
        ({"kind": "mutual_ratio", "ratio": 0.0}, "ratio"),
        ({"kind": "mutual_ratio", "ratio": 1.1}, "ratio"),
        ({"max_keypoints": 0}, "max_keypoints"),
        ({"min_similarity": 1.5}, "min_similarity"),
        ({"min_matches": -1}, "min_matches"),
    ],
)
def test_impossible_settings_are_refused_by_name(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: expected"):
        MatcherConfig(**values)
