"""A reconstruction as an interactive part of the report: points, cameras, and a list of the images.

The page needs nothing but itself, so the data lie in attributes of one element, packed: positions as three 16-bit
numbers, colours as three bytes, cameras as fifteen float32. `model_view.js` draws them on a canvas.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from matchlib.errors import DataError, ShapeError, check_shape
from matchlib.visualization.draw import error_colours
from matchlib.visualization.markup import Markup, element
from matchlib.visualization.model_controls import HINT, KINDS, CameraKind, controls
from matchlib.visualization.report import Figure

Float64 = npt.NDArray[np.float64]
Colours = npt.NDArray[np.uint8]

MAX_POINTS = 20_000
_REACH = (
    10.0  # points farther out than this many times the scale of the scene would make the steps too coarse
)
_STEP = 2 * _REACH / 65535


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewCamera:
    """A camera to draw. Distortion is not drawn.

    name:           of the image
    K:              (3, 3), pixels, centre of the first pixel at (0, 0)
    size:           (width, height) of the image in pixels
    T_world_to_cam: (4, 4)
    kind:           of the map; registered afterwards, as queries are; or the true pose of an image of that name
    Raises ShapeError for other shapes, for values that are not finite, and for a K that has no inverse.
    """

    name: str
    K: Float64
    size: tuple[int, int]
    T_world_to_cam: Float64
    kind: CameraKind = "mapped"

    def __post_init__(self) -> None:
        check_shape(f"{self.name}: K", self.K, "3 3")
        check_shape(f"{self.name}: T_world_to_cam", self.T_world_to_cam, "4 4")
        if self.kind not in get_args(CameraKind):
            raise ShapeError(
                f"{self.name}: kind: expected one of {', '.join(get_args(CameraKind))}, got {self.kind!r}"
            )
        values = np.concatenate([np.ravel(self.K), np.ravel(self.T_world_to_cam)])
        if not np.isfinite(values).all() or abs(np.linalg.det(self.K)) < 1e-12:
            raise ShapeError(
                f"{self.name}: expected a finite pose and a K with an inverse, got K = {self.K.tolist()}"
            )

    @property
    def centre(self) -> Float64:
        """(3,) in the world."""
        centre: Float64 = -self.T_world_to_cam[:3, :3].T @ self.T_world_to_cam[:3, 3]
        return centre

    def corners(self) -> Float64:
        """(4, 3) from the centre to the corners of the image area at depth 1, in world axes, from the upper left
        one on clockwise."""
        right, bottom = self.size[0] - 0.5, self.size[1] - 0.5
        pixels = np.array([[-0.5, -0.5, 1], [right, -0.5, 1], [right, bottom, 1], [-0.5, bottom, 1]])
        rays: Float64 = pixels @ np.linalg.inv(self.K).T @ self.T_world_to_cam[:3, :3]
        return rays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelPicture:
    """A reconstruction to draw; see `model_view`. `title` says what it is, such as "aslfeat, Madrid"."""

    title: str
    points: Float64
    colours: Colours
    cameras: Sequence[ViewCamera]
    errors_px: Float64 | None = None


def model_view(
    points: Float64,
    colours: Colours,
    cameras: Sequence[ViewCamera],
    title: str,
    *,
    errors_px: Float64 | None = None,
    max_points: int = MAX_POINTS,
) -> Markup:
    """The view as HTML; it works in pages of `render_page`, which bring its script and style.

    points:    (N, 3) in the world; N may be 0
    colours:   (N, 3) uint8 RGB, of the images
    errors_px: (N,) reprojection errors: the reader may then colour by them (green to 1 px, orange from 5 px)
    title:     what a reader who does not see the picture should know
    max_points: of more points so many are drawn, evenly spaced in their order
    Points very far out (ten times the distance within which 90 % lie) are left out. Raises ShapeError, and DataError
    where there is nothing to draw.
    """
    return _view(_chosen(points, colours, errors_px, cameras, max_points), cameras, title)


def model_figure(picture: ModelPicture, *, max_points: int = MAX_POINTS) -> Figure:
    """As `model_view`, as a figure of the report whose caption says which points are not drawn."""
    scene = _chosen(picture.points, picture.colours, picture.errors_px, picture.cameras, max_points)
    kinds = [camera.kind for camera in picture.cameras]
    counts = ", ".join(f"{kinds.count(kind)} {text}" for kind, text in KINDS.items() if kind in kinds)
    alt = ": ".join(part for part in (picture.title, counts) if part)
    lines = (
        " Lines join registered queries with their true poses."
        if {"registered", "truth"} <= set(kinds)
        else ""
    )
    return Figure(
        kind="model",
        data=_view(scene, picture.cameras, alt),
        caption=f"{picture.title}. {scene.note}{lines}",
        alt=alt,
    )


def read_model_points(attributes: dict[str, str]) -> tuple[Float64, Colours]:
    """Positions (N, 3) in the world and colours (N, 3) from the attributes of a view: what the script sees.

    Positions are off by half a step, `data-step` times `data-scale`, at most.
    """
    quantised = np.frombuffer(base64.b64decode(attributes["data-points"]), "<u2").reshape(-1, 3)
    colours = np.frombuffer(base64.b64decode(attributes["data-image"]), np.uint8).reshape(-1, 3)
    relative = (quantised - 32767.5) * float(attributes["data-step"])
    return relative * float(attributes["data-scale"]) + np.array(
        json.loads(attributes["data-centre"])
    ), colours


# ---------------------------------------------------------------- what is drawn
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scene:
    """Points to draw, relative to `centre` and in units of `scale`, and what is said of those left out."""

    relative: Float64
    colours: Colours
    error_colours: Colours | None
    centre: Float64
    scale: float
    note: str


def _chosen(
    points: Float64,
    colours: Colours,
    errors_px: Float64 | None,
    cameras: Sequence[ViewCamera],
    max_points: int,
) -> _Scene:
    count = check_shape("points", points, "N 3")["N"]
    check_shape("colours", colours, f"{count} 3")
    if colours.dtype != np.uint8:
        raise ShapeError(f"colours: expected uint8 RGB, got {colours.dtype}")
    if not np.isfinite(points).all():
        raise ShapeError(
            "points: expected finite coordinates, got nan or inf; drop such points before drawing"
        )
    if errors_px is not None:
        check_shape("errors_px", errors_px, str(count))
    anchors = np.asarray(points, np.float64) if count else np.array([camera.centre for camera in cameras])
    if not len(anchors):
        raise DataError("model view: expected points or cameras, got neither; leave the picture out")
    centre = np.median(anchors, axis=0)
    scale = float(np.quantile(np.linalg.norm(anchors - centre, axis=1), 0.9)) or 1.0
    relative = (np.asarray(points, np.float64) - centre) / scale
    near = np.flatnonzero(np.abs(relative).max(axis=1, initial=0.0) <= _REACH)
    kept = (
        near[np.linspace(0, len(near) - 1, max_points).round().astype(int)]
        if len(near) > max_points
        else near
    )
    return _Scene(
        relative=relative[kept],
        colours=colours[kept],
        error_colours=None if errors_px is None else error_colours(errors_px[kept]),
        centre=centre,
        scale=scale,
        note=_note(count, count - len(near), len(kept)),
    )


def _note(count: int, far: int, drawn: int) -> str:
    parts = [f"{drawn} of {count} points drawn"] if drawn < count else [f"{count} points"]
    if far:
        parts.append(f"{far} left out that lie far from the others")
    return ", ".join(parts) + "."


def _initial_frame(cameras: Sequence[ViewCamera]) -> Float64:
    """(3, 3) right, down and forward in the world: upright and in the mean direction of the cameras."""
    rotations = [camera.T_world_to_cam[:3, :3] for camera in cameras]
    mean = np.mean(rotations, axis=0) if rotations else np.eye(3)
    down = _unit(mean[1], otherwise=np.array([0.0, 1.0, 0.0]))
    # Cameras around a thing look in all directions: then any level one will do.
    level = [direction - (direction @ down) * down for direction in (mean[2], np.eye(3)[2], np.eye(3)[0])]
    forward = next(_unit(direction) for direction in level if np.linalg.norm(direction) > 0.1)
    return np.stack([np.cross(down, forward), down, forward])


def _middle(points: Float64, centres: Float64) -> tuple[Float64, float]:
    """Middle (3,) of most points and of the cameras, and the distance from it within which most of both lie."""
    corners = [np.quantile(part, (0.05, 0.95), axis=0) for part in (points, centres) if len(part)]
    box = np.concatenate(corners)
    middle: Float64 = (box.min(axis=0) + box.max(axis=0)) / 2
    reach = [
        float(np.quantile(np.linalg.norm(part - middle, axis=1), 0.9))
        for part in (points, centres)
        if len(part)
    ]
    return middle, max(*reach, 1e-3)


def _unit(vector: Float64, otherwise: Float64 | None = None) -> Float64:
    length = float(np.linalg.norm(vector))
    if otherwise is not None and length < 1e-6:
        return otherwise
    result: Float64 = vector / length
    return result


# ---------------------------------------------------------------- HTML
def _view(scene: _Scene, cameras: Sequence[ViewCamera], title: str) -> Markup:
    centres = np.array([(camera.centre - scene.centre) / scene.scale for camera in cameras]).reshape(-1, 3)
    packed = np.array(
        [
            np.concatenate([centre, camera.corners().ravel()])
            for centre, camera in zip(centres, cameras, strict=True)
        ]
    )
    quantised = np.rint(scene.relative / _STEP + 32767.5).clip(0, 65535)
    target, reach = _middle(scene.relative, centres)
    frame = _initial_frame(cameras).round(6).ravel().tolist()
    errors = scene.error_colours
    return element(
        "div",
        element(
            "canvas",
            "This picture is drawn by a script.",
            tabindex="0",
            role="img",
            aria_label=f"{title}. {HINT}",
        ),
        controls([(camera.name, camera.kind) for camera in cameras], has_errors=errors is not None),
        class_="model-view",
        data_points=_base64(quantised.astype("<u2")),
        data_step=repr(_STEP),
        data_image=_base64(scene.colours),
        data_error=None if errors is None else _base64(errors),
        data_centre=json.dumps(scene.centre.tolist()),
        data_scale=repr(scene.scale),
        data_cameras=_base64(packed.astype("<f4")),
        data_names=json.dumps([[camera.name, camera.kind] for camera in cameras], ensure_ascii=False),
        data_view=json.dumps(
            {"frame": frame, "target": target.round(5).tolist(), "distance": round(2.3 * reach, 4)}
        ),
        data_frustum=repr(round(0.15 * reach / max(1.0, len(cameras) / 20) ** (1 / 3), 5)),
    )


def _base64(array: npt.NDArray[np.generic]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
