"""Synthetic Shapes: pictures of simple shapes with known corners, on which a detector learns what a corner is.

Source: DeTone, Malisiewicz, Rabinovich, "SuperPoint", CVPRW 2018, section 4; sizes and rules of the labels
after rpautrat/SuperPoint. Everything is drawn from one generator, so a picture is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.errors import ShapeError
from matchlib.features.types import Float32, Image
from matchlib.methods.superpoint.shapes_canvas import draw_background, inside_frame, published_scale
from matchlib.methods.superpoint.shapes_lattices import draw_checkerboard, draw_cube, draw_stripes
from matchlib.methods.superpoint.shapes_primitives import (
    draw_ellipses,
    draw_lines,
    draw_polygon,
    draw_polygons,
    draw_star,
)
from matchlib.methods.superpoint.training_config import ShapesConfig

_DRAW: dict[str, Callable[[Image, np.random.Generator], npt.NDArray[np.float64]]] = {
    "lines": draw_lines,
    "polygon": draw_polygon,
    "polygons": draw_polygons,
    "ellipses": draw_ellipses,
    "star": draw_star,
    "checkerboard": draw_checkerboard,
    "stripes": draw_stripes,
    "cube": draw_cube,
}

PRIMITIVES = (*_DRAW, "noise")
"""Kinds of pictures; ellipses and noise have no points."""


def draw_shape(primitive: str, generator: np.random.Generator, config: ShapesConfig) -> tuple[Image, Float32]:
    """Draw one picture of a kind, sharp and at full size.

    Returns the picture (H, W) uint8 of `config.draw_size` = (W, H) and its interest points (N, 2) float32,
    (x, y) in its pixels, all inside; N may be 0. Raises ShapeError for a kind that is not in `PRIMITIVES`.
    """
    width, height = config.draw_size
    if primitive == "noise":
        noise: Image = generator.integers(0, 256, (height, width), dtype=np.uint8)
        return noise, np.empty((0, 2), np.float32)
    if primitive not in _DRAW:
        raise ShapeError(f"primitive: expected one of {', '.join(PRIMITIVES)}, got '{primitive}'")
    image = draw_background(config.draw_size, generator)
    points = _DRAW[primitive](image, generator)
    return image, points[inside_frame(points, config.draw_size)].astype(np.float32)


def render_shape(
    primitive: str, generator: np.random.Generator, config: ShapesConfig, *, size: tuple[int, int]
) -> tuple[Image, Float32]:
    """Draw one picture of a kind, smooth it and bring it to `size` = (width, height).

    Returns the picture (height, width) uint8 and its interest points (N, 2) float32 in its pixels, all inside;
    points of the drawing that lie within half a pixel of the border are lost when that half is cut off.
    """
    drawing, points = draw_shape(primitive, generator, config)
    side = _odd(config.blur * published_scale(config.draw_size))
    smooth = cv2.GaussianBlur(drawing, (side, side), 0)
    shrinks = size[0] <= config.draw_size[0] and size[1] <= config.draw_size[1]
    # differs from rpautrat/SuperPoint: its bilinear reading at every eighth pixel would alias what noise is left.
    resized = cv2.resize(smooth, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    factor = np.array(size, np.float64) / np.array(config.draw_size)
    moved = (points + 0.5) * factor - 0.5
    image: Image = np.ascontiguousarray(resized, dtype=np.uint8)
    return image, moved[inside_frame(moved, size)].astype(np.float32)


def _odd(length: float) -> int:
    return max(1, round((length - 1) / 2) * 2 + 1)
