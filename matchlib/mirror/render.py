"""Ray casting of a textured scene: exact z-depth, and pictures under a chosen light.

A pixel (x, y) is the point (x, y) itself; the area that a picture averages is the square of side 1 around it.
So images, depths and keypoints of any resolution agree as long as the same K is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Camera
from matchlib.errors import check_shape
from matchlib.mirror.lighting import Lighting, develop, shading
from matchlib.mirror.surfaces import NEAR, Hits, Surface

Float = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
_SKY_TOP = np.array([120.0, 160.0, 215.0], np.float32)
_SKY_BOTTOM = np.array([215.0, 222.0, 230.0], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextureAtlas:
    """One texture and its halved copies below each other in one picture, so that one lookup can mix levels.

    pixels:  (H, W, 3) uint8 RGB
    side:    side of level 0 in texels
    offsets: first row of each level
    """

    pixels: Image
    side: int
    offsets: tuple[int, ...]


def build_atlas(texture: Image) -> TextureAtlas:
    """Stack the mip levels (area averages, down to 8 texels) of a square texture (S, S, 3) uint8."""
    side = check_shape("texture", texture, "S S 3")["S"]
    levels = [texture]
    while levels[-1].shape[0] > 8:
        half = levels[-1].shape[0] // 2
        levels.append(
            np.asarray(cv2.resize(levels[-1], (half, half), interpolation=cv2.INTER_AREA), np.uint8)
        )
    offsets = np.cumsum([0, *(level.shape[0] for level in levels)])
    pixels = np.zeros((int(offsets[-1]), side, 3), np.uint8)
    for level, start in zip(levels, offsets, strict=False):
        pixels[start : start + level.shape[0], : level.shape[1]] = level
    return TextureAtlas(pixels=pixels, side=side, offsets=tuple(int(start) for start in offsets[:-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Surfaces and the textures they show."""

    surfaces: tuple[Surface, ...]
    atlases: tuple[TextureAtlas, ...]


# ---------------------------------------------------------------- depth
def camera_rays(camera: Camera, points: Float) -> tuple[Float, Float]:
    """Camera centre (3,) and world directions S + (3,) of camera z = 1 through pixel positions S + (2,)."""
    R, t = camera.T_world_to_cam[:3, :3], camera.T_world_to_cam[:3, 3]
    rays = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
    return -R.T @ t, rays @ (R.T @ np.linalg.inv(camera.K)).T


def cast_depth(world: World, camera: Camera, points_N2: Float) -> Float:
    """Exact z-depth at pixel positions (N, 2), float64 (N,), 0 where no surface is hit.

    Lens distortion is not applied: positions are those of the undistorted image.
    """
    check_shape("points", points_N2, "N 2")
    origin, directions = camera_rays(camera, np.asarray(points_N2, np.float64))
    depth = np.full(len(points_N2), np.inf)
    for surface in world.surfaces:
        np.minimum(depth, surface.intersect(origin, directions).depth, out=depth)
    return np.where(np.isfinite(depth), depth, 0.0)


def resized_camera(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera of the same image resized to `size` (width, height), by the datasets' own rule for K."""
    return Camera(K=camera.scaled_K(*size), T_world_to_cam=camera.T_world_to_cam, size=size)


def render_depth(world: World, camera: Camera) -> npt.NDArray[np.float32]:
    """z-depth at every pixel centre, (H, W) float32, 0 where no surface is hit."""
    return _trace(world, camera, 1, sun=None).depth.astype(np.float32)


# ---------------------------------------------------------------- pictures
@dataclass(frozen=True, slots=True, kw_only=True)
class _Trace:
    """Per ray: z-depth (0 = sky), index of the surface (-1 = sky), texture position, footprint in texels,
    cosine to the sun. `boxes`: per surface, the rows and columns that can see it.
    """

    depth: Float
    surface: npt.NDArray[np.int16]
    u: npt.NDArray[np.float32]
    v: npt.NDArray[np.float32]
    footprint: npt.NDArray[np.float32]
    sun_cosine: npt.NDArray[np.float32]
    boxes: tuple[tuple[slice, slice], ...]


def render_image(
    world: World, camera: Camera, lighting: Lighting, rng: np.random.Generator, *, supersampling: int = 2
) -> Image:
    """The picture a camera takes, (H, W, 3) uint8 RGB; `rng` draws the sensor noise.

    Each pixel averages supersampling x supersampling rays spread over its square; textures are sampled
    with trilinear filtering.
    """
    trace = _trace(world, camera, supersampling, sun=lighting.sun_direction)
    colour = _sky(trace.depth.shape)
    for index, surface in enumerate(world.surfaces):
        box = trace.boxes[index]
        shown = trace.surface[box] == index
        if shown.any():
            albedo = _sample(world.atlases[surface.texture], trace.u[box], trace.v[box], trace.footprint[box])
            albedo *= shading(lighting, trace.sun_cosine[box])[..., None]
            np.copyto(colour[box], albedo, where=shown[..., None])
    width, height = camera.size
    averaged = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)
    return develop(np.asarray(averaged, np.float32), lighting, rng)


def _trace(world: World, camera: Camera, supersampling: int, *, sun: Float | None) -> _Trace:
    """Nearest surface of every ray; without a sun only depth and surface are filled in."""
    width, height = camera.size
    inner = (np.arange(supersampling) + 0.5) / supersampling - 0.5
    xs = (np.arange(width)[:, None] + inner).ravel()
    ys = (np.arange(height)[:, None] + inner).ravel()
    origin, directions = camera_rays(camera, np.stack(np.meshgrid(xs, ys), axis=-1))
    shape = (height * supersampling, width * supersampling)
    u, v, footprint, cosine = (np.zeros(shape, np.float32) for _ in range(4))
    trace = _Trace(
        depth=np.full(shape, np.inf),
        surface=np.full(shape, -1, np.int16),
        u=u,
        v=v,
        footprint=footprint,
        sun_cosine=cosine,
        boxes=tuple(_screen_box(camera, surface, supersampling, shape) for surface in world.surfaces),
    )
    ray_size = 1.0 / (np.sqrt(camera.K[0, 0] * camera.K[1, 1]) * supersampling)
    for index, (surface, box) in enumerate(zip(world.surfaces, trace.boxes, strict=True)):
        rays = directions[box]
        hits = surface.intersect(origin, rays)
        nearer = hits.depth < trace.depth[box]
        if not nearer.any():
            continue
        np.copyto(trace.depth[box], hits.depth, where=nearer)
        trace.surface[box][nearer] = index
        if sun is not None:
            texel = surface.texture_span / world.atlases[surface.texture].side
            _record_shading(trace, box, hits, nearer, rays, ray_size / texel, sun)
    trace.depth[~np.isfinite(trace.depth)] = 0.0
    return trace


def _record_shading(
    trace: _Trace,
    box: tuple[slice, slice],
    hits: Hits,
    nearer: npt.NDArray[np.bool_],
    rays: Float,
    texels_per_depth: float,
    sun: Float,
) -> None:
    """Note texture position, texel footprint and angle to the sun of the rays that hit this surface first."""
    towards = np.einsum("...i,...i->...", rays, np.broadcast_to(hits.normal, rays.shape))
    facing = np.abs(towards) / np.linalg.norm(rays, axis=-1)
    # A ray covers depth * size across and 1/facing as much along the slope; their geometric mean is used.
    footprint = np.where(nearer, hits.depth, 0.0) * texels_per_depth / np.sqrt(np.maximum(facing, 0.05))
    sun_cosine = np.where(towards < 0, -1.0, 1.0) * (hits.normal @ sun)  # for the side that is seen
    buffers = (
        (trace.u, hits.u),
        (trace.v, hits.v),
        (trace.footprint, footprint),
        (trace.sun_cosine, sun_cosine),
    )
    for buffer, values in buffers:
        np.copyto(buffer[box], values, where=nearer, casting="same_kind")


def _screen_box(
    camera: Camera, surface: Surface, supersampling: int, shape: tuple[int, int]
) -> tuple[slice, slice]:
    """Rows and columns of the ray grid that can see the surface; all, if it reaches behind the camera."""
    R, t = camera.T_world_to_cam[:3, :3], camera.T_world_to_cam[:3, 3]
    points = surface.bounds() @ R.T + t
    if (points[:, 2] <= NEAR).all():
        return slice(0, 0), slice(0, 0)
    if (points[:, 2] <= NEAR).any():
        return slice(0, shape[0]), slice(0, shape[1])
    pixels = (points @ camera.K.T)[:, :2] / points[:, 2:]
    low = np.floor((pixels.min(axis=0) + 0.5) * supersampling) - 1
    high = np.ceil((pixels.max(axis=0) + 0.5) * supersampling) + 1
    rows, columns = (
        np.clip([low[k], high[k]], 0, limit).astype(int) for k, limit in ((1, shape[0]), (0, shape[1]))
    )
    return slice(rows[0], rows[1]), slice(columns[0], columns[1])


def _sample(
    atlas: TextureAtlas,
    u: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    footprint: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Trilinear texture lookup, float32 colours 0..255; `footprint`: size of a ray in texels of level 0."""
    level = np.clip(np.log2(np.maximum(footprint, 1.0)), 0, len(atlas.offsets) - 1.001)
    lower = level.astype(np.int32)
    weight = (level - lower)[..., None].astype(np.float32)
    near, far = (_sample_level(atlas, u, v, chosen) for chosen in (lower, lower + 1))
    return near + weight * (far - near)


def _sample_level(
    atlas: TextureAtlas,
    u: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    level: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32]:
    sides = np.array([atlas.side >> k for k in range(len(atlas.offsets))], np.float32)[level]
    x = np.clip(u * sides - 0.5, 0, sides - 1)
    y = np.clip(v * sides - 0.5, 0, sides - 1) + np.array(atlas.offsets, np.float32)[level]
    looked_up = cv2.remap(atlas.pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(looked_up, np.float32)


def _sky(shape: Sequence[int]) -> npt.NDArray[np.float32]:
    share = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    return np.repeat(_SKY_TOP + share * (_SKY_BOTTOM - _SKY_TOP), shape[1], axis=1)
