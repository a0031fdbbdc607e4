"""Shapes of Synthetic Shapes whose corners are shared between surfaces: checkerboards, stripes, cubes.

Every function draws on `image` (H, W) uint8 and returns the labelled points (N, 2) float64, x and y in pixels;
some may lie outside the image. Source of shapes and sizes: rpautrat/SuperPoint.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.features.types import Image
from matchlib.methods.superpoint.shapes_canvas import contrasting_grey

Points = npt.NDArray[np.float64]

_CELLS = (3, 6)
_CELL_CONTRAST = 50
_CHECKERBOARD_JITTER = (0.05, 0.2)  # of the longer side
_STRIPES = (5, 12)
_LEAST_STRIPE = 0.04  # of the shorter side
_STRIPES_JITTER = (0.1, 0.2)
_CUBE_SIDE = (0.2, 2 / 3)  # of the shorter side, before `_CUBE_SCALE`
_CUBE_ANGLE = (np.pi / 10, 4 * np.pi / 10)
_CUBE_SCALE = (0.4, 1.0)
_EDGE_THICKNESS = (0.003, 0.015)  # of the shorter side
_FLATTEST = np.pi / 9  # a board with a sharper or blunter corner shows hardly any of its own
_ATTEMPTS = 50


def draw_checkerboard(image: Image, generator: np.random.Generator) -> Points:
    """A distorted board of 3 to 6 by 3 to 6 cells, neighbours of different grey; all its lattice points."""
    height, width = image.shape
    background = float(image.mean())
    rows, columns = (int(generator.integers(_CELLS[0], _CELLS[1] + 1)) for _ in range(2))
    cell = min((width - 1) // columns, (height - 1) // rows)
    y, x = np.mgrid[: rows + 1, : columns + 1]
    flat = cell * np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
    lattice = _distort(flat, image, generator, _CHECKERBOARD_JITTER).reshape(rows + 1, columns + 1, 2)
    greys = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            beside = [greys[row - 1, column]] if row else []
            beside += [greys[row, column - 1]] if column else []
            greys[row, column] = contrasting_grey(
                generator, background, *beside, least_contrast=_CELL_CONTRAST
            )
            corners = lattice[[row, row, row + 1, row + 1], [column, column + 1, column + 1, column]]
            cv2.fillConvexPoly(image, corners.astype(np.int32), float(greys[row, column]))
    return lattice.reshape(-1, 2)


def draw_stripes(image: Image, generator: np.random.Generator) -> Points:
    """A distorted board of up to 12 stripes, larger than the image; the ends of the stripes' borders."""
    height, width = image.shape
    background = float(image.mean())
    board = np.array([width, height]) * (1.0 + generator.random(2))
    inner = generator.random(int(generator.integers(_STRIPES[0], _STRIPES[1] + 1)) - 1) * board[0]
    borders = [0.0]
    least = _LEAST_STRIPE * min(height, width)
    for border in [*np.sort(inner), board[0]]:
        if border - borders[-1] >= least:
            borders.append(float(border))
    x = np.array(borders)
    flat = np.concatenate([np.stack([x, np.full(len(x), y)], axis=1) for y in (0.0, board[1])])
    ends = _distort(flat, image, generator, _STRIPES_JITTER)
    upper, lower = ends[: len(x)], ends[len(x) :]
    beside: list[float] = []
    for left in range(len(x) - 1):
        grey = contrasting_grey(generator, background, *beside, least_contrast=_CELL_CONTRAST)
        corners = np.stack([upper[left], upper[left + 1], lower[left + 1], lower[left]])
        cv2.fillConvexPoly(image, corners.astype(np.int32), grey)
        beside = [grey]
    return ends


def draw_cube(image: Image, generator: np.random.Generator) -> Points:
    """A turned box in parallel projection with drawn edges; its seven visible corners."""
    shorter = min(image.shape)
    background = float(image.mean())
    sides = generator.uniform(*_CUBE_SIDE, 3) * shorter
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]) * sides
    turned = corners @ _rotation(generator.uniform(*_CUBE_ANGLE, 3)).T
    flat = turned[:, :2] * generator.uniform(*_CUBE_SCALE)
    flat = (flat + _placement(flat, image, generator)).round()
    nearest = int(turned[:, 2].argmax())
    greys: list[int] = []
    faces = _faces_at(nearest)
    for face in faces:
        greys.append(contrasting_grey(generator, background, *greys))
        cv2.fillConvexPoly(image, flat[face].astype(np.int32), greys[-1])
    thickness = max(1, round(float(generator.uniform(*_EDGE_THICKNESS)) * shorter))
    edge = contrasting_grey(generator, background, *greys)
    for face in faces:
        cv2.polylines(image, [flat[face].astype(np.int32)], True, edge, thickness)
    hidden = 7 - nearest
    return np.delete(flat, hidden, axis=0)


def _distort(
    flat: Points, image: Image, generator: np.random.Generator, jitter: tuple[float, float]
) -> Points:
    """Place a flat board (N, 2) in the image, then bend it by a random affine map and a random homography.

    Each map moves the corners of a central square by up to `jitter` of the longer side. Maps that fold the
    board or leave it without proper corners are drawn again. Returns whole pixels.
    """
    height, width = image.shape
    size = np.array([width, height], dtype=np.float64)
    extent = flat.max(axis=0)
    placed = flat + generator.random(2) * (size - 1 - extent)
    outline = placed.min(axis=0) + extent * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    square = (size / 2 + min(height, width) / 3 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])).astype(
        np.float32
    )
    for _ in range(_ATTEMPTS):
        reach = max(height, width) * generator.uniform(*jitter, 2)
        bent = [square + generator.uniform(-r, r, square.shape).astype(np.float32) for r in reach]
        affine = np.vstack([cv2.getAffineTransform(square[:3], bent[0][:3]), [0, 0, 1]])
        H = cv2.getPerspectiveTransform(square, bent[1]) @ affine
        if _is_proper(outline, H):
            placed = _apply(placed, H)
            break
    whole: Points = placed.round()
    return whole


def _is_proper(outline_42: Points, H: Points) -> bool:
    """Whether a quadrilateral stays convex, in front of the horizon, and keeps its corners."""
    w = outline_42 @ H[2, :2] + H[2, 2]
    if w.min() <= 1e-6:
        return False
    corners = _apply(outline_42, H)
    before, after = np.roll(corners, 1, axis=0) - corners, np.roll(corners, -1, axis=0) - corners
    cross = after[:, 0] * before[:, 1] - after[:, 1] * before[:, 0]
    angles = np.arctan2(cross, (before * after).sum(axis=1))
    is_convex = bool((cross > 0).all() or (cross < 0).all())
    return is_convex and bool(
        (np.abs(angles) > _FLATTEST).all() and (np.abs(angles) < np.pi - _FLATTEST).all()
    )


def _apply(points_N2: Points, H: Points) -> Points:
    xyw = np.concatenate([points_N2, np.ones((len(points_N2), 1))], axis=1) @ H.T
    mapped: Points = xyw[:, :2] / xyw[:, 2:]
    return mapped


def _placement(flat: Points, image: Image, generator: np.random.Generator) -> Points:
    """The move (2,) that brings the middle of `flat` into the middle part of the image."""
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    middle = (flat.min(axis=0) + flat.max(axis=0)) / 2
    target: Points = size * generator.uniform(0.3, 0.7, 2) - middle
    return target


def _rotation(angles: Points) -> Points:
    """(3, 3): a turn about x, then y, then z, radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: Points = about_z @ about_y @ about_x
    return rotation


def _faces_at(corner: int) -> list[list[int]]:
    """The three faces of a box that meet in a corner. Bit k of a corner's index is its side along axis k."""
    return [[corner, corner ^ i, corner ^ i ^ j, corner ^ j] for i, j in ((1, 2), (2, 4), (1, 4))]
