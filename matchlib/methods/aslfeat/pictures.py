"""Small pictures of a training pair, for TensorBoard."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.features.types import Float32, Image

_GREEN, _RED, _GREY = (40, 200, 60), (230, 50, 40), (150, 150, 150)


def draw_score_map(score_HW: Float32) -> Image:
    """A score map as a heat map from its smallest to its largest value, (H, W, 3)."""
    low, high = float(score_HW.min()), float(score_HW.max())
    level = ((score_HW - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
    return _as_image(cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1])


def draw_keypoints(image: Image, keypoints_N2: Float32) -> Image:
    """The image with a small circle at each keypoint."""
    canvas = image.copy()
    for x, y in keypoints_N2:
        cv2.circle(canvas, (round(float(x)), round(float(y))), 2, _GREEN, 1, cv2.LINE_AA)
    return canvas


def draw_matches(
    image0: Image,
    image1: Image,
    points0_K2: Float32,
    points1_K2: Float32,
    error_px_K: npt.NDArray[np.floating],
    *,
    threshold_px: float,
) -> Image:
    """Both images side by side, matches as lines: green within the threshold, red beyond, grey where error is
    nan."""
    height = max(image0.shape[0], image1.shape[0])
    canvas = np.zeros((height, image0.shape[1] + image1.shape[1], 3), np.uint8)
    canvas[: image0.shape[0], : image0.shape[1]] = image0
    canvas[: image1.shape[0], image0.shape[1] :] = image1
    for (x0, y0), (x1, y1), error_px in zip(points0_K2, points1_K2, error_px_K, strict=True):
        colour = _GREY if np.isnan(error_px) else _GREEN if error_px <= threshold_px else _RED
        start = (round(float(x0)), round(float(y0)))
        end = (round(float(x1)) + image0.shape[1], round(float(y1)))
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA)
    return canvas


def _as_image(array: npt.NDArray[np.generic]) -> Image:
    image: Image = np.ascontiguousarray(array, dtype=np.uint8)
    return image
