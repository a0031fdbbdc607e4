"""Photographs and the surface textures made of them.

Only photographs inside the scikit-image wheel are used; nothing is ever downloaded. The three pools share no
photograph (the two motorcycle pictures show one scene and stay together), so what is learned in training
has not been seen in validation or evaluation.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.errors import ConfigError, DataError

Pool = Literal["training", "validation", "evaluation"]
Image = npt.NDArray[np.uint8]

POOLS: dict[Pool, tuple[str, ...]] = {
    "training": (
        "brick.png",
        "camera.png",
        "cell.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "page.png",
        "retina.jpg",
        "text.png",
    ),
    "validation": ("coins.png", "gravel.png", "rocket.jpg"),
    "evaluation": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
    ),
}
_PHOTO_SHARE = 0.2  # of the textures are one photograph, the others a wall of pasted prints


def photograph_path(name: str) -> Path:
    """Where scikit-image keeps a bundled photograph. Raises DataError if this installation lacks it."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise DataError(
            f"{path}: expected a photograph bundled with scikit-image, found none; reinstall scikit-image"
        )
    return path


@lru_cache(maxsize=32)
def load_photograph(name: str) -> Image:
    """A bundled photograph, (H, W, 3) uint8 RGB, read-only; grey ones come with three equal channels."""
    from skimage.io import imread  # not OpenCV: its PNG reader complains about one of the colour profiles

    path = photograph_path(name)
    try:
        pixels = np.asarray(imread(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a readable picture ({error}); reinstall scikit-image") from error
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: expected 8 bits per channel, got {pixels.dtype}; reinstall scikit-image")
    rgb = (
        np.repeat(pixels[:, :, None], 3, axis=2)
        if pixels.ndim == 2
        else np.ascontiguousarray(pixels[:, :, :3])
    )
    rgb.flags.writeable = False
    return rgb


def pool_names(pool: Pool) -> tuple[str, ...]:
    """File names of one pool. Raises ConfigError for an unknown pool."""
    if pool not in POOLS:
        raise ConfigError(f"unknown photograph pool '{pool}' (known: {', '.join(POOLS)})")
    return POOLS[pool]


def surface_texture(rng: np.random.Generator, pool: Pool, side_px: int) -> Image:
    """A square texture of one pool, (side_px, side_px, 3) uint8 RGB, drawn from `rng`.

    Either one photograph, or a photograph with a dozen rotated prints of others pasted over it, which gives
    corners, edges and texture at every scale.
    """
    names = pool_names(pool)
    texture = _crop(rng, load_photograph(names[rng.integers(len(names))]), side_px)
    texture = _tinted(rng, texture)
    if rng.random() < _PHOTO_SHARE:
        return texture
    for _ in range(int(rng.integers(10, 20))):
        photo = _tinted(
            rng, _crop(rng, load_photograph(names[rng.integers(len(names))]), max(32, side_px // 2))
        )
        _paste(rng, texture, photo)
    return texture


def _crop(rng: np.random.Generator, photo: Image, side_px: int) -> Image:
    """A random square of at least half the photograph's short side, resized and turned by quarter turns."""
    short = min(photo.shape[:2])
    side = int(rng.integers(max(16, short // 2), short + 1))
    top, left = (int(rng.integers(size - side + 1)) for size in photo.shape[:2])
    patch = photo[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if side > side_px else cv2.INTER_CUBIC
    resized = cv2.resize(patch, (side_px, side_px), interpolation=interpolation)
    return np.ascontiguousarray(np.rot90(resized, int(rng.integers(4))), dtype=np.uint8)


def _tinted(rng: np.random.Generator, patch: Image) -> Image:
    """The patch with stretched contrast, from a random dark colour to a random light one."""
    low, high = np.percentile(patch[::4, ::4].mean(axis=2), [1, 99])
    stretched = np.clip((np.arange(256) - low) / max(float(high - low), 16.0), 0, 1)[:, None]
    dark, light = rng.uniform(0, 60, 3), rng.uniform(170, 255, 3)
    table = (dark + (light - dark) * stretched).astype(np.uint8)
    return np.asarray(cv2.LUT(patch, table[None]), np.uint8)


def _paste(rng: np.random.Generator, texture: Image, print_: Image) -> None:
    """Lay a rotated rectangular print over the texture, in place."""
    side_px = texture.shape[0]
    size = np.maximum(rng.uniform(0.12, 0.45, 2) * side_px, 8.0)
    angle, centre = rng.uniform(-0.6, 0.6), rng.uniform(0, side_px, 2)
    reduced = np.asarray(
        cv2.resize(print_, (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA), np.uint8
    )
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = np.abs(rotation) @ (size / 2) + 1
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach), side_px).astype(int)
    affine = np.column_stack([rotation, centre - low - rotation @ (size / 2)])
    window = tuple(int(extent) for extent in high - low)
    warped = cv2.warpAffine(reduced, affine, window, flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(np.full(reduced.shape[:2], 255, np.uint8), affine, window)
    alpha = mask[..., None].astype(np.float32) / 255
    below = texture[low[1] : high[1], low[0] : high[0]]
    below[:] = (alpha * warped + (1 - alpha) * below + 0.5).astype(np.uint8)
