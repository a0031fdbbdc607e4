"""Textured surfaces with closed-form ray intersections.

Rays are given with a direction whose camera z is 1, so the ray parameter of a hit *is* its z-depth.
World axes: x right, y down, z away from the cameras. Texture coordinates (u, v) run over [0, 1] x [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
NEAR = 1e-3  # hits closer than this, in scene units, are behind or at the camera


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Where rays (in any array shape S) meet one surface.

    depth:  S float64, z-depth, inf where the surface is missed
    u, v:   S float64, texture coordinates in [0, 1]; meaningless where missed
    normal: (3,) or S + (3,) float64, unit length, either side
    """

    depth: Float
    u: Float
    v: Float
    normal: Float


class Surface(Protocol):
    """What the renderer needs of a surface."""

    @property
    def texture(self) -> int:
        """Index of its texture in the scene."""

    @property
    def texture_span(self) -> float:
        """Length in scene units that the whole texture side covers on the surface."""

    def intersect(self, origin_3: Float, directions: Float) -> Hits:
        """First hit beyond NEAR of each ray origin + depth * direction; directions: S + (3,)."""

    def bounds(self) -> Float:
        """(P, 3) points whose convex hull holds the surface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextureWindow:
    """The square part of a texture that a surface shows: corner (u, v) and side, all in [0, 1]."""

    u: float = 0.0
    v: float = 0.0
    side: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quad:
    """A rectangle: `corner + a * edge_u + b * edge_v`, a and b in [0, 1], edges at right angles.

    The longer edge spans the whole texture window, so texels are square.
    """

    corner: Float
    edge_u: Float
    edge_v: Float
    texture: int
    window: TextureWindow = TextureWindow()

    @property
    def texture_span(self) -> float:
        return self._longer() / self.window.side

    def _longer(self) -> float:
        return max(float(np.linalg.norm(self.edge_u)), float(np.linalg.norm(self.edge_v)))

    def intersect(self, origin_3: Float, directions: Float) -> Hits:
        length_u, length_v = float(np.linalg.norm(self.edge_u)), float(np.linalg.norm(self.edge_v))
        normal = np.cross(self.edge_u, self.edge_v) / (length_u * length_v)
        offset = origin_3 - self.corner
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = -(offset @ normal) / (directions @ normal)
            a = (offset @ self.edge_u + depth * (directions @ self.edge_u)) / length_u**2
            b = (offset @ self.edge_v + depth * (directions @ self.edge_v)) / length_v**2
            hit = (depth > NEAR) & (a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)
        longer = self._longer()
        return Hits(
            depth=np.where(hit, depth, np.inf),
            u=self.window.u + self.window.side * (length_u / longer) * a,
            v=self.window.v + self.window.side * (length_v / longer) * b,
            normal=normal,
        )

    def bounds(self) -> Float:
        return np.stack(
            [self.corner + a * self.edge_u + b * self.edge_v for a in (0.0, 1.0) for b in (0.0, 1.0)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The wall of an upright cylinder (axis along y) from y = `top` down to `bottom`; open at both ends."""

    x: float
    z: float
    radius: float
    top: float
    bottom: float
    texture: int

    @property
    def texture_span(self) -> float:
        return float(np.sqrt(2 * np.pi * self.radius * (self.bottom - self.top)))

    def intersect(self, origin_3: Float, directions: Float) -> Hits:
        dx, dy, dz = np.moveaxis(directions, -1, 0)
        ox, oz = origin_3[0] - self.x, origin_3[2] - self.z
        a, b, c = dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - self.radius**2
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(b * b - a * c)
            depth = np.full(a.shape, np.inf)
            for candidate in ((-b + root) / a, (-b - root) / a):  # the nearer wall last, so that it wins
                y = origin_3[1] + candidate * dy
                hit = (candidate > NEAR) & (y >= self.top) & (y <= self.bottom)
                depth = np.where(hit, candidate, depth)
        t = np.where(np.isfinite(depth), depth, 0.0)
        nx, nz = (ox + t * dx) / self.radius, (oz + t * dz) / self.radius
        return Hits(
            depth=depth,
            u=np.arctan2(nx, -nz) / (2 * np.pi) + 0.5,  # the seam is at the back
            v=(origin_3[1] + t * dy - self.top) / (self.bottom - self.top),
            normal=np.stack([nx, np.zeros_like(nx), nz], axis=-1),
        )

    def bounds(self) -> Float:
        return np.array(
            [
                [self.x + sx * self.radius, y, self.z + sz * self.radius]
                for sx in (-1, 1)
                for y in (self.top, self.bottom)
                for sz in (-1, 1)
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """A sphere; Lambert's azimuthal equal-area map lays its texture on, with one seam point at the back."""

    centre: Float
    radius: float
    texture: int

    @property
    def texture_span(self) -> float:
        return 4 * self.radius  # the map of a unit sphere is a disc of radius 2

    def intersect(self, origin_3: Float, directions: Float) -> Hits:
        offset = origin_3 - self.centre
        a = np.einsum("...i,...i->...", directions, directions)
        b = directions @ offset
        c = float(offset @ offset) - self.radius**2
        with np.errstate(invalid="ignore"):
            depth = (-b - np.sqrt(b * b - a * c)) / a
            depth = np.where(depth > NEAR, depth, np.inf)
        t = np.where(np.isfinite(depth), depth, 0.0)
        normal = (offset + t[..., None] * directions) / self.radius
        scale = np.sqrt(2 / np.maximum(1 - normal[..., 2], 1e-9)) / 4
        u = np.clip(0.5 + scale * normal[..., 0], 0, 1)
        v = np.clip(0.5 + scale * normal[..., 1], 0, 1)
        return Hits(depth=depth, u=u, v=v, normal=normal)

    def bounds(self) -> Float:
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
        return self.centre + self.radius * signs


def box(
    centre_3: Float, size_3: Float, yaw: float, textures: tuple[int, ...], windows: tuple[TextureWindow, ...]
) -> list[Quad]:
    """The five visible faces of a box standing upright (no bottom), turned by `yaw` radians about y.

    size_3: (x, y, z) edge lengths. textures, windows: one per face, five each.
    """
    x_axis = np.array([np.cos(yaw), 0.0, np.sin(yaw)]) * size_3[0]
    y_axis = np.array([0.0, 1.0, 0.0]) * size_3[1]
    z_axis = np.array([-np.sin(yaw), 0.0, np.cos(yaw)]) * size_3[2]
    low = centre_3 - (x_axis + y_axis + z_axis) / 2
    faces = [
        (low, x_axis, y_axis),
        (low + z_axis, x_axis, y_axis),
        (low, z_axis, y_axis),
        (low + x_axis, z_axis, y_axis),
        (low, x_axis, z_axis),
    ]
    return [
        Quad(corner=corner, edge_u=edge_u, edge_v=edge_v, texture=texture, window=window)
        for (corner, edge_u, edge_v), texture, window in zip(faces, textures, windows, strict=True)
    ]
