"""Keypoints without descriptors: SIFT's and Harris'. For methods that describe any place and detect none."""

from __future__ import annotations

import cv2
import numpy as np

from matchlib.errors import ShapeError, check_shape
from matchlib.features.config import DetectorConfig
from matchlib.features.types import Float32, Image

REVISION = 1  # raised when the same settings give other keypoints
_HARRIS_BLOCK_PX = 2
_HARRIS_SOBEL_PX = 3
_HARRIS_K = 0.04


def detect_keypoints(image: Image, config: DetectorConfig) -> tuple[Float32, Float32]:
    """Keypoints of an (H, W, 3) uint8 RGB image, best first: points (N, 2) float32 (x, y), scores (N,) float32.

    Every place occurs once. Scores are comparable within one image only. A featureless image, or one without
    pixels inside the border, gives N = 0. Raises ShapeError.
    """
    check_shape("image", image, "H W 3")
    if image.dtype != np.uint8:
        raise ShapeError(f"image: expected uint8, got {image.dtype}")
    height, width = image.shape[:2]
    if min(height, width) <= 2 * config.border:
        return np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    points, scores = _sift(grey, config) if config.kind == "sift" else _harris(grey, config)
    last = np.array([width - 1, height - 1], np.float32) - config.border
    kept = ((points >= config.border) & (points <= last)).all(axis=1)
    points, scores = points[kept], scores[kept]
    order = np.argsort(-scores, kind="stable")[: config.max_keypoints or len(scores)]
    return points[order], scores[order]


def _sift(grey: Image, config: DetectorConfig) -> tuple[Float32, Float32]:
    detector = cv2.SIFT.create(
        contrastThreshold=config.contrast_threshold,
        edgeThreshold=config.edge_threshold,
        # Without it all keypoints are off by a quarter of a pixel, which a descriptor map read at them feels.
        enable_precise_upscale=True,
    )
    found = detector.detect(grey, None)
    points = np.array([keypoint.pt for keypoint in found], np.float32).reshape(-1, 2)
    scores = np.array([keypoint.response for keypoint in found], np.float32)
    # One extremum with several dominant orientations is one keypoint: the describer has its own orientation.
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(points[order], axis=0, return_index=True)
    kept = order[np.sort(first)]
    return points[kept], scores[kept]


def _harris(grey: Image, config: DetectorConfig) -> tuple[Float32, Float32]:
    response = cv2.cornerHarris(
        grey.astype(np.float32) / 255,
        _HARRIS_BLOCK_PX,
        _HARRIS_SOBEL_PX,
        _HARRIS_K,
        borderType=cv2.BORDER_REFLECT_101,
    )
    is_strong = response > config.quality * max(float(response.max()), 0.0)
    # Ranks instead of values: equal responses side by side (straight from the pixel grid of drawn images)
    # would otherwise all be the best of their square, or none.
    rows, columns = np.nonzero(is_strong)
    order = np.argsort(-response[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    rank = np.zeros(response.shape, np.float64)
    rank[rows, columns] = np.arange(len(rows), 0, -1)
    side = 2 * config.suppression_radius + 1
    best = cv2.dilate(rank, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0.0)
    kept = rank[rows, columns] == best[rows, columns]
    points = np.stack([columns[kept], rows[kept]], axis=1).astype(np.float32)
    return points, response[rows[kept], columns[kept]].astype(np.float32)
