"""What every picture of Synthetic Shapes is drawn on: its background, grey levels that stand out, textures."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.features.types import Image

_DISCS = 100
_DISC_RADIUS = (0.02, 0.031)  # of the larger side
_BACKGROUND_BLUR = (150, 500)  # pixels of a drawing 1280 wide, like all lengths below
_TEXTURE_DISC_RADIUS = 20
_TEXTURE_DISCS_PER_PIXEL = 3000 / (960 * 1280)
_TEXTURE_BLUR = (50, 100)
_LEAST_CONTRAST = 30
_PUBLISHED_WIDTH = 1280


def published_scale(size: tuple[int, int]) -> float:
    """How much larger a drawing of `size` = (width, height) is than the published 1280 x 960."""
    return max(size) / _PUBLISHED_WIDTH


def draw_background(size: tuple[int, int], generator: np.random.Generator) -> Image:
    """A soft background (H, W) uint8 of `size` = (width, height): blurred noise of two levels under discs."""
    width, height = size
    threshold = generator.integers(256)
    noise = generator.integers(0, 256, (height, width), dtype=np.uint8)
    image: Image = np.where(noise > threshold, 255, 0).astype(np.uint8)
    mean = float(image.mean())
    centres = generator.integers(0, (width, height), (_DISCS, 2))
    radii = generator.uniform(*_DISC_RADIUS, _DISCS) * max(size)
    for (x, y), radius in zip(centres, radii, strict=True):
        grey = contrasting_grey(generator, mean)
        cv2.circle(image, (int(x), int(y)), round(float(radius)), grey, -1)
    return _box_blur(image, _BACKGROUND_BLUR, published_scale(size), generator)


def draw_texture(size: tuple[int, int], grey: int, scale: float, generator: np.random.Generator) -> Image:
    """A blotchy surface (H, W) uint8 around one grey level; `scale` as `published_scale` of the whole
    drawing."""
    width, height = size
    image: Image = np.full((height, width), grey, np.uint8)
    count = round(_TEXTURE_DISCS_PER_PIXEL * width * height / scale**2)
    centres = generator.integers(0, (width, height), (count, 2))
    for x, y in centres:
        blotch = contrasting_grey(generator, grey)
        cv2.circle(image, (int(x), int(y)), max(1, round(_TEXTURE_DISC_RADIUS * scale)), blotch, -1)
    return _box_blur(image, _TEXTURE_BLUR, scale, generator)


def contrasting_grey(
    generator: np.random.Generator, *others: float, least_contrast: int = _LEAST_CONTRAST
) -> int:
    """A random grey level that differs from each of `others` by `least_contrast` or more.

    If no level does (three others, say, at 0, 128 and 255 for a contrast of 65), one of those that differ
    most. Source of the contrasts: rpautrat/SuperPoint; differs from it: a level too near is drawn again from
    those that are not, instead of moved by 128.
    """
    levels = np.arange(256)
    distance = np.abs(levels[:, None] - np.asarray(others)[None]).min(axis=1, initial=255.0)
    least = min(float(least_contrast), float(distance.max()))
    return int(generator.choice(levels[distance >= least]))


def inside_frame(points: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(N,) bool: which points (N, 2) lie between the centres of the outermost pixels of a (width, height)
    image."""
    within = (points >= 0) & (points <= np.array(size) - 1)
    return np.asarray(within.all(axis=1), dtype=np.bool_)


def _box_blur(image: Image, sides: tuple[int, int], scale: float, generator: np.random.Generator) -> Image:
    side = max(1, round(float(generator.uniform(*sides)) * scale))
    blurred: Image = np.asarray(cv2.blur(image, (side, side)), dtype=np.uint8)
    return blurred
