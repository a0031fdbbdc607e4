"""The images of a place by day and by night: who took them, through which lens, in what light; true surface points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.datasets.types import Camera
from matchlib.mirror.config import AachenMirrorConfig
from matchlib.mirror.lighting import Lighting, draw_lighting
from matchlib.mirror.render import World, cast_depth, render_image
from matchlib.mirror.scene import MirrorScene
from matchlib.mirror.visibility import warp_points
from matchlib.randomness import generator_for

Float64 = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
Role = Literal["db", "sequence", "day", "night", "additional_night"]

_MARGIN_PX = 16  # of the pinhole picture that a distorted one is taken from
_HALF_PIXEL = 0.5  # COLMAP counts from the corner of the image
# Focal length relative to the scene's, and radial distortion; signs and sizes are like those of the published lists.
_LENSES: Mapping[Role, tuple[float, float]] = {
    "db": (1.0, -0.05),
    "sequence": (0.9, -0.02),
    "day": (1.05, -0.035),
    "night": (0.95, 0.03),
    "additional_night": (0.95, 0.03),
}
_NAMES: Mapping[Role, str] = {
    "db": "db/{}.jpg",
    "sequence": "sequences/gopro3_undistorted/image{:05d}.png",
    "day": "query/day/nexus4/IMG_20140521_{:06d}.jpg",
    "night": "query/night/nexus5x/IMG_20161227_{:06d}.jpg",
    "additional_night": "query/night/nexus5x_additional_night/IMG_20170702_{:06d}.jpg",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One image: camera is the pinhole that points are found by, intrinsics are those of the distorted picture."""

    name: str
    role: Role
    camera: Camera
    intrinsics: ColmapCamera
    lighting: Lighting


def aachen_images(config: AachenMirrorConfig) -> int:
    """Cameras that the scene needs."""
    return len(_roles(config))


def aachen_views(scene: MirrorScene, config: AachenMirrorConfig, *, seed: int) -> tuple[View, ...]:
    """All images: reference images by day, queries among them along the way, by day and by night."""
    roles = _roles(config)
    reference, others = roles[: config.reference_images], roles[config.reference_images :]
    order = generator_for(seed, "aachen", scene.name, "roles").permutation(len(others))
    waiting = {True: iter(reference), False: iter([others[place] for place in order])}
    is_reference = _spread(len(roles), len(reference))
    light_rng = generator_for(seed, "aachen", scene.name, "night")
    night = [night_lighting(light_rng) for _ in range(2)]
    counts = dict.fromkeys(_NAMES, 0)
    views = []
    for index, (camera, light) in enumerate(zip(scene.cameras, scene.lightings, strict=True)):
        role = next(waiting[is_reference[index]])
        counts[role] += 1
        pinhole, intrinsics = _lens(camera, *_LENSES[role])
        lighting = night[counts[role] % 2] if role.endswith("night") else light
        name = _NAMES[role].format(counts[role])
        views.append(View(name=name, role=role, camera=pinhole, intrinsics=intrinsics, lighting=lighting))
    return tuple(sorted(views, key=lambda view: (list(_NAMES).index(view.role), len(view.name), view.name)))


def night_lighting(rng: np.random.Generator) -> Lighting:
    """Street lamps: dark, warm, from elsewhere, on a noisy sensor."""
    return replace(
        draw_lighting(rng),
        ambient=float(rng.uniform(0.25, 0.4)),
        brightness=float(rng.uniform(0.42, 0.55)),
        gamma=float(rng.uniform(1.05, 1.25)),
        warmth=float(rng.uniform(1.15, 1.3)),
        vignetting=float(rng.uniform(0.3, 0.5)),
        noise=float(rng.uniform(4.0, 6.0)),
    )


def take_picture(world: World, view: View, rng: np.random.Generator, supersampling: int) -> Image:
    """(H, W, 3) uint8 RGB as the lens shows it: each pixel looks up where its ray lies in a larger pinhole picture."""
    width, height = view.camera.size
    K = view.camera.K.copy()
    K[:2, 2] += _MARGIN_PX
    larger = Camera(
        K=K,
        T_world_to_cam=view.camera.T_world_to_cam,
        size=(width + 2 * _MARGIN_PX, height + 2 * _MARGIN_PX),
    )
    pinhole = render_image(world, larger, view.lighting, rng, supersampling=supersampling)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2) + _HALF_PIXEL
    rays = np.asarray(colmap_camera(view.intrinsics, 1).cam_from_img(grid))
    where = (rays @ K[:2, :2].T + K[:2, 2]).reshape(height, width, 2).astype(np.float32)
    x, y = np.ascontiguousarray(where[..., 0]), np.ascontiguousarray(where[..., 1])
    picture = cv2.remap(pinhole, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(picture, np.uint8)


# ---------------------------------------------------------------- roles and lenses
def _roles(config: AachenMirrorConfig) -> list[Role]:
    counts: Mapping[Role, int] = {
        "db": config.reference_images,
        "sequence": config.sequence_images,
        "day": config.day_queries,
        "night": config.night_queries,
        "additional_night": config.additional_night_queries,
    }
    return [role for role, count in counts.items() for _ in range(count)]


def _spread(total: int, marked: int) -> list[bool]:
    """`marked` of `total` places, evenly (Bresenham)."""
    return [(place + 1) * marked // total > place * marked // total for place in range(total)]


def _lens(camera: Camera, zoom: float, k: float) -> tuple[Camera, ColmapCamera]:
    """The camera with another focal length, as a pinhole and as COLMAP's SIMPLE_RADIAL."""
    width, height = camera.size
    K = camera.K.copy()
    K[0, 0] = K[1, 1] = focal = round(float(K[0, 0]) * zoom, 3)
    K[:2, 2] = (width - 1) / 2, (height - 1) / 2
    pinhole = Camera(K=K, T_world_to_cam=camera.T_world_to_cam, size=camera.size)
    params = (focal, width / 2, height / 2, k)
    return pinhole, ColmapCamera(model="SIMPLE_RADIAL", width=width, height=height, params=params)


# ---------------------------------------------------------------- points
def surface_points(
    world: World, views: Sequence[View], config: AachenMirrorConfig, seed: int
) -> Iterator[tuple[Float64, dict[str, Float64]]]:
    """Surface points as reference images see them: position (3,), and by name where, in COLMAP's pixels."""
    reference = [view for view in views if view.role in ("db", "sequence")]
    for view in reference:
        rng = generator_for(seed, "aachen", view.name, "points")
        spots = rng.uniform([0, 0], [side - 1 for side in view.camera.size], (config.points_per_image, 2))
        depth = cast_depth(world, view.camera, spots)
        rays = np.column_stack([spots, np.ones(len(spots))]) @ np.linalg.inv(view.camera.K).T
        R, t = view.camera.T_world_to_cam[:3, :3], view.camera.T_world_to_cam[:3, 3]
        positions = (rays * depth[:, None] - t) @ R
        visible = {other.name: warp_points(world, view.camera, other.camera, spots)[1] for other in reference}
        for row in np.flatnonzero(depth > 0):
            seen = {
                other.name: _project(other, positions[row]) for other in reference if visible[other.name][row]
            }
            if len(seen) > 1:
                yield positions[row], seen


def _project(view: View, position: Float64) -> Float64:
    T = view.camera.T_world_to_cam
    return np.asarray(colmap_camera(view.intrinsics, 1).img_from_cam(T[:3, :3] @ position + T[:3, 3]))


def colmap_camera(camera: ColmapCamera, camera_id: int) -> Any:
    import pycolmap

    return pycolmap.Camera(
        model=camera.model,
        width=camera.width,
        height=camera.height,
        params=list(camera.params),
        camera_id=camera_id,
    )
