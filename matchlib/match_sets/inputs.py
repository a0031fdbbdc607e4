"""What a match set is made of: its kind of source, a digest of all bytes, and images that are unusable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from matchlib.completion import digest_file, digest_json
from matchlib.datasets.depth import read_depth
from matchlib.datasets.gl3d import CorrIndex
from matchlib.datasets.types import Camera, Scene, SceneImage
from matchlib.errors import ConfigError, DataError

SourceKind = Literal["corr", "depth", "list"]
_MAX_CONDITION = 1e12  # of K; 1e7 for a focal length of 3,000 pixels
_ROTATION_TOLERANCE = 1e-2  # of R R^T - I, entry by entry; datasets write three digits and more


@dataclass(slots=True)
class Faults:
    """Images that cannot be used: scene-local id -> reason (few different ones), and the details to show."""

    reasons: dict[int, str] = field(default_factory=dict)
    details: dict[int, str] = field(default_factory=dict)

    def add(self, index: int, reason: str, detail: str) -> None:
        """Note the first fault of an image."""
        if index not in self.reasons:
            self.reasons[index], self.details[index] = reason, detail


def choose_source(scene: Scene, wanted: Literal["auto", "corr", "depth", "list"]) -> SourceKind:
    """`corr.bin`, else depth, else the list of pairs. Raises ConfigError if the scene lacks what was asked for,
    DataError if it has none of them.
    """
    has: dict[SourceKind, tuple[bool, str]] = {
        "corr": (scene.corr_path is not None, "corr.bin"),
        "depth": (any(image.depth_path is not None for image in scene.images.values()), "depth maps"),
        "list": (scene.candidate_pairs is not None, "list of pairs"),
    }
    if wanted == "auto":
        for kind, (is_there, _) in has.items():
            if is_there:
                return kind
        raise DataError(
            f"scene {scene.name}: expected corr.bin, depth maps or a list of pairs, found none of them; "
            f"check that the dataset is complete"
        )
    is_there, what = has[wanted]
    if not is_there:
        others = ", ".join(kind for kind, (there, _) in has.items() if there)
        raise ConfigError(
            f"match_sets.source: {wanted}, but scene {scene.name} has no {what}; use auto"
            + (f" or {others}" if others else "")
        )
    return wanted


def input_digest(scene: Scene, kind: SourceKind) -> str:
    """Digest of cameras and of the bytes of every file that a match set is made from; names and times do not
    enter.

    For `corr.bin`: that file and the keypoint files. For depth: images and depth maps. For a list of pairs: the
    images. sha256 reads 1 to 2 GB/s, so that the largest GL3D scene takes a second or two beside minutes of work.
    """
    cameras = {index: _camera_values(image) for index, image in scene.images.items()}
    files: dict[str, str] = {}
    if kind == "corr" and scene.corr_path is not None:
        files["corr"] = digest_file(scene.corr_path)
    for index, image in scene.images.items():
        for role, path in enumerate(_files_of(image, kind)):
            files[f"{index}/{role}"] = digest_file(path) if path is not None and path.is_file() else "missing"
    proposed = None if kind == "corr" else scene.candidate_pairs
    return digest_json(
        {"cameras": cameras, "files": files, "pairs": proposed, "offset": scene.first_global_index}
    )


def _files_of(image: SceneImage, kind: SourceKind) -> list[Path | None]:
    if kind == "corr":
        return [image.keypoints_path]
    return [image.image_path] if kind == "list" else [image.image_path, image.depth_path]


def camera_fault(camera: Camera) -> str | None:
    """Why no geometry can be had from a camera; None if nothing is wrong with it."""
    K, T = camera.K, camera.T_world_to_cam
    if not np.isfinite(K).all() or np.linalg.cond(K) > _MAX_CONDITION:
        return "singular intrinsics"
    if not np.isfinite(T).all():
        return "non-finite pose"
    R = T[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > _ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        return "pose without a rotation"
    return None


def corr_faults(scene: Scene, index: CorrIndex) -> Faults:
    """Images named by `corr.bin` that have no usable camera, keypoint file, image file, or usable depth map.

    Depth maps are read where the scene has them; images are only looked for, because decoding 1000 x 1000
    pixels takes longer than all the rest. A depth map that is all zero is a fault.
    """
    faults = Faults()
    for number in np.union1d(index.index0, index.index1).tolist():
        image = scene.images.get(number)
        if image is None:
            faults.add(number, "image without camera", f"image {number}: not in cameras.txt")
            continue
        if (fault := camera_fault(image.camera)) is not None:
            faults.add(number, fault, f"camera of {image.image_path}: {fault}")
        if image.keypoints_path is None or not image.keypoints_path.is_file():
            faults.add(number, "no keypoint file", f"{image.keypoints_path or 'img_kpts'}: not found")
        if not image.image_path.is_file() or image.image_path.stat().st_size == 0:
            faults.add(number, "image missing", f"{image.image_path}: not found or empty")
        if image.depth_path is not None:
            _check_depth(number, image.depth_path, faults)
    return faults


def check_share(scene: Scene, faults: Faults, max_share: float) -> None:
    """Raise DataError, naming the first files, if more than `max_share` of the scene's images are faulty."""
    total = len(set(scene.images) | set(faults.reasons))
    if len(faults.reasons) > max_share * total:
        raise DataError(
            f"scene {scene.name}: {len(faults.reasons)} of {total} images cannot be used, more than "
            f"match_sets.max_unreadable_share = {max_share:g}: {_some(faults.details.values())}; fetch them "
            f"anew or raise the share"
        )


def describe(faults: Faults) -> str:
    """One line that names the first faulty files."""
    return f"{len(faults.reasons)} images cannot be used: {_some(faults.details.values())}"


def _some(texts: Iterable[str], most: int = 5) -> str:
    shown = list(texts)
    return "; ".join(shown[:most]) + (f"; and {len(shown) - most} more" if len(shown) > most else "")


def _check_depth(number: int, path: Path, faults: Faults) -> None:
    try:
        if not read_depth(path).any():
            faults.add(number, "depth all zero", f"{path}: no depth above 0")
    except DataError as error:
        faults.add(number, "unreadable depth", str(error))


def _camera_values(image: SceneImage) -> list[Any]:
    camera = image.camera
    return [camera.K.tolist(), camera.T_world_to_cam.tolist(), list(camera.size), list(camera.distortion)]
