"""Features as one `.npz` per image, for programs that read those instead of HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from matchlib.completion import atomic_path
from matchlib.errors import DataError, ShapeError
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features


def export_npz(reader: FeatureReader, folder: Path) -> int:
    """Write `<folder>/<image name>.npz` per image, as D2-Net and R2D2 do; returns the number of files.

    Keys: `keypoints` (N, 2), `scores` (N,), `descriptors` (N, D), all float32, and `image_size` (2,):
    width, height.
    """
    for name in reader.names:
        features = reader.read(name)
        with atomic_path(folder / f"{name}.npz") as temporary:
            np.savez(
                temporary,
                keypoints=features.keypoints,
                scores=features.scores,
                descriptors=features.descriptors,
                image_size=np.array(features.image_size, dtype=np.int64),
            )
    return len(reader)


def read_npz(path: Path) -> Features:
    """Features of one image from what `export_npz` wrote. Raises DataError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            width, height = (int(side) for side in arrays["image_size"])
            return Features(
                keypoints=arrays["keypoints"],
                scores=arrays["scores"],
                descriptors=arrays["descriptors"],
                image_size=(width, height),
            )
    except (OSError, KeyError, ValueError, ShapeError) as error:
        raise DataError(f"{path}: not a features file ({error}); export it again") from error
