"""SIFT keypoints as GL3D frames, kept in the work folder so that a resumed job does not detect them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_path
from matchlib.datasets.gl3d import pixel_to_affine
from matchlib.match_sets.config import DepthSourceConfig
from matchlib.match_sets.layout import Float32


def detect_frames(image: npt.NDArray[np.uint8], config: DepthSourceConfig) -> Float32:
    """Affine frames (N, 6) float32 of the SIFT keypoints of an (H, W, 3) uint8 RGB image, strongest first.

    The frame's orientation is GL3D's: its x axis points along the dominant gradient, and atan2(a01, a00) is
    the negative of OpenCV's clockwise angle.
    """
    import cv2

    sift = cv2.SIFT_create(  # type: ignore[attr-defined]
        nfeatures=config.max_keypoints,
        contrastThreshold=config.contrast_threshold,
        edgeThreshold=config.edge_threshold,
    )
    found = list(sift.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None))
    # OpenCV keeps all keypoints that tie with the last; the order makes the cut, and the file, the same
    # everywhere.
    found.sort(key=lambda k: (-k.response, k.pt, k.size, k.angle))
    found = found[: config.max_keypoints]
    xy = np.array([k.pt for k in found], dtype=np.float64).reshape(-1, 2)
    sigma = np.array([k.size for k in found], dtype=np.float64) / 2  # OpenCV's size is twice the scale
    angle = np.array([k.angle for k in found], dtype=np.float64)
    size = (image.shape[1], image.shape[0])
    return pixel_to_affine(xy, size, config.frame_radius_sigmas * sigma, wrap_angle(-np.deg2rad(angle)))


def wrap_angle(angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Radians in [-pi, pi)."""
    wrapped: npt.NDArray[np.float64] = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    return wrapped


@dataclass(frozen=True, slots=True)
class StoredFrames:
    """frames: (N, 6) float32; size: (W, H) of the stored image they were found in, in whose pixels they are
    round.
    """

    frames: Float32
    size: tuple[int, int]


def frames_path(work: Path, index: int) -> Path:
    """Where the frames of one image are kept."""
    return work / "sift" / f"{index:08d}.npz"


def store_frames(path: Path, stored: StoredFrames) -> None:
    """Write frames, atomically."""
    with atomic_path(path) as temporary:
        np.savez(temporary, frames=stored.frames, size=np.array(stored.size))


def load_frames(path: Path) -> StoredFrames:
    """Read what `store_frames` wrote."""
    with np.load(path, allow_pickle=False) as file:
        width, height = file["size"].tolist()
        return StoredFrames(file["frames"], (width, height))
