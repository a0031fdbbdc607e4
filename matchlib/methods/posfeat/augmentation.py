"""Colour jitter of training images, with the ranges of the release (torchvision's ColorJitter(1, 1, 1, 0.4))."""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.errors import check_shape
from matchlib.photo_pairs.image_changes import scale_brightness, scale_contrast, scale_saturation, shift_hue
from matchlib.randomness import generator_for

LARGEST_FACTOR = 2.0
"""Brightness, contrast and saturation are multiplied by a factor drawn from [0, 2]."""
LARGEST_HUE_TURN = 0.4
"""The hue is turned by up to this share of the circle, either way."""

_CHANGES = ("brightness", "contrast", "saturation", "hue")


def colour_jitter(images: Tensor, seeds: tuple[int, ...], purpose: str) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image by its own draws, in its own random order.

    images: (B, 3, H, W) RGB in [0, 1], any device; seeds: one per image; purpose: part of the address of the
    draws, so that the two images of a pair differ. Returns a new tensor in [0, 1]. Raises ShapeError.
    differs from torchvision: levels are not rounded to 8 bits between the changes.
    """
    check_shape("images", images, f"{len(seeds)} 3 H W")
    return torch.stack([_jitter(image, seed, purpose) for image, seed in zip(images, seeds, strict=True)])


def _jitter(image: Tensor, seed: int, purpose: str) -> Tensor:
    random = generator_for(seed, "posfeat", "colour", purpose)
    brightness, contrast, saturation = (float(factor) for factor in random.uniform(0.0, LARGEST_FACTOR, 3))
    turn = float(random.uniform(-LARGEST_HUE_TURN, LARGEST_HUE_TURN))
    for change in random.permutation(len(_CHANGES)):
        match _CHANGES[change]:
            case "brightness":
                image = scale_brightness(image, brightness)
            case "contrast":
                image = scale_contrast(image, contrast)
            case "saturation":
                image = scale_saturation(image, saturation)
            case "hue":
                image = shift_hue(image, turn)
    return image
