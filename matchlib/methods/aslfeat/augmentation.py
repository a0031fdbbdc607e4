"""Photometric changes of training images, after the public tfmatch implementation (the same for all its
methods)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.randomness import generator_for

_LARGEST_BRIGHTNESS_CHANGE = 50.0
_CONTRAST_RANGE = (0.3, 1.5)
_BLUR_LINES = ("none", "horizontal", "vertical", "diagonal", "antidiagonal")


def augment(grey: Tensor, seeds: tuple[int, ...], purpose: str) -> Tensor:
    """Change brightness (+-50), contrast (0.3 to 1.5 about the mean) and motion blur (3 px line) in random
    order.

    grey: (B, 1, H, W) float in [0, 255]; seeds: one per image; purpose: part of the address of the draws, so
    that the two images of a pair differ. Half of the images stay unblurred. Returns a new tensor in [0, 255].
    """
    check_shape("grey", grey, f"{len(seeds)} 1 H W")
    images = [_augment_image(image, seed, purpose) for image, seed in zip(grey, seeds, strict=True)]
    return torch.stack(images)


def _augment_image(grey_1HW: Tensor, seed: int, purpose: str) -> Tensor:
    random = generator_for(seed, "aslfeat", "augmentation", purpose)
    brightness = random.uniform(-_LARGEST_BRIGHTNESS_CHANGE, _LARGEST_BRIGHTNESS_CHANGE)
    contrast = random.uniform(*_CONTRAST_RANGE)
    line = _BLUR_LINES[0] if random.random() < 0.5 else _BLUR_LINES[random.integers(1, len(_BLUR_LINES))]
    image = grey_1HW
    for change in random.permutation(3):
        if change == 0:
            image = image + brightness
        elif change == 1:
            mean = image.mean()
            image = (image - mean) * contrast + mean
        else:
            image = _motion_blur(image, line)
    return image.clamp(0.0, 255.0)


def _motion_blur(image_1HW: Tensor, line: str) -> Tensor:
    if line == "none":
        return image_1HW
    kernel = {
        "horizontal": np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]]),
        "vertical": np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0]]),
        "diagonal": np.eye(3),
        "antidiagonal": np.eye(3)[::-1].copy(),
    }[line]
    weight = torch.as_tensor(kernel, dtype=image_1HW.dtype, device=image_1HW.device)[None, None] / 3.0
    return F.conv2d(F.pad(image_1HW[None], (1, 1, 1, 1), mode="reflect"), weight)[0]
