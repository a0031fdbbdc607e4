"""Colour jitter: the operations of the release, drawn from the pair's seed and nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from kornia.color import hsv_to_rgb, rgb_to_hsv

from matchlib.errors import ShapeError
from matchlib.methods.posfeat.augmentation import colour_jitter
from matchlib.randomness import generator_for


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(seed))


def grey(image: torch.Tensor) -> torch.Tensor:
    return (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)


def transcribed(
    image: torch.Tensor, factors: list[float], turn: float, order: tuple[int, ...]
) -> torch.Tensor:
    """As torchvision describes ColorJitter; the hue by kornia's conversions."""

    def blend(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
        return (share * one + (1 - share) * other).clamp(0, 1)

    for change in order:
        if change == 0:
            image = blend(image, torch.zeros_like(image), factors[0])
        elif change == 1:
            image = blend(image, grey(image).mean().expand_as(image), factors[1])
        elif change == 2:
            image = blend(image, grey(image).expand_as(image), factors[2])
        else:
            hsv = rgb_to_hsv(image[None])
            hsv[:, 0] = (hsv[:, 0] + 2 * torch.pi * turn) % (2 * torch.pi)
            image = hsv_to_rgb(hsv)[0]
    return image


def test_is_torchvisions_jitter_for_some_order_of_its_four_changes() -> None:
    orders = set()
    for seed in range(12):
        given = images(1, seed)
        jittered = colour_jitter(given, (seed,), "image0")[0]
        random = generator_for(seed, "posfeat", "colour", "image0")
        factors, turn = random.uniform(0, 2, 3).tolist(), float(random.uniform(-0.4, 0.4))
        fits = [
            order
            for order in itertools.permutations(range(4))
            if torch.allclose(transcribed(given[0], factors, turn, order), jittered, atol=1e-4)
        ]
        assert fits
        orders.add(fits[0])
    assert len(orders) > 5


def test_draws_belong_to_the_pair_not_to_its_place_in_the_batch() -> None:
    both = images(2)
    together = colour_jitter(both, (5, 6), "image0")
    assert torch.equal(colour_jitter(both[1:], (6,), "image0")[0], together[1])
    assert not torch.equal(colour_jitter(both[1:], (6,), "image1")[0], together[1])
    torch.rand(3)  # the global state has no say
    assert torch.equal(colour_jitter(both, (5, 6), "image0"), together)


def test_levels_stay_in_range_and_the_input_as_it_was() -> None:
    given = images(20)
    before = given.clone()
    jittered = colour_jitter(given, tuple(range(20)), "image1")
    assert torch.equal(given, before)
    assert jittered.min() >= 0 and jittered.max() <= 1
    means = jittered.mean(dim=(1, 2, 3))
    assert means.min() < 0.25 and means.max() > 0.6  # factors down to 0 and up to 2


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"images: expected shape \(1, 3, H, W\)"):
        colour_jitter(images(2), (1,), "image0")
    with pytest.raises(ShapeError, match="images"):
        colour_jitter(torch.from_numpy(np.zeros((1, 1, 4, 4), np.float32)), (1,), "image0")
