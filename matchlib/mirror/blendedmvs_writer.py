"""Scenes in the layout of BlendedMVS: pictures, masked pictures, MVSNet cameras, view pairs, depth maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.blendedmvs import write_cam, write_pairs
from matchlib.datasets.images import write_image
from matchlib.datasets.pfm import write_pfm
from matchlib.mirror.config import BlendedMVSMirrorConfig
from matchlib.mirror.render import render_depth, render_image
from matchlib.mirror.scene import MirrorScene
from matchlib.mirror.visibility import covisible_shares
from matchlib.randomness import generator_for

_DEPTH_PLANES = 128  # of MVSNet's sweep; only the depth range in the camera files depends on it


def write_blendedmvs_scene(
    root: Path, scene: MirrorScene, config: BlendedMVSMirrorConfig, *, seed: int, supersampling: int
) -> None:
    """Write `<scene>/` below `root`. The scene's cameras must have `config.image_size`."""
    folder = root / scene.name
    for index, (camera, lighting) in enumerate(zip(scene.cameras, scene.lightings, strict=True)):
        noise = generator_for(seed, scene.name, index, "noise")
        picture = render_image(scene.world, camera, lighting, noise, supersampling=supersampling)
        depth = render_depth(scene.world, camera)
        masked = np.where(depth[..., None] > 0, picture, 0).astype(np.uint8)
        write_image(folder / "blended_images" / f"{index:08d}.jpg", picture)
        write_image(folder / "blended_images" / f"{index:08d}_masked.jpg", masked)
        write_pfm(folder / "rendered_depth_maps" / f"{index:08d}.pfm", depth)
        write_cam(
            folder / "cams" / f"{index:08d}_cam.txt", camera.K, camera.T_world_to_cam, _depth_range(depth)
        )
    write_pairs(folder / "cams" / "pair.txt", _best_neighbours(scene, config.neighbours))


def write_blendedmvs_lists(root: Path, train: tuple[str, ...], validation: tuple[str, ...]) -> None:
    """Write the two scene lists of the BlendedMVS archive."""
    atomic_write(root / "BlendedMVS_training.txt", "".join(f"{name}\n" for name in train))
    atomic_write(root / "validation_list.txt", "".join(f"{name}\n" for name in validation))


def _depth_range(depth: npt.NDArray[np.float32]) -> tuple[float, float, int, float]:
    """MVSNet's (minimum, interval, planes, maximum) of the known depths."""
    known = depth[depth > 0]
    low, high = float(known.min(initial=np.inf)), float(known.max(initial=0.0))
    if high == 0.0:
        return 0.0, 0.0, _DEPTH_PLANES, 0.0
    return low, (high - low) / (_DEPTH_PLANES - 1), _DEPTH_PLANES, high


def _best_neighbours(scene: MirrorScene, count: int) -> dict[int, list[tuple[int, float]]]:
    """For each image the `count` others that show most of it, best first, scored by the percentage shown."""
    shares = covisible_shares(scene.world, scene.cameras)
    np.fill_diagonal(shares, 0)
    ranked = np.argsort(-shares, axis=1, kind="stable")[:, :count]
    return {
        i: [(int(j), round(100 * float(shares[i, j]), 4)) for j in ranked[i] if shares[i, j] > 0]
        for i in range(len(shares))
    }
