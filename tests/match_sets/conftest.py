"""Small scenes with known truth: random keypoints with `corr.bin`, and a textured plane with exact depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from matchlib.datasets.blendedmvs import write_cam, write_pairs
from matchlib.datasets.gl3d import (
    CorrRecord,
    pixel_to_affine,
    write_cameras,
    write_corr,
    write_keypoints,
    write_lists,
)
from matchlib.datasets.images import write_image
from matchlib.datasets.pfm import write_pfm
from matchlib.datasets.types import Camera
from matchlib.match_sets.build import build_match_set
from matchlib.match_sets.config import MatchSetConfig

SIZE = (800, 600)
CORR_SCENE = "0123456789abcdef01234567"
COUNTS = {(0, 1): 30, (0, 2): 12, (1, 2): 3, (2, 3): 90, (0, 3): 25}
"""Correspondences of each pair of the scene with corr.bin."""


def turn(angle_deg: float, t: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """World-to-camera pose turned about the vertical axis."""
    a = math.radians(angle_deg)
    T = np.eye(4)
    T[:3, :3] = [[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]]
    T[:3, 3] = t
    return T


@pytest.fixture
def corr_scene(tmp_path: Path) -> Path:
    """Root of a GL3D scene of 4 images with 120 keypoints each; image 3 is turned by only 2 degrees against
    image 0.
    """
    rng = np.random.default_rng(5)
    root = tmp_path / "gl3d"
    folder = root / "data" / CORR_SCENE
    K = np.array([[700.0, 0.5, 400], [0, 710, 300], [0, 0, 1]])
    cameras, frames = {}, []
    for index, angle in enumerate((0.0, 10.0, 25.0, 2.0)):
        T = turn(angle, (0.3 * index, -0.1, 0.05 * index))
        cameras[index] = Camera(K=K, T_world_to_cam=T, size=SIZE, distortion=(-0.08, 0.02, 0.001))
        xy = rng.uniform((0, 0), SIZE, (120, 2))
        frames.append(pixel_to_affine(xy, SIZE, rng.uniform(3, 30, 120), rng.uniform(-3.1, 3.1, 120)))
        write_keypoints(folder / "img_kpts" / f"{index:08d}.bin", frames[-1])
        write_image(folder / "undist_images" / f"{index:08d}.jpg", np.full((50, 50, 3), 9 * index, np.uint8))
        write_pfm(folder / "depths" / f"{index:08d}.pfm", np.full((25, 25), 2.0 + index, np.float32))
    write_cameras(folder / "geolabel" / "cameras.txt", cameras)
    records = []
    for (i, j), count in COUNTS.items():
        rows = np.empty((count, 15), dtype=np.float32)
        rows0, rows1 = rng.permutation(120)[:count], rng.permutation(120)[:count]
        rows[:, :6], rows[:, 6:12] = frames[i][rows0], frames[j][rows1]
        rows[:, 12] = np.where(np.arange(count) % 5 == 0, np.nan, rng.uniform(0, 1, count))
        rows[:, 13], rows[:, 14] = rows0, rows1
        records.append(CorrRecord(i, j, rows))
    write_corr(folder / "geolabel" / "corr.bin", records)
    write_lists(root, "gl3d", {"f" * 24: 10, CORR_SCENE: 4}, [CORR_SCENE], [])
    return root


@pytest.fixture
def build_corr(corr_scene: Path, tmp_path: Path) -> Callable[..., Path]:
    """Build the match set of `corr_scene`; keywords are settings."""

    def build(*, out: str = "out", seed: int = 0, regenerate: bool = False, **settings: object) -> Path:
        config = MatchSetConfig(**{"slots": 64, "min_keypoints": 100, "min_inlier_ratio": 0.1, **settings})
        build_match_set(
            dataset_format="gl3d",
            root=corr_scene,
            scene=CORR_SCENE,
            out=tmp_path / out,
            config=config,
            seed=seed,
            regenerate=regenerate,
        )
        return tmp_path / out

    return build


# ------------------------------------------------------------------ a plane with exact depth
PLANE_SIZE = (240, 180)
PLANE_K = np.array([[220.0, 0, 119.5], [0, 220, 89.5], [0, 0, 1]])
PLANE_POSES = (
    turn(0),
    turn(6, (-0.5, 0, 0.1)),
    turn(-8, (0.6, 0.2, -0.2))
    @ np.array([[0.985, -0.174, 0, 0], [0.174, 0.985, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    turn(120),
)
"""The last camera looks away from the plane z = 4."""


def plane_homography(T_world_to_cam: np.ndarray) -> np.ndarray:
    """Plane coordinates (x, y, 1) of z = 4 to pixels."""
    R, t = T_world_to_cam[:3, :3], T_world_to_cam[:3, 3]
    return PLANE_K @ np.column_stack([R[:, 0], R[:, 1], 4 * R[:, 2] + t])


@pytest.fixture(scope="session")
def texture() -> np.ndarray:
    """Grey blobs of many sizes, (1200, 1600)."""
    rng = np.random.default_rng(0)
    layers = []
    for sigma in (2, 4, 8, 16):
        noise = cv2.GaussianBlur(rng.normal(size=(1200, 1600)), (0, 0), sigma)
        layers.append(noise / noise.std())
    total = sum(layers)
    return np.clip(128 + 40 * total, 0, 255).astype(np.uint8)


@pytest.fixture
def plane_scene(tmp_path: Path, texture: np.ndarray) -> Path:
    """Root of a BlendedMVS scene "plane": four views of a textured plane, three of which see it."""
    root = tmp_path / "blendedmvs"
    width, height = PLANE_SIZE
    to_plane = np.array([[0.01, 0, -8], [0, 0.01, -6], [0, 0, 1]])  # 100 texture pixels a unit
    for index, T in enumerate(PLANE_POSES):
        H = plane_homography(T)
        stem = f"{index:08d}"
        image = cv2.warpPerspective(texture, H @ to_plane, PLANE_SIZE, flags=cv2.INTER_AREA)
        pixels = np.stack(
            [*np.meshgrid(np.arange(width), np.arange(height)), np.ones((height, width))], axis=-1
        )
        rays = pixels @ np.linalg.inv(PLANE_K).T
        directions = rays @ T[:3, :3]  # to the world frame
        centre = -T[:3, :3].T @ T[:3, 3]
        depth = (4 - centre[2]) / directions[..., 2]
        depth[depth < 0] = 0
        if not depth.any():
            depth[:] = 7  # a wall that nobody else sees
            image = np.flip(image)
        write_image(
            root / "plane" / "blended_images" / f"{stem}.jpg", np.repeat(image[:, :, None], 3, axis=2)
        )
        write_pfm(root / "plane" / "rendered_depth_maps" / f"{stem}.pfm", depth.astype(np.float32))
        write_cam(root / "plane" / "cams" / f"{stem}_cam.txt", PLANE_K, T, (1.0, 0.1))
    write_pairs(
        root / "plane" / "cams" / "pair.txt",
        {0: ((1, 1.0), (2, 1.0), (3, 0.1)), 1: ((0, 1.0),), 2: (), 3: ()},
    )
    return root


@pytest.fixture
def build_plane(plane_scene: Path, tmp_path: Path) -> Callable[..., Path]:
    """Build the match set of `plane_scene`; keywords are settings."""

    def build(*, out: str = "out", seed: int = 0, **settings: object) -> Path:
        config = MatchSetConfig(**{"slots": 256, **settings})
        build_match_set(
            dataset_format="blendedmvs",
            root=plane_scene,
            scene="plane",
            out=tmp_path / out,
            config=config,
            seed=seed,
        )
        return tmp_path / out

    return build
