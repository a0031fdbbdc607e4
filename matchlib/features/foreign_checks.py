"""What must hold of features that another program extracted. What is wrong with one image is a ValueError, whose reader
knows the file and adds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.datasets.images import list_images
from matchlib.errors import DataError
from matchlib.features.foreign_layouts import IMAGE_ENDINGS
from matchlib.features.types import Float32

_BORDER_PX = 0.5  # what keypoints may lie outside the image area: as much as another pixel origin moves them


def image_names(path: Path, found: Iterable[str], images: Path | None) -> dict[str, str]:
    """Name of the image below its folder -> name in the layout, which may lack the ending. Raises DataError."""
    found = tuple(found)
    if images is None:
        bare = [name for name in found if PurePosixPath(name).suffix.lower() not in IMAGE_ENDINGS]
        if bare:
            raise DataError(
                f"{path}: features named without the ending of the image, such as '{bare[0]}'; give the folder of "
                f"the images"
            )
        return {name: name for name in found}
    present = list_images(images)
    by_stem: dict[str, list[str]] = {}
    for name in present:
        by_stem.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    exact = set(present)
    places: dict[str, str] = {}
    for name in found:
        candidates = [name] if name in exact else by_stem.get(name, [])
        if len(candidates) != 1:
            reason = f"could be of {' and '.join(candidates)}" if candidates else "are of no image"
            raise DataError(
                f"{path}: features of '{name}' {reason} in {images}; give the folder that the names are relative to, "
                f"with names that differ in more than the ending"
            )
        if (other := places.setdefault(candidates[0], name)) != name:
            raise DataError(
                f"{path}: '{other}' and '{name}' are both features of {candidates[0]}; remove one"
            )
    return places


def agreed_size(stated: npt.NDArray[Any] | None, measured: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) as the features state it and the image has it."""
    if stated is None:
        if measured is None:
            raise ValueError("the layout lacks the size of the image; give the folder of the images")
        return measured
    check_array("image_size", stated, stated.shape == (2,), "(2,): width and height")
    width, height = (int(side) for side in stated)
    if measured is not None and measured != (width, height):
        raise ValueError(
            f"expected features of an image of {measured[0]} x {measured[1]} pixels, got {width} x {height}; "
            f"are these the images that they were extracted from?"
        )
    return width, height


def check_array(name: str, array: npt.NDArray[Any], fits: bool, shape: str) -> None:
    """Refuse an array whose shape does not fit, which `shape` describes, or that holds other than real numbers."""
    if not fits:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    # Integers are counts or packed bits; what length or distance means for them, the file does not say.
    if name == "descriptors" and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name}: expected floating point numbers, got {array.dtype}; convert them before")
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}")


def check_finite(name: str, values: Float32) -> None:
    """Refuse nan and inf in values (N, ...)."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        raise ValueError(
            f"{name}: expected finite values, got nan or inf in {len(bad)} of {len(values)}; extract again"
        )


def check_inside(points: Float32, size: tuple[int, int]) -> None:
    """Refuse points (N, 2) outside the image: they are of a resized image, or (row, column)."""
    limit = np.array(size) - 0.5 + _BORDER_PX
    outside = ((points < -0.5 - _BORDER_PX) | (points > limit)).any(axis=1)
    if outside.any():
        x, y = points[outside][0]
        swapped = points[:, ::-1]
        fits_swapped = not ((swapped < -0.5 - _BORDER_PX) | (swapped > limit)).any()
        hint = "are they (y, x)?" if fits_swapped else "are they of a resized image?"
        raise ValueError(
            f"keypoints: expected (x, y) inside the image of {size[0]} x {size[1]} pixels, got ({x:.1f}, {y:.1f}) and "
            f"{int(outside.sum()) - 1} more outside; {hint}"
        )
