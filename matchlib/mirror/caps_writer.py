"""Scenes in the layout of CAPS' MegaDepth subset: squeezed images, their cameras, pairs that see the same things."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.datasets.caps_megadepth import write_cameras, write_pairs
from matchlib.datasets.images import write_image
from matchlib.datasets.types import Camera
from matchlib.mirror.config import CapsMirrorConfig
from matchlib.mirror.render import render_image
from matchlib.mirror.scene import MirrorScene
from matchlib.mirror.visibility import covisible_shares
from matchlib.randomness import generator_for

Float64 = npt.NDArray[np.float64]
MAX_ROTATION_DEG = 80.0
_ASPECTS = (4 / 3, 3 / 2)  # of the photographs that upstream squeezed to one size, hence fx other than fy


def caps_scene_name(index: int) -> str:
    """A name of four digits, as MegaDepth has them."""
    return f"{index:04d}"


def write_caps_scene(
    root: Path, scene: MirrorScene, config: CapsMirrorConfig, *, seed: int, supersampling: int
) -> None:
    """Write `<scene>/dense<k>/aligned` below `root`. The scene's cameras must have `config.image_size`."""
    cameras = _squeezed(scene, seed)
    shares = covisible_shares(scene.world, cameras)
    for number in range(config.sub_models):
        aligned = root / scene.name / f"dense{number}" / "aligned"
        views = range(number, len(cameras), config.sub_models)
        names = {view: f"{view:08d}.jpg" for view in views}
        for view, name in names.items():
            noise = generator_for(seed, "caps_megadepth", scene.name, view, "noise")
            picture = render_image(
                scene.world, cameras[view], scene.lightings[view], noise, supersampling=supersampling
            )
            write_image(aligned / "images" / name, picture)
        in_own_world = _other_world(
            cameras, generator_for(seed, "caps_megadepth", scene.name, number, "world")
        )
        write_cameras(aligned / "img_cam.txt", {name: in_own_world[view] for view, name in names.items()})
        found = covisible_pairs(shares, cameras, config.min_covisible_share)
        write_pairs(
            aligned / "pairs.txt", [(names[i], names[j]) for i, j in found if i in names and j in names]
        )


def covisible_pairs(shares: Float64, cameras: Sequence[Camera], min_share: float) -> list[tuple[int, int]]:
    """Pairs i < j that show at least `min_share` of each other, turned by 80 degrees at most."""
    R = np.stack([camera.T_world_to_cam[:3, :3] for camera in cameras])
    cosine = (np.einsum("iab,jab->ij", R, R) - 1) / 2
    near = cosine >= np.cos(np.radians(MAX_ROTATION_DEG))
    first, second = np.nonzero(np.triu(near & (np.minimum(shares, shares.T) >= min_share), k=1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def _squeezed(scene: MirrorScene, seed: int) -> tuple[Camera, ...]:
    """The cameras with K as if photographs of other aspect ratios had been squeezed to their size."""
    rng = generator_for(seed, "caps_megadepth", scene.name, "aspect")
    squeezed = []
    for camera in scene.cameras:
        width, height = camera.size
        aspect = float(rng.choice(_ASPECTS)) / (width / height)
        K = camera.K.copy()
        K[1, 1] *= aspect  # the original has the same width and height / aspect
        squeezed.append(Camera(K=K, T_world_to_cam=camera.T_world_to_cam, size=camera.size))
    return tuple(squeezed)


def _other_world(cameras: Sequence[Camera], rng: np.random.Generator) -> list[Camera]:
    """The same cameras in a world that is turned, moved and scaled, as separate reconstructions of a place are."""
    Q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    Q *= np.sign(np.linalg.det(Q))
    scale, shift = float(rng.uniform(0.5, 2.0)), rng.uniform(-5, 5, 3)
    moved = []
    for camera in cameras:
        R, t = camera.T_world_to_cam[:3, :3], camera.T_world_to_cam[:3, 3]
        T = np.eye(4)  # new = scale * Q old + shift; the camera's own unit is scaled with it
        T[:3, :3] = R @ Q.T
        T[:3, 3] = scale * t - T[:3, :3] @ shift
        moved.append(Camera(K=camera.K, T_world_to_cam=T, size=camera.size))
    return moved
