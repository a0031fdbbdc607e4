"""Contact sheets of training pairs, for TensorBoard and the report."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.features.types import Float32, Image
from matchlib.geometry.sampling import pixel_grid
from matchlib.photo_pairs.batch import HomographyBatch

_GAP_PX = 4
_LINES = 12
_LABEL, _OUTLINE = (86, 180, 233), (213, 94, 0)


def sample_sheet(batch: HomographyBatch, rows: int = 4) -> Image:
    """The first `rows` pairs, view 0 beside view 1, one pair per row: (H, W, 3) uint8 RGB.

    Lines join true correspondences spread over view 0, a colour each; the outline is the edge of the valid mask; dots
    are labelled interest points.
    """
    strips = [_pair(batch, index) for index in range(min(rows, len(batch)))]
    gap = np.full((_GAP_PX, strips[0].shape[1], 3), 255, np.uint8)
    parts = [part for strip in strips for part in (gap, strip)]
    return np.concatenate(parts[1:])


def _pair(batch: HomographyBatch, index: int) -> Image:
    views = []
    for image, valid, keypoints in (
        (batch.image0, batch.valid0, batch.keypoints0),
        (batch.image1, batch.valid1, batch.keypoints1),
    ):
        view = _as_picture(image[index])
        _draw_outline(view, valid[index].cpu().numpy())
        if keypoints is not None:
            _draw_labels(view, keypoints[index].cpu().numpy())
        views.append(view)
    gap = np.full((views[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    canvas = np.concatenate([views[0], gap, views[1]], axis=1)
    points0, points1 = _correspondences(batch, index)
    _draw_lines(canvas, points0, points1 + np.array([batch.size[0] + _GAP_PX, 0], np.float32))
    return canvas


def _as_picture(image_3HW: Tensor) -> Image:
    levels = (image_3HW * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
    return np.ascontiguousarray(levels.cpu().numpy())


def _correspondences(batch: HomographyBatch, index: int) -> tuple[Float32, Float32]:
    """Some known correspondences (N, 2) of one pair, evenly spread over view 0."""
    width, height = batch.size
    grid = pixel_grid(height, width, device=batch.image0.device)
    points1, known = batch.warp(grid.expand(len(batch), -1, -1))
    seen = torch.nonzero(known[index])[:, 0]
    if len(seen) == 0:
        return np.empty((0, 2), np.float32), np.empty((0, 2), np.float32)
    # Steps of the golden ratio through the pixels row by row: spread over rows and, by their remainder, over columns.
    share = (torch.arange(_LINES, device=seen.device, dtype=torch.float64) + 1) * 0.6180339887498949 % 1
    chosen = seen[(share * len(seen)).long()]
    return grid[chosen].cpu().numpy(), points1[index, chosen].cpu().numpy()


def _draw_outline(view: Image, valid: npt.NDArray[np.bool_]) -> None:
    if valid.all():
        return
    contours, _ = cv2.findContours(valid.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(view, contours, -1, _OUTLINE, 1)


def _draw_labels(view: Image, points_N2: Float32) -> None:
    for x, y in points_N2:
        cv2.circle(view, (round(float(x)), round(float(y))), 2, _LABEL, 1, cv2.LINE_AA)


def _draw_lines(canvas: Image, points0: Float32, points1: Float32) -> None:
    """One line per correspondence with dots at its ends, hues evenly spaced."""
    hues = np.linspace(0, 180, max(len(points0), 1), endpoint=False).astype(np.uint8)
    colours = cv2.cvtColor(np.stack([hues, *[np.full_like(hues, 230)] * 2], axis=1)[None], cv2.COLOR_HSV2RGB)[
        0
    ]
    for start, end, colour in zip(points0, points1, colours, strict=False):
        ends = [(round(float(x)), round(float(y))) for x, y in (start, end)]
        paint = tuple(int(level) for level in colour)
        cv2.line(canvas, ends[0], ends[1], paint, 1, cv2.LINE_AA)
        for place in ends:
            cv2.circle(canvas, place, 3, paint, -1, cv2.LINE_AA)
