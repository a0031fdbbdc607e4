"""Small pictures of SuperPoint in training, for TensorBoard. All (H, W, 3) uint8 RGB.

Views smaller than 240 rows are enlarged by a whole factor, or a marker would cover what it marks.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from matchlib.features.types import Image
from matchlib.methods.superpoint.metrics import CheckedMatches
from matchlib.methods.superpoint.shapes_pairs import ShapesBatch

_GREEN, _RED, _GREY, _BLUE = (40, 200, 60), (230, 50, 40), (150, 150, 150), (60, 140, 230)
_NOTHING = (0, 0, 70)
_LEAST_HEIGHT = 240
_COLUMNS = 4
_HEAT_OPACITY = 0.6


def draw_shapes(batch: ShapesBatch, *, rows: int = 4) -> Image:
    """The first pictures of a batch, up to four in a row, with their labels; what shows nothing is blue."""
    count = min(len(batch), rows * _COLUMNS)
    columns = min(_COLUMNS, count)
    tiles = []
    for index in range(count):
        tile = _to_rgb(batch.image[index])
        tile[~batch.valid[index].cpu().numpy()] = _NOTHING
        factor = _factor(tile)
        tiles.append(_enlarged(tile, factor))
        _mark(tiles[-1], batch.keypoints[index], _GREEN, factor=factor, radius=3)
    tiles += [np.zeros_like(tiles[0])] * (-count % columns)
    return np.vstack([np.hstack(tiles[first : first + columns]) for first in range(0, len(tiles), columns)])


def draw_detections(image: Tensor, heat_HW: Tensor, points: Tensor, labels: Tensor | None) -> Image:
    """Side by side: the image with detections (green) in labels (blue), and the heat map over the image.

    image: (1 or 3, H, W) in [0, 1]; heat_HW: (H, W), shown from 0 to its largest value; points, labels: (N, 2).
    """
    plain = _to_rgb(image)
    level = (heat_HW / heat_HW.max().clamp_min(1e-12) * 255).round().byte().cpu().numpy()
    colours = np.ascontiguousarray(cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1])
    heat = np.asarray(cv2.addWeighted(colours, _HEAT_OPACITY, plain, 1 - _HEAT_OPACITY, 0), np.uint8)
    factor = _factor(plain)
    marked = _enlarged(plain, factor)
    if labels is not None:
        _mark(marked, labels, _BLUE, factor=factor, radius=5)
    _mark(marked, points, _GREEN, factor=factor, radius=2)
    return np.hstack([marked, _enlarged(heat, factor)])


def draw_matches(image0: Tensor, image1: Tensor, matches: CheckedMatches, *, threshold_px: float) -> Image:
    """Both views side by side, matches as lines: green within the threshold, red beyond, grey where unknown."""
    plain = np.hstack([_to_rgb(image0), _to_rgb(image1)])
    factor = _factor(plain)
    canvas = _enlarged(plain, factor)
    points0, points1, errors_px = (
        values.cpu().double().numpy() for values in (matches.points0, matches.points1, matches.error_px)
    )
    points1[:, 0] += image0.shape[-1]
    for start, end, error_px in zip(points0, points1, errors_px, strict=True):
        colour = _GREY if np.isnan(error_px) else _GREEN if error_px <= threshold_px else _RED
        cv2.line(canvas, _place(start, factor), _place(end, factor), colour, 1, cv2.LINE_AA)
    return canvas


def _mark(canvas: Image, points: Tensor, colour: tuple[int, int, int], *, factor: int, radius: int) -> None:
    for point in points.cpu().double().numpy():
        cv2.circle(canvas, _place(point, factor), radius, colour, 1, cv2.LINE_AA)


def _place(point: npt.NDArray[np.float64], factor: int) -> tuple[int, int]:
    """Where a pixel position lies in the enlarged view."""
    x, y = (point + 0.5) * factor - 0.5
    return round(float(x)), round(float(y))


def _factor(view: Image) -> int:
    height, _, _ = view.shape
    return -(-_LEAST_HEIGHT // int(height))


def _enlarged(view: Image, factor: int) -> Image:
    return view.repeat(factor, axis=0).repeat(factor, axis=1)


def _to_rgb(image: Tensor) -> Image:
    """(1 or 3, H, W) float in [0, 1] to (H, W, 3) uint8."""
    levels = (image.detach().float() * 255).round().clamp(0, 255).byte().cpu()
    picture: Image = levels.expand(3, -1, -1).permute(1, 2, 0).numpy().copy()
    return picture
