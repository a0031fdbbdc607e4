"""Shapes of Synthetic Shapes that are drawn freely in the plane: lines, polygons, stars, ellipses.

Every function draws on `image` (H, W) uint8 and returns the labelled points (N, 2) float64, x and y in pixels.
Source of shapes and sizes: rpautrat/SuperPoint. Corners are rounded to whole pixels before they are drawn, so
that the label is where the corner is.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.features.types import Image
from matchlib.methods.superpoint.shapes_canvas import contrasting_grey, draw_texture, published_scale

Points = npt.NDArray[np.float64]

_BLUNT = 2 * np.pi / 3  # corners of this angle or more are no interest points
_MAX_LINES = 9
_CORNERS = (3, 7)
_MAX_POLYGONS = 30
_MAX_ELLIPSES = 20
_BRANCHES = (3, 5)
_THICKNESS = (0.01, 0.02)  # of the shorter side
_POLYGON_DRAWS = 10
_ATTEMPTS = 100


def draw_lines(image: Image, generator: np.random.Generator) -> Points:
    """One to nine segments that stay clear of each other; their ends."""
    height, width = image.shape
    wanted = generator.integers(1, _MAX_LINES + 1)
    background = float(image.mean())
    ends: list[Points] = []
    widths: list[int] = []
    for _ in range(wanted):
        segment = generator.integers(0, (width, height), (2, 2)).astype(np.float64)
        thickness = _thickness(image, generator)
        grey = contrasting_grey(generator, background)
        far_enough = [
            _segment_distance(segment, other) > thickness + other_thickness
            for other, other_thickness in zip(ends, widths, strict=True)
        ]
        is_long_enough = float(np.hypot(*(segment[1] - segment[0]))) > 2 * thickness
        if is_long_enough and all(far_enough):
            _line(image, segment[0], segment[1], grey, thickness)
            ends.append(segment)
            widths.append(thickness)
    return np.concatenate(ends) if ends else np.empty((0, 2))


def draw_polygon(image: Image, generator: np.random.Generator) -> Points:
    """One filled polygon of 3 to 7 corners on a wobbly circle; its corners."""
    height, width = image.shape
    shorter = min(height, width)
    radius = max(generator.random() * shorter / 2, shorter / 10)
    corners = _random_polygon(_centre(image, radius, generator), radius, generator)
    grey = contrasting_grey(generator, float(image.mean()))
    cv2.fillPoly(image, [corners.astype(np.int32)], grey)
    return corners


def draw_polygons(image: Image, generator: np.random.Generator) -> Points:
    """Up to 30 textured polygons that do not overlap; their corners."""
    height, width = image.shape
    shorter = min(height, width)
    background = float(image.mean())
    scale = published_scale((width, height))
    placed: list[tuple[Points, float]] = []
    labels = [np.empty((0, 2))]
    for _ in range(_MAX_POLYGONS):
        radius = max(generator.random() * shorter / 2, shorter / 10)
        centre = _centre(image, radius, generator)
        if _overlaps(centre, radius, placed):
            continue
        placed.append((centre, radius))
        corners = _random_polygon(centre, radius, generator)
        _fill_textured(image, corners, contrasting_grey(generator, background), scale, generator)
        labels.append(corners)
    return np.concatenate(labels)


def draw_ellipses(image: Image, generator: np.random.Generator) -> Points:
    """Up to 20 ellipses that do not overlap; no points, for they have no corners."""
    height, width = image.shape
    shorter = min(height, width)
    background = float(image.mean())
    placed: list[tuple[Points, float]] = []
    for _ in range(_MAX_ELLIPSES):
        axes = np.maximum(generator.random(2) * shorter / 5, shorter / 25).round()
        radius = float(axes.max())
        centre = _centre(image, radius, generator).round()
        if _overlaps(centre, radius, placed):
            continue
        placed.append((centre, radius))
        x, y = _pixel(centre)
        grey, angle = contrasting_grey(generator, background), float(generator.uniform(0, 90))
        cv2.ellipse(image, (x, y), (int(axes[0]), int(axes[1])), angle, 0, 360, grey, -1)
    return np.empty((0, 2))


def draw_star(image: Image, generator: np.random.Generator) -> Points:
    """Three to five strokes from one centre; the centre and the tips."""
    height, width = image.shape
    shorter = min(height, width)
    branches = int(generator.integers(_BRANCHES[0], _BRANCHES[1] + 1))
    thickness = _thickness(image, generator)
    radius = max(generator.random() * shorter / 2, shorter / 5)
    centre = _centre(image, radius, generator).round()
    # Strokes nearer than this to each other would grow together, and the tip of the shorter would vanish.
    angles = _spread_angles(branches, generator, least_gap=np.pi / 9)
    lengths = np.maximum(generator.random(branches), 0.3) * radius
    tips = (centre + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round()
    grey = contrasting_grey(generator, float(image.mean()))
    for tip in tips:
        _line(image, centre, tip, grey, thickness)
    return np.concatenate([centre[None], tips])


def corner_angles(corners: Points) -> npt.NDArray[np.float64]:
    """(N,) radians, 0 to pi: the angle between the two edges that meet in each corner of a closed polygon."""
    before = np.roll(corners, 1, axis=0) - corners
    after = np.roll(corners, -1, axis=0) - corners
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    angles: npt.NDArray[np.float64] = np.arctan2(np.abs(cross), (before * after).sum(axis=1))
    return angles


def _random_polygon(centre: Points, radius: float, generator: np.random.Generator) -> Points:
    """Corners (N, 2), N >= 3, whole pixels, all sharper than 120 degrees.

    Blunt corners are left out, bluntest first, until none is left. Of some draws the one that loses fewest
    is taken, or nearly all polygons would end as triangles.
    """
    most = np.empty((0, 2))
    count = int(generator.integers(_CORNERS[0], _CORNERS[1] + 1))
    for attempt in range(_ATTEMPTS):
        slices = np.arange(count) + generator.random(count)
        angles = slices * (2 * np.pi / count)
        lengths = np.maximum(generator.random(count), 0.4) * radius
        corners = (centre + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round()
        while len(corners) >= 3 and corner_angles(corners).max() >= _BLUNT:
            corners = np.delete(corners, int(corner_angles(corners).argmax()), axis=0)
        if len(corners) > len(most):
            most = corners
        if len(most) == count or (len(most) >= 3 and attempt >= _POLYGON_DRAWS):
            return most
    equilateral: Points = centre + radius * np.array([[0.0, -1.0], [0.866, 0.5], [-0.866, 0.5]])
    return equilateral.round()


def _spread_angles(
    count: int, generator: np.random.Generator, *, least_gap: float
) -> npt.NDArray[np.float64]:
    """(count,) ascending directions with at least `least_gap` radians between neighbours."""
    slices = np.arange(count) * (2 * np.pi / count)
    return slices + generator.random(count) * (2 * np.pi / count - least_gap)


def _fill_textured(
    image: Image, corners: Points, grey: int, scale: float, generator: np.random.Generator
) -> None:
    height, width = image.shape
    low = np.clip(corners.min(axis=0), 0, (width - 1, height - 1)).astype(np.int32)
    high = np.clip(corners.max(axis=0), 0, (width - 1, height - 1)).astype(np.int32) + 1
    part = image[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(part.shape, np.uint8)
    cv2.fillPoly(mask, [corners.astype(np.int32) - low], 1)
    texture = draw_texture((part.shape[1], part.shape[0]), grey, scale, generator)
    part[mask > 0] = texture[mask > 0]


def _centre(image: Image, radius: float, generator: np.random.Generator) -> Points:
    """A position (2,) at least `radius` from the border; the middle where there is none."""
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float64) - 1
    margin = np.minimum(np.ceil(radius), size / 2)
    centre: Points = generator.uniform(margin, size - margin)
    return centre


def _overlaps(centre: Points, radius: float, placed: Sequence[tuple[Points, float]]) -> bool:
    return any(float(np.hypot(*(centre - other))) < radius + reach for other, reach in placed)


def _thickness(image: Image, generator: np.random.Generator) -> int:
    height, width = image.shape
    return max(1, round(float(generator.uniform(*_THICKNESS)) * float(min(height, width))))


def _line(image: Image, start: Points, end: Points, grey: int, thickness: int) -> None:
    cv2.line(image, _pixel(start), _pixel(end), grey, thickness)


def _pixel(point: Points) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _segment_distance(first: Points, second: Points) -> float:
    """Distance of two segments (2, 2), 0 if they cross."""
    if _cross(first, second):
        return 0.0
    return min(
        *(_point_distance(point, second) for point in first),
        *(_point_distance(point, first) for point in second),
    )


def _cross(first: Points, second: Points) -> bool:
    return _separated_by(first, second) and _separated_by(second, first)


def _separated_by(line: Points, points: Points) -> bool:
    """Whether two points lie strictly on different sides of a line through two others."""
    direction, offsets = line[1] - line[0], points - line[0]
    sides = direction[0] * offsets[:, 1] - direction[1] * offsets[:, 0]
    return bool(sides[0] * sides[1] < 0)


def _point_distance(point: Points, segment: Points) -> float:
    direction = segment[1] - segment[0]
    along = np.clip(np.dot(point - segment[0], direction) / max(float(direction @ direction), 1e-12), 0, 1)
    return float(np.hypot(*(segment[0] + along * direction - point)))
