"""Pictures: what is drawn where, in which colour."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from matchlib.datasets.batch import PairBatch
from matchlib.methods.posfeat.config import NetworkConfig, PoSFeatConfig, ValidationConfig
from matchlib.methods.posfeat.metrics import Keypoints, epipolar_errors, fundamental_matrices
from matchlib.methods.posfeat.pictures import (
    MAX_QUERIES,
    LineSearch,
    draw_keypoints,
    draw_line_search,
    draw_matches,
    draw_score_maps,
    error_colours,
    search_lines,
)
from matchlib.methods.posfeat.training import build

BLACK = np.zeros((120, 160, 3), np.uint8)  # enlarged twofold
RIGHT = 2 * 160 + 20  # where image 1 begins


def marked(picture: np.ndarray, left: int, right: int) -> np.ndarray:
    """Mean (x, y) of the pixels between two columns that are not background."""
    rows, columns = np.nonzero((picture[:, left:right] != picture[0, left]).any(axis=2))
    return np.array([columns.mean(), rows.mean()])


def test_errors_go_from_green_over_yellow_to_red() -> None:
    green, yellow, red, beyond, infinite, unknown = error_colours(
        np.array([0.0, 2.5, 5.0, 80.0, np.inf, np.nan]), red_px=5.0
    )
    assert green[1] > 2 * green[0] and red[0] > 2 * red[1] and min(yellow[:2]) > 200
    assert red == beyond == infinite == unknown
    redness = [colour[0] - colour[1] for colour in error_colours(np.linspace(0, 5, 20), red_px=5.0)]
    assert all(later >= earlier for earlier, later in pairwise(redness))


def test_keypoints_are_ringed_where_they_are() -> None:
    picture = draw_keypoints(BLACK, BLACK, np.array([[30.0, 40.0]]), np.array([[100.0, 90.0]]))
    assert picture.shape == (240, RIGHT + 2 * 160, 3) and picture.dtype == np.uint8
    # Enlarged, the centre of pixel 30 lies at (30 + 0.5) 2 - 0.5.
    np.testing.assert_allclose(marked(picture, 0, 320), [60.5, 80.5], atol=1)
    np.testing.assert_allclose(marked(picture, RIGHT, picture.shape[1]), [200.5, 180.5], atol=1)
    assert (picture[:, 320:RIGHT] == picture[0, 330]).all() and picture[0, 330].any()  # the gap


def test_a_match_is_a_line_in_its_colour_and_right_ones_lie_above_wrong_ones() -> None:
    across = np.array([[10.0, 60.0]])
    wrong_last = draw_matches(
        BLACK,
        BLACK,
        np.repeat(across, 2, axis=0),
        np.repeat(across, 2, axis=0),
        np.array([0.0, 50.0]),
        red_px=5.0,
    )
    red, green, _ = wrong_last[120:122, 100:300].max(axis=(0, 1)).astype(int)
    assert green > 3 * red
    red, green, _ = draw_matches(BLACK, BLACK, across, across, np.array([np.inf]), red_px=5.0)[121, 200]
    assert red > 2 * green
    nothing = draw_matches(BLACK, BLACK, np.empty((0, 2)), np.empty((0, 2)), np.empty(0), red_px=5.0)
    assert not nothing[:, :320].any()


def test_score_maps_share_one_scale() -> None:
    low, high = np.full((120, 160), 1.0), np.full((120, 160), 4.0)
    picture = draw_score_maps(low, high)
    alone = draw_score_maps(high, high)
    assert (picture[:, RIGHT:] == alone[:, RIGHT:]).all()
    assert (picture[:, :320] != alone[:, :320]).any()
    dark = draw_score_maps(0 * low, 0 * low)  # no division by a maximum of 0
    assert (dark[:, :320] == draw_score_maps(0 * low, high)[:, :320]).all()


def test_searches_run_along_the_epipolar_line_and_see_the_true_place(
    posed_pair: Callable[..., PairBatch],
) -> None:
    batch = posed_pair(seed=2)
    F = fundamental_matrices(batch.T_0to1[0], batch.K0[0], batch.K1[0])
    points = torch.tensor([[64.0, 48.0], [40.0, 30.0], [80.0, 60.0], [60.0, 70.0], [50.0, 50.0]])
    fine = torch.randn(16, 24, 32, generator=torch.Generator().manual_seed(0))
    descriptors = torch.nn.functional.normalize(
        torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    )
    keypoints = Keypoints(points=points, scores=torch.ones(5), descriptors=descriptors)
    searches = search_lines(keypoints, fine, F, (128, 96), samples=50, sampling="exact")
    assert len(searches) == MAX_QUERIES
    for search in searches:
        places = torch.from_numpy(search.places)
        assert places.shape == (50, 2) and search.similarity.shape == (50,)
        assert epipolar_errors(torch.from_numpy(search.query).expand(50, 2), places, F).max() < 1e-2
        assert (places >= -1e-3).all() and (places <= torch.tensor([127.001, 95.001])).all()
        on_border = (places[[0, -1]] < 1e-3) | (places[[0, -1]] > torch.tensor([126.999, 94.999]))
        assert on_border.any(dim=1).all()
        assert np.abs(search.similarity).max() <= 1 + 1e-5
    # A map that holds a query's descriptor at one place of its line: there the curve has its maximum, 1.
    place = torch.from_numpy(searches[0].places[20])
    column, row = ((place + 0.5) / 4 - 0.5).round().long().tolist()
    fine[:, row : row + 1, column : column + 1] = descriptors[0][:, None, None] * 30
    again = search_lines(keypoints, fine, F, (128, 96), samples=50, sampling="exact")[0]
    assert abs(int(again.similarity.argmax()) - 20) <= 2 and again.similarity.max() > 0.9
    still = search_lines(keypoints, fine, torch.zeros(3, 3).double(), (128, 96), samples=50, sampling="exact")
    assert still == []


def test_the_curve_of_a_search_has_its_peak_where_the_line_has_its_best_place() -> None:
    places = np.stack([np.linspace(159, 0, 40), np.full(40, 50.0)], axis=1).astype(np.float32)
    similarity = np.full(40, -0.5, np.float32)
    similarity[30] = 0.9  # three quarters from the right end
    search = LineSearch(query=np.array([20.0, 20.0], np.float32), places=places, similarity=similarity)
    picture = draw_line_search(BLACK, BLACK, [search])
    plain = draw_line_search(BLACK, BLACK, [])
    assert plain.shape == (240, picture.shape[1], 3) and picture.shape[0] > 240
    panel = picture[240:].astype(int)
    blue = panel[..., 2] - panel[..., 0] > 80
    highest = np.nonzero(blue.any(axis=1))[0][0]
    assert np.nonzero(blue[highest])[0].mean() / panel.shape[1] == pytest.approx(9 / 39, abs=0.03)
    ring = picture[:240, RIGHT:].astype(int)
    columns = np.nonzero((ring[..., 2] - ring[..., 0] > 80).sum(axis=0) > 3)[0]
    assert columns.mean() / 320 == pytest.approx(9 / 39, abs=0.03)


@pytest.mark.parametrize("stage", ["desc", "kp"])
def test_the_trainer_gets_all_pictures_of_the_first_pair(
    posed_pair: Callable[..., PairBatch], stage: str
) -> None:
    config = PoSFeatConfig(
        network=NetworkConfig(encoder="resnet18", decoder_channels=(16, 8), head_channels=(4, 8)),
        validation=ValidationConfig(max_keypoints=40, picture_matches=3),
    )
    model = build(config, stage, 0)
    batch = PairBatch.stack([posed_pair(seed=0), posed_pair(seed=1)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pictures = model.pictures(batch)
    names = {"keypoints", "matches_few", "matches_all", "line_search"}
    assert set(pictures) == (names | {"score_map"} if stage == "kp" else names)
    assert model.training and all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    alone = model.pictures(posed_pair(seed=0))
    assert all(np.array_equal(alone[name], picture) for name, picture in pictures.items())
    assert all(picture.ndim == 3 and picture.dtype == np.uint8 for picture in pictures.values())
    plain = draw_matches(*_images(batch), np.empty((0, 2)), np.empty((0, 2)), np.empty(0), red_px=5.0)
    few, many = ((pictures[name] != plain).any(axis=2).sum() for name in ("matches_few", "matches_all"))
    assert 0 < few < many


def _images(batch: PairBatch) -> tuple[np.ndarray, np.ndarray]:
    first, second = (
        (image[0].permute(1, 2, 0) * 255).round().byte().numpy() for image in (batch.image0, batch.image1)
    )
    return first, second
