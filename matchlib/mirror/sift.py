"""SIFT keypoints and depth-verified correspondences, as structure from motion would have left them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Camera
from matchlib.mirror.visibility import transfer

Float = npt.NDArray[np.float64]
_SAME_SURFACE = (
    0.02  # relative difference of depth; wider than for exact points, since keypoints are up to px apart
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiftKeypoints:
    """SIFT of one undistorted picture, strongest first.

    xy:          (N, 2) float64 pixels
    sigma:       (N,) float64 scale in pixels
    angle:       (N,) float64 orientation in radians, from the x axis towards the y axis (clockwise on screen)
    descriptors: (N, 128) float32 RootSIFT, unit length
    """

    xy: Float
    sigma: Float
    angle: Float
    descriptors: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.xy)


def detect_sift(image: npt.NDArray[np.uint8], limit: int) -> SiftKeypoints:
    """The `limit` strongest SIFT keypoints of an (H, W, 3) uint8 RGB picture (all, if fewer; may be none).

    The contrast threshold is 0.0067, as the GL3D family of methods uses it.
    """
    sift = cv2.SIFT_create(contrastThreshold=0.0067)  # type: ignore[attr-defined]  # missing in its stubs
    found, raw = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    rows = [(k.pt[0], k.pt[1], k.size / 2, k.angle, k.response) for k in found]
    table = np.array(rows, np.float64).reshape(-1, 5)
    # Ties are broken by position, so that the order does not depend on the detector's threads.
    order = np.lexsort((table[:, 3], table[:, 0], table[:, 1], -table[:, 4]))[:limit]
    table = table[order]
    descriptors = np.zeros((0, 128), np.float32) if raw is None else np.asarray(raw, np.float32)[order]
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
    return SiftKeypoints(
        xy=table[:, :2], sigma=table[:, 2], angle=np.radians(table[:, 3]), descriptors=descriptors
    )


def mutual_matches(
    descriptors0: npt.NDArray[np.float32], descriptors1: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Mutual nearest neighbours by dot product, (M, 2) int64 indices, ascending in the first."""
    if not len(descriptors0) or not len(descriptors1):
        return np.zeros((0, 2), np.int64)
    similarity = descriptors0 @ descriptors1.T
    best1, best0 = similarity.argmax(axis=1), similarity.argmax(axis=0)
    index0 = np.flatnonzero(best0[best1] == np.arange(len(best1)))
    return np.column_stack([index0, best1[index0]]).astype(np.int64)


def verified(
    cameras: tuple[Camera, Camera], xy: tuple[Float, Float], depths: tuple[Float, Float], threshold_px: float
) -> npt.NDArray[np.bool_]:
    """Which of the paired positions (M, 2) in two undistorted pictures show one point, (M,).

    The exact z-depths (M,) must carry each position to within `threshold_px` of the other, at the same depth.
    """
    good = (depths[0] > 0) & (depths[1] > 0)
    for here, there in ((0, 1), (1, 0)):
        moved, depth = transfer(cameras[here], cameras[there], xy[here], depths[here])
        good &= np.linalg.norm(moved - xy[there], axis=1) <= threshold_px
        good &= np.abs(depth - depths[there]) <= _SAME_SURFACE * depths[there]
    return np.asarray(good)


def triangulation_cosine(camera0: Camera, camera1: Camera, xy0_N2: Float, depth0_N: Float) -> Float:
    """Cosine of the angle at which the two cameras see each point, (N,) float64; 1 = same direction."""
    to_world = np.linalg.inv(camera0.T_world_to_cam)
    rays = np.column_stack([xy0_N2, np.ones(len(xy0_N2))]) @ np.linalg.inv(camera0.K).T * depth0_N[:, None]
    points = rays @ to_world[:3, :3].T + to_world[:3, 3]
    centres = [np.linalg.inv(camera.T_world_to_cam)[:3, 3] for camera in (camera0, camera1)]
    views = [(points - c) / np.linalg.norm(points - c, axis=1, keepdims=True) for c in centres]
    return np.asarray((views[0] * views[1]).sum(axis=1))
