"""Photographs in the layout of MSCOCO 2017: `train2017/000000000009.jpg`, `val2017/...`.

Each picture is either a crop of one photograph or a wall of pasted prints (`textures.surface_texture`): few of
the bundled training photographs have corners of their own, and a network learns from what it is shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.datasets.images import write_image
from matchlib.mirror.config import CocoMirrorConfig
from matchlib.mirror.textures import Pool, load_photograph, pool_names, surface_texture
from matchlib.randomness import generator_for

Image = npt.NDArray[np.uint8]
Split = Literal["train2017", "val2017"]

SPLIT_POOLS: dict[Split, Pool] = {"train2017": "training", "val2017": "validation"}
# COCO's common shapes, width / height: mostly 4:3 and 3:2 upright or lying, some square, some wide.
_ASPECTS = (4 / 3, 4 / 3, 3 / 2, 3 / 2, 3 / 4, 2 / 3, 1.0, 16 / 9)
_WALL_SHARE = 0.7
_MAX_ENLARGEMENT = 2.0
_TRIES = 8
# Variance of the Laplacian, in squared grey levels. Of random crops of single photographs, a tenth lie below: moon,
# retina, evening sky. The median of all pictures is about 800.
_MIN_SHARPNESS = 120.0
_GREY_EVERY = 16  # COCO has a grey JPEG in about 400; here every small set shall have one


def photograph_names(split: Split, config: CocoMirrorConfig, *, seed: int) -> tuple[str, ...]:
    """File names of one split, sorted: twelve digits as upstream, with gaps; no number is in both splits."""
    total = config.train_images + config.validation_images
    numbers = generator_for(seed, "coco", "numbers").choice(600_000, size=total, replace=False)
    train, validation = numbers[: config.train_images], numbers[config.train_images :]
    return tuple(f"{number:012d}.jpg" for number in sorted(train if split == "train2017" else validation))


def write_photographs(root: Path, split: Split, config: CocoMirrorConfig, *, seed: int) -> None:
    """Write all pictures of one split to `<split>/` below `root`, in colour but for every sixteenth."""
    for index, name in enumerate(photograph_names(split, config, seed=seed)):
        picture = draw_photograph(split, index, config, seed=seed)
        is_grey = index % _GREY_EVERY == _GREY_EVERY // 2
        pixels = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8) if is_grey else picture
        write_image(root / split / name, pixels, quality=config.jpeg_quality)


def draw_photograph(split: Split, index: int, config: CocoMirrorConfig, *, seed: int) -> Image:
    """Picture number `index` of a split, (H, W, 3) uint8 RGB; a function of its arguments.

    Nearly textureless pictures are drawn again; of several such in a row the sharpest is taken.
    """
    rng = generator_for(seed, "coco", split, index)
    low, high = config.longer_side
    longer, aspect = int(rng.integers(low, high + 1)), _ASPECTS[rng.integers(len(_ASPECTS))]
    size = (longer, round(longer / aspect)) if aspect >= 1 else (round(longer * aspect), longer)
    is_wall = rng.random() < _WALL_SHARE
    best, best_sharpness = np.zeros((0, 0, 3), np.uint8), -1.0
    for _ in range(_TRIES):
        pool = SPLIT_POOLS[split]
        picture = _wall(rng, pool, size) if is_wall else _crop_of_one(rng, pool, size)
        if (found := sharpness(picture)) > best_sharpness:
            best, best_sharpness = picture, found
        if best_sharpness >= _MIN_SHARPNESS:
            break
    return best


def sharpness(picture: Image) -> float:
    """Variance of the Laplacian of the grey picture: small where there is nothing to detect."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _wall(rng: np.random.Generator, pool: Pool, size: tuple[int, int]) -> Image:
    """A window of (width, height) of a wall of prints."""
    width, height = size
    side = max(size)
    wall = surface_texture(rng, pool, side)
    left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
    return np.ascontiguousarray(wall[top : top + height, left : left + width])


def _crop_of_one(rng: np.random.Generator, pool: Pool, size: tuple[int, int]) -> Image:
    """A part of one photograph at a random scale, turned by quarter turns and mirrored by chance."""
    names = pool_names(pool)
    photo = np.rot90(load_photograph(names[rng.integers(len(names))]), int(rng.integers(4)))
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    fits = min(photo.shape[1] / size[0], photo.shape[0] / size[1])  # photograph pixels per picture pixel
    scale = np.exp(rng.uniform(np.log(min(fits, 1 / _MAX_ENLARGEMENT)), np.log(fits)))
    width, height = (max(1, int(scale * side)) for side in size)
    left, top = int(rng.integers(photo.shape[1] - width + 1)), int(rng.integers(photo.shape[0] - height + 1))
    part = np.ascontiguousarray(photo[top : top + height, left : left + width])
    interpolation = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, size, interpolation=interpolation), np.uint8)
