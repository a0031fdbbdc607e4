"""Keypoint frames of one image as records store them, and filling a record from two images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from matchlib.datasets.gl3d import affine_to_pixel
from matchlib.datasets.types import Camera
from matchlib.geometry.camera import denormalize_points, normalize_points, undistort
from matchlib.match_sets.angles import AngleRule, orientation_difference_deg
from matchlib.match_sets.layout import Float32, keypoint_blocks
from matchlib.randomness import generator_for


@dataclass(frozen=True, slots=True)
class ImageKeypoints:
    """frames: (N, 6) float32 undistorted affine frames; angles: (N,) float32 orientations; usable: (N,) bool.

    A frame is unusable where undistortion has no solution (far outside the lens's calibrated field).
    """

    frames: Float32
    angles: Float32
    usable: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.frames.nbytes + self.angles.nbytes + self.usable.nbytes


@dataclass(frozen=True, slots=True)
class Correspondences:
    """Keypoints of both images and which match: rows0[k] of image 0 with rows1[k] of image 1.

    rows0, rows1: (n,) int64; labels: (n,) float32 geometric similarity, 1 where it is not known
    """

    keypoints0: ImageKeypoints
    keypoints1: ImageKeypoints
    rows0: npt.NDArray[np.int64]
    rows1: npt.NDArray[np.int64]
    labels: Float32


@dataclass(frozen=True, slots=True)
class Filled:
    """What `fill_record` wrote: matched rows, filled rows of each image, mean orientation difference."""

    inliers: int
    rows0: int
    rows1: int
    rot_diff_deg: float


def image_keypoints(frames: Float32, camera: Camera) -> ImageKeypoints:
    """Undistort GL3D frames (N, 6), which refer to the distorted original image.

    Only the centres move; the 2x2 parts stay, as upstream leaves them.
    """
    angles = np.arctan2(frames[:, 1], frames[:, 0])
    if any(camera.distortion) and len(frames):
        K = torch.from_numpy(np.ascontiguousarray(camera.K, dtype=np.float64))
        pixels = torch.from_numpy(affine_to_pixel(frames, camera.size))
        lens = torch.tensor(camera.distortion, dtype=torch.float64)
        straight = denormalize_points(undistort(normalize_points(pixels, K), lens), K).numpy()
        frames = frames.copy()
        frames[:, 2] = straight[:, 0] * (2 / camera.size[0]) - 1
        frames[:, 5] = straight[:, 1] * (2 / camera.size[1]) - 1
    return ImageKeypoints(frames, angles, _finite_rows(frames))


def _finite_rows(frames: Float32) -> npt.NDArray[np.bool_]:
    finite = np.isfinite(frames)
    # Nearly always all; reducing rows of six takes twenty times as long as looking at everything once.
    return np.ones(len(frames), dtype=bool) if finite.all() else np.asarray(finite.all(axis=1))


def fill_record(
    record: Float32,
    pair: Correspondences,
    *,
    slots: int,
    noise: bool,
    angle_rule: AngleRule,
    seed: int,
    address: tuple[str, int],
) -> Filled:
    """Write the keypoint part of one record (float32 of `record_floats(slots)`, all zero) and its inlier
    count.

    More correspondences than slots: a random choice, in file order. Fewer: unmatched keypoints of each image,
    drawn independently, fill up. Draws are addressed by (seed, scene, pair number, image).
    """
    affine0, affine1, labels = keypoint_blocks(record, slots)
    rows0, rows1, similarity = pair.rows0, pair.rows1, pair.labels
    if len(rows0) > slots:
        draw = generator_for(seed, *address, "inliers")
        chosen = np.sort(draw.choice(len(rows0), slots, replace=False, shuffle=False))
        rows0, rows1, similarity = rows0[chosen], rows1[chosen], similarity[chosen]
    n = len(rows0)
    # mode="clip" lets NumPy write into `out` without a copy; callers have checked the rows.
    np.take(pair.keypoints0.frames, rows0, axis=0, out=affine0[:n], mode="clip")
    np.take(pair.keypoints1.frames, rows1, axis=0, out=affine1[:n], mode="clip")
    labels[:n] = similarity
    record[2] = n
    filled = [n, n]
    if noise and n < slots:
        sides = ((pair.keypoints0, pair.rows0, affine0), (pair.keypoints1, pair.rows1, affine1))
        for image, (keypoints, rows, block) in enumerate(sides):
            others = _unmatched(keypoints, rows, slots - n, seed, (*address, image))
            np.take(keypoints.frames, others, axis=0, out=block[n : n + len(others)], mode="clip")
            filled[image] += len(others)
    difference = orientation_difference_deg(
        pair.keypoints0.angles[rows0], pair.keypoints1.angles[rows1], angle_rule
    )
    return Filled(n, filled[0], filled[1], difference)


def _unmatched(
    keypoints: ImageKeypoints,
    matched: npt.NDArray[np.int64],
    wanted: int,
    seed: int,
    address: tuple[str, int, int],
) -> npt.NDArray[np.int64]:
    """Rows of up to `wanted` usable keypoints that are not in `matched`, drawn without replacement."""
    free = keypoints.usable.copy()
    free[matched] = False
    rows = np.flatnonzero(free)
    if len(rows) <= wanted:
        return rows
    draw = generator_for(seed, *address)
    return rows[draw.choice(len(rows), wanted, replace=False, shuffle=False)]
