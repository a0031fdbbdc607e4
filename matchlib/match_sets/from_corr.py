"""Correspondences from GL3D's `corr.bin` and `img_kpts`."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np

from matchlib.datasets.gl3d import CORR_COLUMNS, read_keypoints, scan_corr
from matchlib.datasets.types import Scene
from matchlib.errors import DataError
from matchlib.match_sets.cache import ByteCache
from matchlib.match_sets.keypoints import Correspondences, ImageKeypoints, image_keypoints

_CACHE_BYTES = 160 << 20  # about 640 images of 9,000 keypoints: corr.bin goes through images in order


class CorrSource:
    """The pairs of a `corr.bin`, in file order. Holds the open file; use as a context manager.

    Raises DataError for a cut `corr.bin` or keypoint file, and for keypoint rows that do not exist, naming
    file and byte.
    """

    def __init__(self, scene: Scene, path: Path) -> None:
        self._path = path
        self._scene = scene
        self.index = scan_corr(path)
        self._file = os.open(path, os.O_RDONLY)
        self._keypoints = ByteCache(self._read_keypoints, lambda k: k.nbytes, limit=_CACHE_BYTES)

    def __enter__(self) -> CorrSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def load(self, number: int) -> Correspondences:
        """The correspondences of one pair. Its images must have cameras and keypoint files."""
        count, offset = int(self.index.count[number]), int(self.index.offset[number])
        # pread, not a memory map: mapped pages of a large file would count as this process's memory.
        data = os.pread(self._file, count * CORR_COLUMNS * 4, offset)
        rows = np.frombuffer(data, dtype="<f4").reshape(count, CORR_COLUMNS)
        keypoints0 = self._keypoints[int(self.index.index0[number])]
        keypoints1 = self._keypoints[int(self.index.index1[number])]
        numbers = rows[:, 13:15]
        limits = (len(keypoints0), len(keypoints1))
        if count and not ((numbers >= 0).all() and (numbers.max(axis=0) < limits).all()):
            raise DataError(
                f"{self._path}: byte {offset}: expected keypoint rows below {limits} of images "
                f"{self.index.index0[number]} and {self.index.index1[number]}, got up to "
                f"{numbers.max(axis=0).tolist()}; corr.bin and img_kpts do not belong together"
            )
        rows0, rows1 = numbers[:, 0].astype(np.int64), numbers[:, 1].astype(np.int64)
        labels = np.where(np.isnan(rows[:, 12]), np.float32(1), rows[:, 12])
        usable = keypoints0.usable[rows0] & keypoints1.usable[rows1]
        if not usable.all():
            rows0, rows1, labels = rows0[usable], rows1[usable], labels[usable]
        return Correspondences(keypoints0, keypoints1, rows0, rows1, labels)

    def _read_keypoints(self, index: int) -> ImageKeypoints:
        image = self._scene.images[index]
        if image.keypoints_path is None:
            raise DataError(f"{self._path}: image {index} has no keypoint file (folder img_kpts)")
        return image_keypoints(read_keypoints(image.keypoints_path), image.camera)
