"""The PCK evaluation with describers whose result is known beforehand, and on real sequences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from matchlib.datasets.images import write_image
from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.evaluation.metrics import warp_points
from matchlib.evaluation.pck import evaluate_pck, evaluate_pck_ablation, grid_points
from matchlib.evaluation.pck_config import PCK_PROTOCOLS, PCKProtocol
from matchlib.evaluation.pck_frames import true_scale
from matchlib.evaluation.pck_matchers import nearest_candidates
from matchlib.evaluation.pck_points import read_points, write_points
from matchlib.evaluation.pck_result import read_pck_ablation, write_pck_ablation, write_pck_result
from matchlib.evaluation.pck_table import pck_ablation_table
from matchlib.ops.nearest import nearest

from .pck_world import RandomDescriber, ToyDense, ToyDescriber, textured_image, translation, write_world

AS_CODED, AS_DESCRIBED = (
    replace(protocol, sequences="all_present", longer_side=None) for protocol in PCK_PROTOCOLS
)
I5 = [np.eye(3)] * 5
TILTED = np.array([[0.9, 0.08, 6], [-0.06, 0.95, 4], [4e-4, -3e-4, 1]])


@dataclass(frozen=True)
class World:
    """A folder of sequences and its points."""

    root: Path
    points: Path


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    def build(homographies: dict[str, list[np.ndarray]], protocol: PCKProtocol, *, margin: int = 0) -> World:
        root = write_world(tmp_path / "hp", homographies, margin=margin)
        write_points(root, protocol, tmp_path / "points.h5")
        return World(root, tmp_path / "points.h5")

    return build


def partner_finder(H: np.ndarray) -> ToyDescriber:
    """The perfect descriptor: a point of image k carries the code of its partner in image 1."""
    back = torch.from_numpy(np.linalg.inv(H))

    def place(points: Tensor, k: int) -> Tensor:
        if k == 1:
            return points
        xyw = torch.cat([points, torch.ones_like(points[:, :1])], dim=1) @ back.T
        return xyw[:, :2] / xyw[:, 2:]

    return ToyDescriber(place)


# ---------------------------------------------------------------- known answers
@pytest.mark.parametrize("protocol", [AS_CODED, AS_DESCRIBED], ids=lambda p: p.name)
def test_the_same_picture_is_matched_without_error(
    world: Callable[..., World], protocol: PCKProtocol
) -> None:
    protocol = replace(protocol, grid_step=1)
    w = world({"i_a": I5, "v_b": I5}, protocol)
    result = evaluate_pck(ToyDescriber(), w.root, w.points, protocol=protocol)
    assert result.pck("all") == result.pck("illumination") == result.pck("viewpoint") == 1
    assert (result.curve() == 1).all()
    assert {pair.candidates for pair in result.pairs} == (
        {96 * 72} if protocol.candidates == "grid" else {692}
    )
    assert [(pair.sequence, pair.k) for pair in result.pairs] == [
        (s, k) for s in ("i_a", "v_b") for k in range(2, 7)
    ]


def test_a_known_shift_gives_a_step(world: Callable[..., World]) -> None:
    protocol = replace(AS_DESCRIBED, grid_step=1, curve_px=(1.0, 2.0, 2.999, 3.0, 4.0), threshold_px=3.0)
    w = world({"i_a": I5}, protocol, margin=10)
    shifts = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    off = ToyDescriber(
        lambda points, k: points - torch.tensor([shifts[k], 0.0])
    )  # found k - 1 px further right
    result = evaluate_pck(off, w.root, w.points, protocol=protocol)
    assert [pair.curve for pair in result.pairs] == [
        (1, 1, 1, 1, 1),
        (0, 1, 1, 1, 1),
        (0, 0, 0, 1, 1),
        (0, 0, 0, 0, 1),
        (0, 0, 0, 0, 0),
    ]
    assert [pair.correct for pair in result.pairs] == [1, 1, 1, 0, 0]
    assert result.pck() == pytest.approx(0.6)
    np.testing.assert_allclose(result.curve(), [0.2, 0.4, 0.4, 0.6, 0.8])


def test_the_grid_bounds_the_error_of_a_perfect_descriptor(world: Callable[..., World]) -> None:
    protocol = replace(AS_DESCRIBED, grid_step=4, curve_px=(1.0, 2.0, 2.83, 3.0))
    w = world({"v_a": [TILTED] * 5}, protocol)
    (pair, *_) = read_points(w.points).pairs
    result = evaluate_pck(partner_finder(TILTED), w.root, w.points, protocol=protocol)
    nearest = np.minimum(4 * np.round(pair.points1 / 4), [92, 68])
    reachable = [np.mean(np.linalg.norm(nearest - pair.points1, axis=1) <= t) for t in protocol.curve_px]
    assert 0 < reachable[0] < reachable[1] < 1
    np.testing.assert_allclose(
        result.pairs[0].curve, reachable, atol=0.05
    )  # dissimilarity is not quite distance
    assert result.pairs[0].curve[2] > 0.95


def test_truncation_hides_an_error_of_less_than_a_pixel(world: Callable[..., World], tmp_path: Path) -> None:
    H = translation(0.5, -0.9)
    protocol = replace(AS_DESCRIBED, grid_step=1, curve_px=(0.5, 0.52), points_from="uniform", points=10**5)
    w = world({"v_a": [H] * 5}, protocol)
    nearest_pixel = ToyDescriber(
        lambda points, k: points - torch.tensor([0.0, -1.0] if k > 1 else [0.0, 0.0])
    )
    result = evaluate_pck(nearest_pixel, w.root, w.points, protocol=protocol)
    assert result.pairs[0].curve == (0, 1), "each point errs by hypot(0.5, 0.1) = 0.51"
    cut = replace(protocol, truncate=True, points=10**5)
    write_points(w.root, cut, tmp_path / "cut.h5")
    trunc = evaluate_pck(nearest_pixel, w.root, tmp_path / "cut.h5", protocol=cut)
    # Of 72 rows the first is moved to row 0 instead of -0.9 and finds it; all others find their row exactly.
    assert trunc.pairs[0].curve == (1, 1)
    assert trunc.pairs[0].points == 96 * 72 and result.pairs[0].points == 95 * 71


def test_descriptors_that_say_nothing_score_by_chance(world: Callable[..., World]) -> None:
    protocol = replace(AS_CODED, threshold_px=10.0)
    w = world({"i_a": I5, "v_b": [TILTED] * 5}, protocol)
    result = evaluate_pck(RandomDescriber(), w.root, w.points, protocol=protocol)
    chance = []
    for pair in read_points(w.points).pairs:
        distance = np.linalg.norm(pair.points1[:, None] - pair.points1[None], axis=2)
        chance.append((distance <= 10).mean())
    assert 0.01 < np.mean(chance) < 0.2
    # 10 pairs of some 600 points: the standard deviation of the mean is about 0.003, more where winners repeat
    assert result.pck() == pytest.approx(np.mean(chance), abs=0.02)


def test_ties_go_to_the_first_candidate(world: Callable[..., World]) -> None:
    w = world({"i_a": I5}, AS_DESCRIBED)
    constant = ToyDescriber(lambda points, k: torch.zeros_like(points))
    result = evaluate_pck(constant, w.root, w.points, protocol=AS_DESCRIBED)
    for pair, points in zip(result.pairs, read_points(w.points).pairs, strict=True):
        assert pair.correct == np.mean(np.linalg.norm(points.points1, axis=1) <= 5)


def test_a_mean_of_pairs_is_not_pooled_over_points(world: Callable[..., World]) -> None:
    far = translation(85, 0)  # 11 columns are left
    w = world({"v_a": [np.eye(3), far, far, far, far]}, AS_CODED)
    right_for_2 = ToyDescriber(lambda points, k: points if k < 3 else torch.zeros_like(points))
    result = evaluate_pck(right_for_2, w.root, w.points, protocol=replace(AS_CODED, threshold_px=0.5))
    points = [pair.points for pair in result.pairs]
    assert points[0] > 5 * max(points[1:])
    assert result.pck() == pytest.approx(np.mean([pair.correct for pair in result.pairs]))
    assert result.pck() < 0.5


def test_splits_go_by_the_name_of_the_sequence_and_not_by_the_path(tmp_path: Path) -> None:
    root = write_world(tmp_path / "v_world" / "v_hpatches", {"i_a": I5, "v_i_b": I5})
    write_points(root, AS_CODED, tmp_path / "p.h5")
    result = evaluate_pck(ToyDescriber(), root, tmp_path / "p.h5", protocol=AS_CODED)
    assert {pair.sequence for pair in result.pairs_of("illumination")} == {"i_a"}
    assert {pair.sequence for pair in result.pairs_of("viewpoint")} == {"v_i_b"}


def test_grid_points_run_along_the_rows() -> None:
    assert grid_points((9, 5), 4).tolist() == [[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]]
    assert grid_points((1, 1), 4).tolist() == [[0, 0]]
    assert len(grid_points((640, 480), 4)) == 19200


# ---------------------------------------------------------------- what the describer is asked
def test_image_1_is_described_once_for_each_sequence(world: Callable[..., World]) -> None:
    w = world({"i_a": I5, "v_b": I5}, AS_CODED)
    describer = ToyDescriber()
    evaluate_pck(describer, w.root, w.points, protocol=AS_CODED)
    assert [k for k, _ in describer.seen] == [1, 2, 3, 4, 5, 6] * 2
    assert all(scale is None for _, scale in describer.seen)


def test_an_oracle_is_given_the_scale_of_both_images_and_says_so(world: Callable[..., World]) -> None:
    half = np.diag([0.5, 0.5, 1.0])
    w = world({"v_b": [half, TILTED, TILTED, TILTED, TILTED]}, AS_CODED)
    oracle = ToyDescriber(uses_true_scale=True)
    result = evaluate_pck(oracle, w.root, w.points, protocol=AS_CODED)
    assert result.uses_truth
    assert [k for k, _ in oracle.seen] == [1, 2, 1, 3, 1, 4, 1, 5, 1, 6]
    scales = [scale for _, scale in oracle.seen]
    np.testing.assert_allclose(scales[0], 2)
    np.testing.assert_allclose(scales[1], 0.5)
    np.testing.assert_array_equal(scales[2], true_scale(TILTED, (96, 72)))
    np.testing.assert_allclose(scales[3], true_scale(np.linalg.inv(TILTED), (96, 72)))


@dataclass
class TwoMembers(ToyDescriber):
    """Images k > 1 agree with image 1 only through the given pair of members; all else is far away."""

    members: tuple[str, ...] = ("fine", "coarse")
    speaks: tuple[int, int] = (0, 1)

    def describe(self, image: np.ndarray, *, scale: np.ndarray | None = None) -> TwoDense:
        return TwoDense(super().describe(image), self.speaks)


@dataclass
class TwoDense:
    dense: ToyDense
    speaks: tuple[int, int]

    def at(self, points: Tensor) -> Tensor:
        good = self.dense.at(points)[:, 0]
        first = self.dense.k == 1
        sets = torch.zeros(len(points), 2, 8)
        sets[..., 0 if first else 1] = -1.0 if first else 1.0  # silent members: orthogonal to each other
        sets[:, self.speaks[0 if first else 1]] = good
        return sets


@pytest.mark.parametrize("speaks", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_sets_are_as_near_as_their_nearest_allowed_members(
    world: Callable[..., World], speaks: tuple[int, int]
) -> None:
    w = world({"i_a": I5}, AS_CODED)
    every = evaluate_pck(TwoMembers(speaks=speaks), w.root, w.points, protocol=AS_CODED)
    assert every.pck() == 1
    assert every.members == ("fine", "coarse")
    restricted = TwoMembers(speaks=speaks, member_pairs="not_coarse_coarse")
    without = evaluate_pck(restricted, w.root, w.points, protocol=AS_CODED)
    assert (without.pck() == 1) == (speaks != (1, 1))


# ---------------------------------------------------------------- matchers
def test_flann_over_sets_is_refused_before_any_work(world: Callable[..., World]) -> None:
    w = world({"i_a": I5}, AS_CODED)
    describer = TwoMembers()
    with pytest.raises(ConfigError, match=r"matcher: flann is not defined for sets of 2 .*fine, coarse"):
        evaluate_pck(describer, w.root, w.points, protocol=replace(AS_CODED, matcher="flann"))
    assert not describer.seen
    ablation = evaluate_pck_ablation(describer, w.root, w.points, protocol=AS_CODED)
    assert ablation.flann is None and ablation.exact.members == ("fine", "coarse")
    write_pck_ablation(ablation, w.points.with_name("a.json"))
    assert read_pck_ablation(w.points.with_name("a.json")) == ablation
    assert pck_ablation_table([ablation])["matcher"].unique().tolist() == ["exact"]


def test_matchers_find_planted_neighbours() -> None:
    generator = np.random.default_rng(3)
    candidates = generator.normal(size=(300, 32)).astype(np.float32)
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    order = generator.permutation(300)[:40]
    noisy = candidates[order] + 0.01 * generator.normal(size=(40, 32)).astype(np.float32)
    queries = torch.from_numpy(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))[:, None]
    for matcher in ("exact", "flann"):
        found = nearest_candidates(
            queries, torch.from_numpy(candidates)[:, None], matcher=matcher, member_pairs="all", seed=2**62
        )
        assert found.dtype == np.int64 and found.shape == (40,)
        assert np.mean(found == order) >= (1.0 if matcher == "exact" else 0.9)


def test_exact_is_the_protocols_default_and_flann_repeats_itself(
    world: Callable[..., World], tmp_path: Path
) -> None:
    w = world({"i_a": I5, "v_b": [TILTED] * 5}, AS_CODED)
    describer = partner_finder(TILTED)
    ablation = evaluate_pck_ablation(describer, w.root, w.points, protocol=AS_CODED, label="x")
    again = evaluate_pck_ablation(describer, w.root, w.points, protocol=AS_CODED, label="x")
    write_pck_ablation(ablation, tmp_path / "1.json")
    write_pck_ablation(again, tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert ablation.exact == evaluate_pck(describer, w.root, w.points, protocol=AS_CODED, label="x")
    assert ablation.flann.protocol.matcher == "flann"
    flann = evaluate_pck(describer, w.root, w.points, protocol=replace(AS_CODED, matcher="flann"), label="x")
    assert flann == ablation.flann
    assert 0.5 < ablation.agreement() <= 1


def test_agreement_counts_the_queries_that_both_answer_alike(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world({"i_a": I5}, AS_CODED)

    def half_wrong(queries: np.ndarray, candidates: np.ndarray, seed: int) -> np.ndarray:
        right = (queries @ candidates.T).argmax(axis=1)
        return np.where(np.arange(len(right)) % 2, right, -1)

    monkeypatch.setattr("matchlib.evaluation.pck_matchers._flann", half_wrong)
    ablation = evaluate_pck_ablation(ToyDescriber(), w.root, w.points, protocol=AS_CODED)
    assert ablation.same_index == (0.5,) * 5
    assert ablation.exact.pck() == 1
    assert ablation.flann.pck() == 0.5, "a query without an answer is wrong"


def test_candidates_at_one_place_are_as_good_as_each_other(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from twice as far, neighbouring partners are cut to the same pixel."""
    protocol = replace(AS_CODED, points_from="uniform")
    w = world({"v_a": [np.diag([0.5, 0.5, 1.0])] * 5}, protocol)
    partners = read_points(w.points).pairs[0].points1
    assert len(np.unique(partners, axis=0)) < 0.9 * len(partners)

    def last_of_equals(queries: np.ndarray, candidates: np.ndarray, seed: int) -> np.ndarray:
        _, name = np.unique(candidates, axis=0, return_inverse=True)
        exact, _ = nearest(torch.from_numpy(queries), torch.from_numpy(candidates))
        return np.array([np.nonzero(name == name[index])[0][-1] for index in exact.tolist()])

    monkeypatch.setattr("matchlib.evaluation.pck_matchers._flann", last_of_equals)
    ablation = evaluate_pck_ablation(ToyDescriber(), w.root, w.points, protocol=protocol)
    assert ablation.exact.pairs == ablation.flann.pairs
    assert ablation.same_index == (1.0,) * 5


# ---------------------------------------------------------------- bad input
def test_points_of_another_protocol_are_refused(world: Callable[..., World]) -> None:
    w = world({"i_a": I5}, AS_CODED)
    with pytest.raises(ConfigError, match=r"points\.h5: drawn for another protocol .*seed: 0 instead of 7"):
        evaluate_pck(ToyDescriber(), w.root, w.points, protocol=replace(AS_CODED, seed=7))
    other = replace(AS_CODED, threshold_px=9.0, candidates="grid", name="mine")
    assert evaluate_pck(ToyDescriber(), w.root, w.points, protocol=other).protocol == other


@pytest.mark.parametrize("k", [1, 4])
def test_a_changed_image_is_noticed(world: Callable[..., World], k: int) -> None:
    w = world({"i_a": I5}, AS_CODED)
    write_image(w.root / "i_a" / f"{k}.ppm", textured_image(k, margin=3))
    with pytest.raises(DataError, match=rf"{k}\.ppm: not the image that the query points were drawn for"):
        evaluate_pck(ToyDescriber(), w.root, w.points, protocol=AS_CODED)


@pytest.mark.parametrize(
    "describer, message",
    [
        (
            ToyDescriber(descriptor_dim=9),
            r"descriptors of toy: expected shape \(692, 1, 9\), got \(692, 1, 8\)",
        ),
        (ToyDescriber(lambda points, k: points * np.nan), "descriptors of toy: expected finite values"),
    ],
)
def test_descriptors_of_another_shape_or_without_value_are_refused(
    world: Callable[..., World], describer: ToyDescriber, message: str
) -> None:
    w = world({"i_a": I5}, AS_CODED)
    with pytest.raises(ShapeError, match=message):
        evaluate_pck(describer, w.root, w.points, protocol=AS_CODED)


def test_pairs_without_points_stay_in_the_result_by_name(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    w = world({"v_a": [np.eye(3), translation(5000, 0), np.eye(3), np.eye(3), np.eye(3)]}, AS_CODED)
    result = evaluate_pck(ToyDescriber(), w.root, w.points, protocol=AS_CODED)
    assert result.left_out == ("v_a 1-3",)
    assert [pair.k for pair in result.pairs] == [2, 4, 5, 6]
    assert "v_a 1-3" in caplog.text


# ---------------------------------------------------------------- real sequences
class SiftAtPoints:
    """cv2's SIFT descriptor of fixed size and orientation."""

    name = "sift-at-points"
    fingerprint = "0" * 64
    descriptor_dim = 128
    members = ("only",)
    member_pairs = "all"
    uses_true_scale = False

    def __init__(self) -> None:
        self.grey = np.empty((0, 0), np.uint8)

    def describe(self, image: np.ndarray, *, scale: np.ndarray | None = None) -> SiftAtPoints:
        dense = SiftAtPoints()
        dense.grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return dense

    def at(self, points: Tensor) -> Tensor:
        keypoints = [cv2.KeyPoint(float(x), float(y), 12.0, 0.0) for x, y in points.tolist()]
        _, raw = cv2.SIFT.create().compute(self.grey, keypoints)
        vectors = torch.from_numpy(raw).float()[:, None]
        return vectors / vectors.norm(dim=2, keepdim=True).clamp_min(1e-12)


def test_real_sequences_exact_search_beats_flann(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = shared_data("hpatches")
    protocol = replace(PCK_PROTOCOLS[0], sequences="all_present", longer_side=320, points=250)
    points = write_points(root, protocol, tmp_path / "p.h5")
    assert len(points.pairs) == 20 and not points.left_out
    for pair in points.pairs:
        assert max(pair.size0) == 320
        partners = warp_points(pair.points0, pair.H_0to1)
        assert np.abs(partners - pair.points1).max() <= 1  # truncated
    ablation = evaluate_pck_ablation(SiftAtPoints(), root, tmp_path / "p.h5", protocol=protocol)
    exact, flann = ablation.exact, ablation.flann
    assert exact.pck() >= flann.pck()
    assert 0.6 < ablation.agreement() < 1
    assert exact.pck("illumination") > 0.9 > exact.pck("viewpoint") > 0.2
    write_pck_result(exact, tmp_path / "1.json")
    again = evaluate_pck(SiftAtPoints(), root, tmp_path / "p.h5", protocol=protocol)
    write_pck_result(again, tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert "seconds" not in json.loads((tmp_path / "1.json").read_text())


def test_real_sequences_a_grid_is_harder_than_partners(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "two"
    root.mkdir()
    for name in ("v_boat", "v_wormhole"):
        (root / name).symlink_to(shared_data("hpatches") / name)
    protocol = replace(
        PCK_PROTOCOLS[1], sequences="all_present", longer_side=160, points=150, candidates="partners"
    )
    write_points(root, protocol, tmp_path / "p.h5")
    partners = evaluate_pck(SiftAtPoints(), root, tmp_path / "p.h5", protocol=protocol)
    grid = replace(protocol, candidates="grid")
    on_grid = evaluate_pck(SiftAtPoints(), root, tmp_path / "p.h5", protocol=grid)
    assert 0.05 < on_grid.pck("viewpoint") < partners.pck("viewpoint")
    assert on_grid.points_digest == partners.points_digest
