"""Pairs that a dataset proposes, without correspondences: all that training from poses alone needs."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from matchlib.datasets.images import read_image
from matchlib.datasets.types import Scene, SceneImage
from matchlib.errors import DataError
from matchlib.match_sets.candidates import Int64
from matchlib.match_sets.inputs import Faults, camera_fault
from matchlib.match_sets.keypoints import Correspondences, ImageKeypoints


def listed_pairs(scene: Scene) -> tuple[Int64, Int64]:
    """First and second ids (P,) of the pairs that the dataset proposes, in its order. Raises DataError if it
    proposes none at all; an empty list is a list.
    """
    if scene.candidate_pairs is None:
        raise DataError(f"scene {scene.name}: the dataset proposes no pairs; use match_sets.source: auto")
    ids = np.array(scene.candidate_pairs, dtype=np.int64).reshape(-1, 2)
    return ids[:, 0], ids[:, 1]


def list_faults(scene: Scene) -> Faults:
    """Images of the listed pairs that have no usable camera, or no image file that it describes.

    Every image is decoded: nothing else will look at it before the training does. Its size must be the
    camera's, because nothing else (a depth map, keypoints) would show that K refers to other pixels.
    """
    faults = Faults()
    named = np.unique(np.concatenate(listed_pairs(scene))).tolist()
    for index in tqdm(named, desc=scene.name, unit="image", disable=None):
        image = scene.images.get(index)
        if image is None:
            faults.add(index, "image without camera", f"image {index}: has no camera")
        elif (fault := camera_fault(image.camera)) is not None:
            faults.add(index, fault, f"camera of {image.image_path}: {fault}")
        else:
            _check_image(index, image, faults)
    return faults


def no_correspondences(_: int) -> Correspondences:
    """What is known of a listed pair: nothing."""
    none = ImageKeypoints(
        np.zeros((0, 6), dtype=np.float32), np.zeros(0, dtype=np.float32), np.zeros(0, dtype=bool)
    )
    rows = np.zeros(0, dtype=np.int64)
    return Correspondences(none, none, rows, rows, np.zeros(0, dtype=np.float32))


def _check_image(index: int, image: SceneImage, faults: Faults) -> None:
    path = image.image_path
    if not path.is_file() or path.stat().st_size == 0:
        faults.add(index, "image missing", f"{path}: not found or empty")
        return
    try:
        height, width, _ = read_image(path).shape
    except DataError as error:
        faults.add(index, "unreadable image", str(error))
        return
    if (width, height) != image.camera.size:
        expected = "{} x {}".format(*image.camera.size)
        faults.add(
            index,
            "size of image and camera differ",
            f"{path}: expected {expected} pixels, as its camera says, got {width} x {height}",
        )
