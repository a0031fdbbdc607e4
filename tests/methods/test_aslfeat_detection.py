"""Scores: running maxima in closed form, peakiness by hand and by a loop, levels joined at image size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from matchlib.methods.aslfeat.config import ASLFeatConfig, DetectionConfig
from matchlib.methods.aslfeat.detection import (
    RunningMaxima,
    d2net_score,
    level_scores,
    neighbourhood_mean,
    peakiness,
    score_map,
)
from matchlib.methods.aslfeat.model import ASLFeat, DenseFeatures
from matchlib.methods.aslfeat.network import FeatureMaps


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def as_maps(*maxima: float) -> list[torch.Tensor]:
    maps = []
    for maximum in maxima:
        level = torch.full((2, 3, 4, 4), -1.0)
        level[1, 2, 3, 0] = maximum
        maps.append(level)
    return maps


def test_first_step_gives_the_maximum_itself():
    running = RunningMaxima()
    torch.testing.assert_close(running.update(0, as_maps(6.0, 12.0, 4.0)), torch.tensor([6.0, 12.0, 4.0]))


def test_running_maximum_is_the_debiased_average():
    running = RunningMaxima(momentum=0.9)
    values = [3.0, 5.0, 4.0, 8.0]
    for t, value in enumerate(values, start=1):
        found = running.update(0, as_maps(value, value, 2 * value))
        weights = [0.1 * 0.9 ** (t - k) for k in range(1, t + 1)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / (1 - 0.9**t)
        torch.testing.assert_close(found, torch.tensor([expected, expected, 2 * expected]))


def test_towers_average_apart_and_the_last_is_stored():
    running = RunningMaxima(momentum=0.5)
    for value in (2.0, 4.0):
        first = running.update(0, as_maps(value, value, value))
        second = running.update(1, as_maps(10 * value, 10 * value, 10 * value))
    expected = (0.25 * 2.0 + 0.5 * 4.0) / 0.75
    torch.testing.assert_close(first, torch.full((3,), expected))
    torch.testing.assert_close(second, torch.full((3,), 10 * expected))
    assert torch.equal(running.stored(as_maps(1.0, 1.0, 1.0))[0], second)


def test_untrained_maxima_are_those_of_each_image():
    maps = as_maps(7.0, 8.0, 9.0)
    torch.testing.assert_close(RunningMaxima().stored(maps), torch.tensor([[-1.0] * 3, [7.0, 8.0, 9.0]]))


def test_no_gradient_flows_into_the_running_maximum():
    level = torch.rand(1, 2, 8, 8, requires_grad=True)
    assert not RunningMaxima(levels=1).update(0, [level]).requires_grad


def test_flat_response_scores_048():
    for dilation in (1, 2, 3):
        scores = peakiness(torch.full((1, 4, 8, 8), 0.7), dilation)
        torch.testing.assert_close(scores, torch.full((1, 8, 8), softplus(0.0) ** 2))
    assert round(softplus(0.0) ** 2, 2) == 0.48


def test_single_peak_by_hand():
    response = torch.zeros(1, 2, 7, 7)
    response[0, 0, 3, 3] = 1.8
    scores = peakiness(response, 1)[0]
    # At the peak: neighbourhood mean 1.8/9 = 0.2, channel mean 0.9.
    assert scores[3, 3].item() == pytest.approx(softplus(1.6) * softplus(0.9), rel=1e-6)
    # Beside it, channel 0 is 0.2 below its neighbourhood; the other channel is flat and wins.
    assert scores[3, 4].item() == pytest.approx(softplus(0.0) ** 2, rel=1e-6)


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 8, 11])
def test_peakiness_agrees_with_a_loop(dilation, channels):
    rng = np.random.default_rng(dilation)
    y = rng.normal(size=(channels, 6, 7))
    padded = np.pad(y, ((0, 0), (dilation, dilation), (dilation, dilation)), mode="reflect")
    expected = np.zeros((6, 7))
    for i in range(6):
        for j in range(7):
            window = padded[:, i : i + 2 * dilation + 1 : dilation, j : j + 2 * dilation + 1 : dilation]
            local = np.log1p(np.exp(y[:, i, j] - window.mean(axis=(1, 2))))
            expected[i, j] = (local * np.log1p(np.exp(y[:, i, j] - y[:, i, j].mean()))).max()
    found = peakiness(torch.from_numpy(y)[None], dilation)[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_d2net_score_agrees_with_a_loop():
    y = np.random.default_rng(3).uniform(0.1, 4.0, size=(3, 5, 5))
    padded = np.pad(np.exp(y), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            spatial = np.exp(y[:, i, j]) / padded[:, i : i + 3, j : j + 3].sum(axis=(1, 2))
            expected[i, j] = (spatial * y[:, i, j] / y[:, i, j].max()).max()
    np.testing.assert_allclose(d2net_score(torch.from_numpy(y)[None], 1)[0].numpy(), expected, rtol=1e-9)


def test_peakiness_gradient():
    response = torch.randn(1, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda y: peakiness(y, 2), response.requires_grad_())


def test_neighbourhood_mean_reflects_without_repeating_the_border():
    row = torch.tensor([1.0, 2.0, 4.0, 8.0]).expand(1, 1, 4, 4)
    assert neighbourhood_mean(row, 1)[0, 0, 0].tolist() == pytest.approx([5 / 3, 7 / 3, 14 / 3, 16 / 3])


def test_scores_do_not_depend_on_the_scale_of_the_maps():
    maps = [torch.rand(2, 4, 8 // f, 8 // f) for f in (1, 2, 2)]
    config = DetectionConfig(dilations=(3, 2, 1))
    maxima = torch.tensor([1.0, 2.0, 3.0])
    plain = level_scores(FeatureMaps(tuple(maps)), maxima, config)
    scaled = level_scores(FeatureMaps(tuple(5 * m for m in maps)), 5 * maxima, config)
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b)


def test_score_map_weights_levels_and_places_cell_o_at_pixel_4o():
    levels = [torch.zeros(1, 16, 16), torch.zeros(1, 8, 8), torch.zeros(1, 4, 4)]
    levels[2][0, 2, 1] = 6.0
    joined = score_map(levels, (1.0, 2.0, 3.0), (16, 16))[0]
    assert joined[8, 4].item() == pytest.approx(3.0)
    assert joined.argmax().item() == 8 * 16 + 4
    assert joined[8, 5].item() == pytest.approx(3.0 * 0.75)


def test_scores_read_at_points_are_those_of_the_full_map():
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.rand(1, 24 // f, 32 // f, generator=generator) for f in (1, 2, 4))
    dense = DenseFeatures(torch.zeros(1, 4, 6, 8), levels, (1.0, 2.0, 3.0), (24, 32))
    points = torch.rand(200, 2, generator=generator) * torch.tensor([31.0, 23.0])
    from matchlib.geometry.sampling import sample_bilinear

    expected = sample_bilinear(dense.score_map(), points)[0]
    torch.testing.assert_close(dense.scores_at(0, points), expected, rtol=1e-4, atol=1e-5)


def test_a_featureless_image_is_finite():
    model = ASLFeat(ASLFeatConfig(), deformable=False).eval()
    dense = model(torch.zeros(1, 1, 16, 16))
    torch.testing.assert_close(dense.score_map(), torch.full((1, 16, 16), softplus(0.0) ** 2))
