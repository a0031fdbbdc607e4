"""From a photograph of any size to a frame of the views' size, and points with it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from matchlib.errors import DataError
from matchlib.features.types import Float32, Image
from matchlib.photo_pairs.config import WarpConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Where a photograph lies in the frame: resized to `resized`, of which the frame shows `size` from `offset` on.

    All three are (x, y) in whole pixels; `original` is the photograph's own size.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def points(self, points_N2: Float32) -> Float32:
        """Pixels (N, 2) of the photograph as pixels of the frame; the area's corners stay corners."""
        factor = np.array(self.resized) / np.array(self.original)
        moved: Float32 = ((points_N2 + 0.5) * factor - 0.5 - np.array(self.offset)).astype(np.float32)
        return moved

    def image(self, photo: Image) -> Image:
        """The frame (h, w, 3) uint8 of a photograph. Pixels are averaged when it shrinks, so nothing aliases."""
        if self.resized != self.original:
            shrinks = all(new <= old for new, old in zip(self.resized, self.original, strict=True))
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            photo = np.asarray(cv2.resize(photo, self.resized, interpolation=method), dtype=np.uint8)
        (x, y), (width, height) = self.offset, self.size
        return np.ascontiguousarray(photo[y : y + height, x : x + width])


def fit_photo(original: tuple[int, int], size: tuple[int, int], config: WarpConfig, where: str) -> Fit:
    """How a photograph of (width, height) fills a frame of `size` = (width, height).

    Raises DataError, beginning with `where`, for a photograph that is too small to be shrunk or cut.
    """
    if config.small_images == "refuse" and (original[0] < size[0] or original[1] < size[1]):
        raise DataError(
            f"{where}: {original[0]} x {original[1]} pixels are fewer than the {size[0]} x {size[1]} of training; "
            f"lower `image_size`, or set `small_images: upsample`"
        )
    if config.resize == "squash":
        return Fit(original=original, resized=size, offset=(0, 0), size=size)
    factor = max(size[0] / original[0], size[1] / original[1])
    # Rounding must not leave the shorter side a pixel short.
    width, height = (max(round(side * factor), wanted) for side, wanted in zip(original, size, strict=True))
    offset = ((width - size[0]) // 2, (height - size[1]) // 2)
    return Fit(original=original, resized=(width, height), offset=offset, size=size)
