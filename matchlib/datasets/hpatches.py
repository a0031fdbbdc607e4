"""HPatches image sequences: six photographs of a plane (or of a fixed view) and the homographies between
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.parsing import format_row, read_matrix
from matchlib.datasets.types import DatasetFormat
from matchlib.errors import ConfigError, DataError, check_shape

SPECS = (
    DatasetFormat(
        name="hpatches", gives=frozenset({"homography"}), list_scenes="matchlib.datasets.hpatches:list_split"
    ),
)

IMAGES_PER_SEQUENCE = 6
# Left out by D2-Net and everybody since: they hold images above 1600 x 1200 ("contruction" is upstream's
# spelling).
EXCLUDED_SEQUENCES = (
    "i_contruction",
    "i_crownnight",
    "i_dc",
    "i_pencils",
    "i_whitebuilding",
    "v_artisans",
    "v_astronautis",
    "v_talent",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One sequence.

    image_paths:  `1.ppm` ... `6.ppm`; all exist, none was opened
    homographies: five (3, 3) float64; number k-2 maps a pixel of image 1 to image k (k = 2..6), (x, y, 1)
                  with the centre of the first pixel at (0, 0)
    """

    name: str
    image_paths: tuple[Path, ...]
    homographies: tuple[npt.NDArray[np.float64], ...]


def read_homography(path: Path) -> npt.NDArray[np.float64]:
    """A (3, 3) float64 homography of finite numbers that can be inverted. Raises DataError."""
    H = read_matrix(path, 3, 3)
    if not np.isfinite(H).all() or np.linalg.matrix_rank(H) < 3:
        raise DataError(f"{path}: expected an invertible homography, got {H.tolist()}")
    return H


def write_homography(path: Path, H: npt.NDArray[np.float64]) -> None:
    """Write a (3, 3) homography so that it reads back exactly."""
    check_shape("H", H, "3 3")
    atomic_write(path, "".join(format_row(row) + "\n" for row in H))


def list_sequences(root: Path) -> tuple[str, ...]:
    """Names of all `i_*` and `v_*` folders, sorted (all `i_` first). Raises DataError if there is none."""
    names = sorted(path.name for path in root.glob("[iv]_*") if path.is_dir()) if root.is_dir() else []
    if not names:
        raise DataError(f"{root}: expected HPatches sequences (folders i_* and v_*), found none")
    return tuple(names)


def list_split(root: Path, split: str) -> tuple[str, ...]:
    """Sequences of a split: "all", "illumination", "viewpoint", or "108" (all but EXCLUDED_SEQUENCES)."""
    keep = {
        "all": lambda name: True,
        "illumination": lambda name: name.startswith("i_"),
        "viewpoint": lambda name: name.startswith("v_"),
        "108": lambda name: name not in EXCLUDED_SEQUENCES,
    }
    if split not in keep:
        raise ConfigError(f"hpatches: unknown split '{split}' (known: {', '.join(sorted(keep))})")
    return tuple(filter(keep[split], list_sequences(root)))


def read_sequence(root: Path, name: str) -> Sequence:
    """One sequence. Raises DataError naming the first image or homography file that is missing or broken."""
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"{folder}: no such sequence")
    images = tuple(folder / f"{k}.ppm" for k in range(1, IMAGES_PER_SEQUENCE + 1))
    for path in images:
        if not path.is_file():
            raise DataError(f"{path}: not found; a sequence needs 1.ppm to {IMAGES_PER_SEQUENCE}.ppm")
    homographies = tuple(read_homography(folder / f"H_1_{k}") for k in range(2, IMAGES_PER_SEQUENCE + 1))
    return Sequence(name=name, image_paths=images, homographies=homographies)


def image_set(root: Path) -> list[str]:
    """Paths of all images of all sequences relative to `root`, in order of sequence and number."""
    return [f"{name}/{k}.ppm" for name in list_sequences(root) for k in range(1, IMAGES_PER_SEQUENCE + 1)]
