"""Plain photographs: any folder of images, and MSCOCO 2017, of which only the images are used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from matchlib.datasets.types import DatasetFormat
from matchlib.errors import ConfigError, DataError

SPECS = (
    DatasetFormat(
        name="photos",
        gives=frozenset({"homography"}),
        list_scenes="matchlib.datasets.photos:list_scenes",
        list_images="matchlib.datasets.photos:list_folder",
    ),
    DatasetFormat(
        name="coco",
        gives=frozenset({"homography"}),
        list_scenes="matchlib.datasets.photos:list_scenes",
        list_images="matchlib.datasets.photos:list_coco",
    ),
)

COCO_SPLITS = ("train2017", "val2017", "test2017", "unlabeled2017")
_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")


def list_scenes(root: Path, split: str) -> tuple[str, ...]:
    """No scenes: each photograph stands for itself."""
    return ()


def list_folder(root: Path, split: str = "all") -> tuple[str, ...]:
    """All images below a folder, relative to it, sorted; the only split is "all".

    Hidden files and folders are left out. Raises ConfigError for another split, DataError if there is no image.
    """
    if split != "all":
        raise ConfigError(f"photos: unknown split '{split}' (known: all); give a folder of its own as root")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a folder of photographs")
    names = tuple(sorted(_walk(str(root), "")))
    if not names:
        raise DataError(f"{root}: expected images ({' '.join(_ENDINGS)}), found none")
    return names


def list_coco(root: Path, split: str) -> tuple[str, ...]:
    """Images of one split of MSCOCO 2017, relative to `root`, sorted.

    A split is the folder `<split>` or `images/<split>` below `root`, one of COCO_SPLITS. Raises ConfigError for an
    unknown split, DataError that names the archive if the folder is missing or holds no image.
    """
    if split not in COCO_SPLITS:
        raise ConfigError(f"coco: unknown split '{split}' (known: {', '.join(COCO_SPLITS)})")
    remedy = f"unpack {split}.zip there (http://images.cocodataset.org/zips/{split}.zip)"
    for folder in (split, f"images/{split}"):
        if (root / folder).is_dir():
            names = tuple(sorted(_walk(str(root / folder), f"{folder}/")))
            if not names:
                raise DataError(f"{root / folder}: expected images, found none; {remedy}")
            return names
    raise DataError(f"{root}: expected a folder {split} (or images/{split}), found none; {remedy}")


def _walk(folder: str, prefix: str) -> Iterator[str]:
    """Names of image files below `folder`, each with `prefix`. Entries carry their type, so no file is touched."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(_ENDINGS):
                yield prefix + entry.name
