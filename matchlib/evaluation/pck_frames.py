"""Frames of the PCK evaluation: images and homographies at one size, and the local scale of a homography."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.errors import check_shape
from matchlib.evaluation.metrics import Float

Origin = Literal["centre", "corner"]


def frame_size(size: tuple[int, int], longer_side: int | None) -> tuple[int, int]:
    """(width, height) after scaling to `longer_side`; the other side is rounded, at least 1. None: unchanged."""
    if longer_side is None:
        return size
    factor = longer_side / max(size)
    width, height = (max(1, round(side * factor)) for side in size)
    return width, height


def frame_scaling(size: tuple[int, int], scaled: tuple[int, int], origin: Origin) -> Float:
    """Map from pixels of an image of `size` (width, height) to pixels of the same image at `scaled`.

    Each axis has its own exact ratio s. `centre`: x' = (x + 1/2) s - 1/2, what resampling does to the picture;
    `corner`: x' = s x. Returns (3, 3) float64.
    """
    sx, sy = scaled[0] / size[0], scaled[1] / size[1]
    if origin == "corner":
        return np.diag([sx, sy, 1.0])
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1.0]])


def resize_image(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """An (H, W, 3) uint8 image at `size` (width, height), bilinear both up and down, as upstream."""
    check_shape("image", image, "H W 3")
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def true_scale(H_0to1: npt.ArrayLike, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Local scale of image 0 relative to image 1, (H, W) float32: 2 where image 1 shows the spot half as large.

    H_0to1: (3, 3), from this image to the other. size: (width, height) of this image.
    It is the inverse square root of the homography's area ratio: with C = h31 x + h32 y + h33, the Jacobian
    has the determinant det H / C^3, so the scale is sqrt(|C|^3 / |det H|); 0 on the horizon.
    """
    H = np.asarray(H_0to1, dtype=np.float64)
    check_shape("H_0to1", H, "3 3")
    x, y = np.arange(size[0], dtype=np.float64), np.arange(size[1], dtype=np.float64)
    C = np.abs(H[2, 0] * x + (H[2, 1] * y + H[2, 2])[:, None])
    return np.asarray(np.sqrt(C**3 / abs(np.linalg.det(H))), dtype=np.float32)
