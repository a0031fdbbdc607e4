"""Scenes in the layout of GL3D: pictures, cameras, SIFT keypoints, correspondences, depth maps, lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
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
from matchlib.mirror.config import GL3DMirrorConfig
from matchlib.mirror.render import cast_depth, render_depth, render_image, resized_camera
from matchlib.mirror.scene import MirrorScene
from matchlib.mirror.sift import SiftKeypoints, detect_sift, mutual_matches, triangulation_cosine, verified
from matchlib.mirror.visibility import covisible_shares
from matchlib.randomness import generator_for

LIST_NAMES = ("gl3d", "comb")  # without tourism scenes, upstream's default list `comb` equals `gl3d`
_SUPPORT_SIGMAS = (
    7.5 * 2**0.5
)  # half-width of the patch that the GL3D methods cut around a keypoint, in sigmas
_FEWEST_MATCHES = 8  # a pair with less would not have survived structure from motion
_DEPTH_STEP = 1.1  # depths in a 3 x 3 neighbourhood differ by more than this factor: a discontinuity


@dataclass(frozen=True, slots=True)
class _View:
    """Keypoints of one image: SIFT of the undistorted picture, their affine frames (N, 6) in the distorted
    original, and their exact z-depth (N,)."""

    keypoints: SiftKeypoints
    frames: npt.NDArray[np.float32]
    depth: npt.NDArray[np.float64]


def write_gl3d_scene(
    root: Path, scene: MirrorScene, config: GL3DMirrorConfig, *, seed: int, supersampling: int
) -> None:
    """Write `data/<scene>/` below `root`. The scene's cameras must have `config.original_size`."""
    folder = root / "data" / scene.name
    views = []
    for index, camera in enumerate(scene.cameras):
        _write_image(folder, scene, index, config, seed=seed, supersampling=supersampling)
        views.append(_view(scene, index, config, seed=seed, supersampling=supersampling))
        write_keypoints(folder / "img_kpts" / f"{index:08d}.bin", views[-1].frames)
        exact = render_depth(scene.world, resized_camera(camera, config.depth_size))
        write_pfm(folder / "rendered_depths" / f"{index:08d}.pfm", exact)
        write_pfm(folder / "depths" / f"{index:08d}.pfm", without_edges(exact))
    labels = folder / "geolabel"
    write_cameras(labels / "cameras.txt", dict(enumerate(scene.cameras)))
    records = list(_correspondences(scene, views, config.match_threshold_px))
    write_corr(labels / "corr.bin", records)
    atomic_write(labels / "common_track.txt", _common_tracks(records))
    atomic_write(labels / "mesh_overlap.txt", _mesh_overlaps(scene))


def write_gl3d_lists(root: Path, images: int, train: tuple[str, ...], test: tuple[str, ...]) -> None:
    """Write `list/<name>/*.txt` for all LIST_NAMES; every scene has `images` images."""
    for name in LIST_NAMES:
        write_lists(root, name, dict.fromkeys((*train, *test), images), train, test)


def without_edges(depth: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(H, W) float32 depth as stereo would give it: exact, but unknown (0) beside discontinuities."""
    kernel = np.ones((3, 3), np.uint8)
    nearest, farthest = cv2.erode(depth, kernel), cv2.dilate(depth, kernel)
    return np.where((nearest > 0) & (farthest <= _DEPTH_STEP * nearest), depth, 0).astype(np.float32)


def distort_points(points_N2: npt.NDArray[np.float64], camera: Camera) -> npt.NDArray[np.float64]:
    """Positions (N, 2) of an undistorted picture in the distorted original; both have the same K."""
    K_inverse = np.linalg.inv(camera.K)
    rays = np.column_stack([points_N2, np.ones(len(points_N2))]) @ K_inverse.T
    r2 = (rays[:, :2] ** 2).sum(axis=1)
    k1, k2, k3 = camera.distortion
    rays[:, :2] *= (1 + r2 * (k1 + r2 * (k2 + r2 * k3)))[:, None]
    return np.asarray((rays @ camera.K.T)[:, :2])


def _write_image(
    folder: Path, scene: MirrorScene, index: int, config: GL3DMirrorConfig, *, seed: int, supersampling: int
) -> None:
    noise = generator_for(seed, scene.name, index, "noise")
    camera = resized_camera(scene.cameras[index], config.stored_size)
    picture = render_image(scene.world, camera, scene.lightings[index], noise, supersampling=supersampling)
    write_image(folder / "undist_images" / f"{index:08d}.jpg", picture)


def _view(
    scene: MirrorScene, index: int, config: GL3DMirrorConfig, *, seed: int, supersampling: int
) -> _View:
    """SIFT of the picture at original size."""
    camera = scene.cameras[index]
    noise = generator_for(seed, scene.name, index, "original noise")
    picture = render_image(scene.world, camera, scene.lightings[index], noise, supersampling=supersampling)
    keypoints = detect_sift(picture, config.keypoints_per_image)
    distorted = distort_points(keypoints.xy, camera)
    # GL3D counts the orientation against the image's y axis.
    frames = pixel_to_affine(distorted, camera.size, _SUPPORT_SIGMAS * keypoints.sigma, -keypoints.angle)
    return _View(keypoints, frames, cast_depth(scene.world, camera, keypoints.xy))


def _correspondences(scene: MirrorScene, views: list[_View], threshold_px: float) -> Iterator[CorrRecord]:
    for index0, index1 in combinations(range(len(views)), 2):
        view0, view1 = views[index0], views[index1]
        cameras = scene.cameras[index0], scene.cameras[index1]
        pairs = mutual_matches(view0.keypoints.descriptors, view1.keypoints.descriptors)
        xy = view0.keypoints.xy[pairs[:, 0]], view1.keypoints.xy[pairs[:, 1]]
        depths = view0.depth[pairs[:, 0]], view1.depth[pairs[:, 1]]
        good = verified(cameras, xy, depths, threshold_px)
        if good.sum() < _FEWEST_MATCHES:
            continue
        pairs = pairs[good]
        similarity = triangulation_cosine(*cameras, xy[0][good], depths[0][good])
        rows = np.column_stack([view0.frames[pairs[:, 0]], view1.frames[pairs[:, 1]], similarity, pairs])
        yield CorrRecord(index0, index1, rows.astype(np.float32))


def _common_tracks(records: list[CorrRecord]) -> str:
    """`idx0 idx1 ratio`, both orders: the share of idx0's matched keypoints that are matched in idx1."""
    matched: dict[int, set[int]] = {}
    shared: dict[tuple[int, int], int] = {}
    for record in records:
        for own, other, column in ((record.index0, record.index1, 13), (record.index1, record.index0, 14)):
            matched.setdefault(own, set()).update(record.rows[:, column].astype(int).tolist())
            shared[own, other] = len(record.rows)
    shares = {(own, other): count / len(matched[own]) for (own, other), count in shared.items()}
    return "".join(f"{own} {other} {share:.6f}\n" for (own, other), share in sorted(shares.items()))


def _mesh_overlaps(scene: MirrorScene) -> str:
    """`idx0 idx1 ratio`, both orders: the share of image idx0 that idx1 shows too."""
    shares = covisible_shares(scene.world, scene.cameras)
    return "".join(f"{i} {j} {shares[i, j]:.6f}\n" for i, j in permutations(range(len(shares)), 2))
