"""Random scenes: a folded back wall and an uneven floor; boxes, columns, balls and panels before them.

All surfaces have closed-form intersections, so depth is exact; things in front of each other give real
occlusions and depth discontinuities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Camera
from matchlib.mirror.lighting import Lighting, draw_lighting
from matchlib.mirror.render import World, build_atlas
from matchlib.mirror.surfaces import Ball, Column, Quad, Surface, TextureWindow, box
from matchlib.mirror.textures import Pool, surface_texture
from matchlib.randomness import generator_for

Float = npt.NDArray[np.float64]
_TEXTURES = 14
_FLOOR_Y = 1.6
_WALL_X = 6.0
_UP = np.array([0.0, -1.0, 0.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorScene:
    """A world, the cameras that look at it, and the light each picture is taken in."""

    name: str
    world: World
    cameras: tuple[Camera, ...]
    lightings: tuple[Lighting, ...]


def scene_name(seed: int, dataset: str, index: int) -> str:
    """A name of 24 hexadecimal digits, as the public datasets use."""
    digits = generator_for(seed, dataset, index, "name").integers(0, 16, 24)
    return "".join(f"{digit:x}" for digit in digits)


def build_scene(
    *,
    seed: int,
    dataset: str,
    index: int,
    pool: Pool,
    images: int,
    image_size: tuple[int, int],
    texture_px: int,
    lighting_conditions: int,
    distorted: bool = False,
) -> MirrorScene:
    """Draw scene number `index` of a dataset; a function of (seed, dataset, index) and the sizes alone.

    image_size: (width, height) that the cameras' K refers to.
    distorted: give the cameras a small radial distortion (pictures stay undistorted; it concerns keypoints).
    """
    address = (seed, dataset, index)
    texture_rng = generator_for(*address, "textures")
    atlases = tuple(build_atlas(surface_texture(texture_rng, pool, texture_px)) for _ in range(_TEXTURES))
    world = World(surfaces=tuple(_furnish(generator_for(*address, "surfaces"))), atlases=atlases)
    light_rng = generator_for(*address, "light")
    conditions = [draw_lighting(light_rng) for _ in range(lighting_conditions)]
    cameras = _trajectory(generator_for(*address, "cameras"), images, image_size, distorted=distorted)
    lightings = tuple(conditions[int(light_rng.integers(lighting_conditions))] for _ in cameras)
    name = scene_name(*address)
    return MirrorScene(name=name, world=world, cameras=cameras, lightings=lightings)


# ---------------------------------------------------------------- surfaces
class _Textures:
    """Hands out textures in turn, and random windows of them, so that no two faces look alike."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._order = rng.permutation(_TEXTURES)
        self._next = 0

    def take(self) -> int:
        self._next += 1
        return int(self._order[self._next % _TEXTURES])

    def window(self, side: float) -> TextureWindow:
        u, v = self._rng.uniform(0, 1 - side, 2)
        return TextureWindow(u=float(u), v=float(v), side=side)


def _furnish(rng: np.random.Generator) -> list[Surface]:
    textures = _Textures(rng)
    return [
        *_back_wall(rng, textures),
        *_floor(rng, textures),
        *_boxes(rng, textures),
        *_columns(rng, textures),
        *_balls(rng, textures),
        *_panels(rng, textures),
    ]


def _back_wall(rng: np.random.Generator, textures: _Textures) -> list[Surface]:
    """Five upright facets that fold back and forth, joined at their edges."""
    xs = np.linspace(-_WALL_X, _WALL_X, 6)
    xs[1:-1] += rng.uniform(-0.4, 0.4, 4)
    zs = 2.5 + rng.uniform(-0.8, 0.8, 6)
    height = 6.5
    return [
        Quad(
            corner=np.array([x0, _FLOOR_Y - height, z0]),
            edge_u=np.array([x1 - x0, 0.0, z1 - z0]),
            edge_v=np.array([0.0, height, 0.0]),
            texture=textures.take(),
        )
        for x0, x1, z0, z1 in zip(xs[:-1], xs[1:], zs[:-1], zs[1:], strict=True)
    ]


def _floor(rng: np.random.Generator, textures: _Textures) -> list[Surface]:
    """3 x 2 slabs at slightly different heights, overlapping below the wall."""
    slabs: list[Surface] = []
    for x in (-6.0, -2.0, 2.0):
        for z in (-4.0, 0.0):
            y = _FLOOR_Y + rng.uniform(0.0, 0.15)
            slabs.append(
                Quad(
                    corner=np.array([x, y, z]),
                    edge_u=np.array([4.0, 0.0, 0.0]),
                    edge_v=np.array([0.0, 0.0, 4.0]),
                    texture=textures.take(),
                )
            )
    return slabs


def _boxes(rng: np.random.Generator, textures: _Textures) -> list[Surface]:
    faces: list[Surface] = []
    for x in np.linspace(-2.8, 2.8, 5):
        size = rng.uniform([0.5, 0.5, 0.5], [1.3, 2.0, 1.1])
        centre = np.array([x + rng.uniform(-0.3, 0.3), _FLOOR_Y + 0.1 - size[1] / 2, rng.uniform(-1.5, 1.2)])
        chosen = tuple(textures.take() for _ in range(5))
        windows = tuple(textures.window(0.45) for _ in range(5))
        faces.extend(box(centre, size, float(rng.uniform(-0.9, 0.9)), chosen, windows))
    return faces


def _columns(rng: np.random.Generator, textures: _Textures) -> list[Surface]:
    return [
        Column(
            x=side * rng.uniform(1.5, 3.5),
            z=rng.uniform(0.6, 1.4),
            radius=rng.uniform(0.25, 0.45),
            top=_FLOOR_Y - 6.0,
            bottom=_FLOOR_Y + 0.2,
            texture=textures.take(),
        )
        for side in (-1.0, 1.0)
    ]


def _balls(rng: np.random.Generator, textures: _Textures) -> list[Surface]:
    balls: list[Surface] = []
    for _ in range(2):
        radius = rng.uniform(0.4, 0.7)
        centre = np.array([rng.uniform(-2.5, 2.5), _FLOOR_Y - 0.6 * radius, rng.uniform(-2.2, -1.0)])
        balls.append(Ball(centre=centre, radius=radius, texture=textures.take()))
    return balls


def _panels(rng: np.random.Generator, textures: _Textures) -> list[Surface]:
    """Three boards that hang in the air, turned and tilted."""
    panels: list[Surface] = []
    for x in (-2.2, 0.0, 2.2):
        yaw, roll = rng.uniform(-0.7, 0.7), rng.uniform(-0.4, 0.4)
        right = np.array([np.cos(yaw), 0.0, np.sin(yaw)])
        edge_u = np.cos(roll) * right + np.sin(roll) * np.array([0.0, 1.0, 0.0])
        edge_v = -np.sin(roll) * right + np.cos(roll) * np.array([0.0, 1.0, 0.0])
        width, height = rng.uniform(0.9, 1.7), rng.uniform(0.7, 1.2)
        centre = np.array([x + rng.uniform(-0.4, 0.4), rng.uniform(-1.9, -0.5), rng.uniform(-0.6, 1.0)])
        corner = centre - (width * edge_u + height * edge_v) / 2
        panels.append(
            Quad(
                corner=corner,
                edge_u=width * edge_u,
                edge_v=height * edge_v,
                texture=textures.take(),
                window=textures.window(0.6),
            )
        )
    return panels


# ---------------------------------------------------------------- cameras
def _trajectory(
    rng: np.random.Generator, images: int, image_size: tuple[int, int], *, distorted: bool
) -> tuple[Camera, ...]:
    """Cameras on an arc of 64 degrees in front of the scene, at varied height, distance and roll."""
    width, height = image_size
    focal = float(rng.uniform(0.95, 1.15) * max(width, height))
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    distortion = (0.0, 0.0, 0.0)
    if distorted:
        distortion = (
            float(rng.uniform(-0.08, -0.02)),
            float(rng.uniform(0, 0.02)),
            float(rng.uniform(-0.004, 0.004)),
        )
    azimuths = np.radians(np.linspace(-32, 32, images) if images > 1 else np.zeros(1))
    cameras = []
    for azimuth in azimuths:
        azimuth = azimuth + np.radians(rng.uniform(-3, 3))
        elevation, roll = np.radians(rng.uniform(2, 22)), np.radians(rng.uniform(-18, 18))
        distance = rng.uniform(5.5, 8.0)
        target = rng.uniform([-0.6, -0.7, -0.3], [0.6, 0.3, 0.5])
        away = np.array(
            [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)]
        )
        pose = look_at(target + distance * away, target, float(roll))
        cameras.append(Camera(K=K, T_world_to_cam=pose, size=image_size, distortion=distortion))
    return tuple(cameras)


def look_at(centre_3: Float, target_3: Float, roll: float) -> Float:
    """World-to-camera pose (4, 4) at `centre_3`, looking at `target_3`, turned by `roll` radians."""
    forward = (target_3 - centre_3) / np.linalg.norm(target_3 - centre_3)
    right = np.cross(forward, _UP)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    turned_right = np.cos(roll) * right + np.sin(roll) * down
    turned_down = -np.sin(roll) * right + np.cos(roll) * down
    pose = np.eye(4)
    pose[:3, :3] = np.stack([turned_right, turned_down, forward])
    pose[:3, 3] = -pose[:3, :3] @ centre_3
    return pose
