"""Correspondences made here: SIFT keypoints of both images that depth and pose carry onto each other.

Only geometry decides, no descriptor: a pair of keypoints corresponds if they lie on the same surface point
within a radius and agree in scale and orientation, mutually nearest. So hard pairs, which descriptors would
miss, stay in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from matchlib.datasets.depth import read_depth
from matchlib.datasets.gl3d import affine_radius_angle, affine_to_pixel
from matchlib.datasets.images import read_image
from matchlib.datasets.types import Scene
from matchlib.errors import DataError
from matchlib.geometry.camera import project, unproject
from matchlib.geometry.depth_warp import warp_points_by_depth
from matchlib.geometry.pose import relative_pose, transform_points
from matchlib.geometry.sampling import sample_depth
from matchlib.match_sets.cache import ByteCache
from matchlib.match_sets.candidates import Int64
from matchlib.match_sets.config import DepthSourceConfig
from matchlib.match_sets.inputs import Faults, camera_fault
from matchlib.match_sets.keypoints import Correspondences, ImageKeypoints
from matchlib.match_sets.layout import Float64
from matchlib.match_sets.neighbours import mutual_best, pairs_within
from matchlib.match_sets.overlap import overlap_matrix, overlapping_pairs, sparse_view
from matchlib.match_sets.sift_frames import (
    StoredFrames,
    detect_frames,
    frames_path,
    load_frames,
    store_frames,
    wrap_angle,
)

_CACHE_BYTES = 192 << 20


@dataclass(frozen=True, slots=True)
class _Image:
    """One image in pixels of its stored size. centres (N, 2), radius (N,), angle (N,) float64 of its
    keypoints.
    """

    keypoints: ImageKeypoints
    centres: Float64
    radius: Float64
    angle: Float64
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.keypoints.nbytes + 2 * self.centres.nbytes


class DepthSource:
    """Pairs of a scene with correspondences by depth. `work` keeps SIFT keypoints between attempts."""

    def __init__(self, scene: Scene, config: DepthSourceConfig, work: Path) -> None:
        self._scene, self._config, self._work = scene, config, work
        self._images = ByteCache(self._read_image, lambda image: image.nbytes, limit=_CACHE_BYTES)
        self._depths = ByteCache(self._read_depth, lambda depth: depth.nbytes, limit=_CACHE_BYTES)
        self._faults = Faults()

    def prepare(self) -> Faults:
        """Detect SIFT keypoints in every image that lacks them. Returns images without usable camera, pixels or
        depth.
        """
        for index, image in tqdm(self._scene.images.items(), desc="SIFT", unit="image", disable=None):
            if (fault := camera_fault(image.camera)) is not None:
                self._faults.add(index, fault, f"camera of {image.image_path}: {fault}")
                continue
            try:
                if image.depth_path is None:
                    raise DataError(f"image {index}: no depth map")
                if not read_depth(image.depth_path).any():
                    self._faults.add(index, "depth all zero", f"{image.depth_path}: no depth above 0")
                    continue
                path = frames_path(self._work, index)
                if not path.is_file():
                    pixels = read_image(image.image_path)
                    size = (pixels.shape[1], pixels.shape[0])
                    store_frames(path, StoredFrames(detect_frames(pixels, self._config), size))
            except DataError as error:
                self._faults.add(index, "unreadable image or depth", str(error))
        return self._faults

    def pairs(self) -> tuple[Int64, Int64, Float64 | None]:
        """First ids (P,), second ids (P,) and overlaps (P,), None where they were not measured; in order of
        ids.
        """
        proposed = self._scene.candidate_pairs
        if self._config.candidates == "dataset" and proposed is None:
            raise DataError(
                f"{self._scene.name}: the dataset proposes no pairs; set match_sets.depth.candidates: overlap"
            )
        if self._config.candidates == "overlap" or proposed is None:
            return self._overlapping()
        ids = np.array(proposed, dtype=np.int64).reshape(-1, 2)
        return ids[:, 0], ids[:, 1], None

    def load(self, index0: int, index1: int) -> Correspondences:
        """The correspondences of a pair of images without fault."""
        image0, image1 = self._images[index0], self._images[index1]
        rows0, centres, radius, angle = self._carry_over(index0, index1)
        i, j, distance = pairs_within(centres, image1.centres, self._config.match_radius_px)
        turned = np.abs(wrap_angle(angle[i] - image1.angle[j]))
        scaled = np.abs(np.log(radius[i] / image1.radius[j]))
        agree = (turned <= np.deg2rad(self._config.max_angle_difference_deg)) & (
            scaled <= np.log(self._config.max_scale_ratio) + 1e-9
        )
        i, j, distance = i[agree], j[agree], distance[agree]
        best = mutual_best(i, j, distance)
        labels = np.ones(int(best.sum()), dtype=np.float32)
        return Correspondences(image0.keypoints, image1.keypoints, rows0[i[best]], j[best], labels)

    def _carry_over(self, index0: int, index1: int) -> tuple[Int64, Float64, Float64, Float64]:
        """Rows of the keypoints of image 0 that are visible in image 1, and their frames there.

        Returns rows (n,), centres (n, 2) and radius (n,) in stored pixels of image 1, orientation (n,). The
        frame
        is carried over as if the surface faced the camera: its ends take the depth of its centre.
        """
        image0, image1 = self._images[index0], self._images[index1]
        depth0, depth1 = self._depths[index0], self._depths[index1]
        to_depth0, to_depth1 = _scale(image0.size, depth0), _scale(image1.size, depth1)
        T_0to1 = self._pose(index0, index1)
        at_depth = torch.from_numpy(image0.centres) * to_depth0
        absolute = self._config.depth_check == "absolute"
        points1, valid = warp_points_by_depth(
            at_depth,
            depth0,
            depth1,
            self._K(index0, (depth0.shape[1], depth0.shape[0])),
            self._K(index1, (depth1.shape[1], depth1.shape[0])),
            T_0to1,
            relative_threshold=self._config.depth_threshold,
            absolute_threshold=self._config.depth_threshold if absolute else None,
        )
        rows = torch.nonzero(valid)[:, 0]
        z0, _ = sample_depth(depth0, at_depth[rows])
        centres = points1[rows] / to_depth1
        ends = _frame_ends(image0, rows.numpy())
        K0, K1 = self._K(index0, image0.size), self._K(index1, image1.size)
        carried, _ = project(transform_points(unproject(ends, z0.repeat(2), K0), T_0to1), K1)
        along, across = carried.reshape(2, -1, 2) - centres
        radius = (along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0]).abs().sqrt()
        angle = torch.atan2(-along[:, 1], along[:, 0])
        return rows.numpy(), centres.numpy(), radius.numpy(), angle.numpy()

    def _overlapping(self) -> tuple[Int64, Int64, Float64]:
        ids = np.array(
            [index for index in self._scene.images if index not in self._faults.reasons], dtype=np.int64
        )
        views = [
            sparse_view(self._depths[i].numpy(), self._scene.images[i].camera, self._config.overlap_grid)
            for i in ids.tolist()
        ]
        return overlapping_pairs(overlap_matrix(views), ids, self._config.min_overlap)

    def _pose(self, index0: int, index1: int) -> Tensor:
        cameras = (self._scene.images[index].camera for index in (index0, index1))
        return relative_pose(*(torch.from_numpy(camera.T_world_to_cam) for camera in cameras))

    def _K(self, index: int, size: tuple[int, int]) -> Tensor:
        return torch.from_numpy(self._scene.images[index].camera.scaled_K(*size))

    def _read_image(self, index: int) -> _Image:
        stored = load_frames(frames_path(self._work, index))
        radius, angle = affine_radius_angle(stored.frames, stored.size)
        # Depth and image are undistorted already, so the frames are too.
        keypoints = ImageKeypoints(
            stored.frames, angle.astype(np.float32), np.ones(len(stored.frames), dtype=bool)
        )
        return _Image(keypoints, affine_to_pixel(stored.frames, stored.size), radius, angle, stored.size)

    def _read_depth(self, index: int) -> Tensor:
        path = self._scene.images[index].depth_path
        if path is None:
            raise DataError(f"{self._scene.name}: image {index} has no depth map")
        return torch.from_numpy(read_depth(path))


def _scale(size: tuple[int, int], depth: Tensor) -> Tensor:
    """Stored pixels to depth-map pixels, (2,): the datasets' rule without a half-pixel term."""
    return torch.tensor([depth.shape[1] / size[0], depth.shape[0] / size[1]], dtype=torch.float64)


def _frame_ends(image: _Image, rows: Int64) -> Tensor:
    """(2n, 2) float64 stored pixels: the ends of the frames' x axes, then of their y axes (see gl3d's
    convention).
    """
    centres, radius, angle = image.centres[rows], image.radius[rows, None], image.angle[rows]
    cosine, sine = np.cos(angle), np.sin(angle)
    along = centres + radius * np.stack([cosine, -sine], axis=1)
    across = centres + radius * np.stack([sine, cosine], axis=1)
    return torch.from_numpy(np.concatenate([along, across]))
