"""Features as one `.npz` per image, for programs that read those instead of HDF5."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
    arrays = read_arrays(path)
    try:
        width, height = (int(side) for side in arrays["image_size"])
        return Features(
            keypoints=arrays["keypoints"],
            scores=arrays["scores"],
            descriptors=arrays["descriptors"],
            image_size=(width, height),
        )
    except (KeyError, ValueError, ShapeError) as error:
        raise DataError(f"{path}: not a features file ({error}); export it again") from error


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a NumPy archive by name, whatever the file is called; pickled ones are refused.

    Raises DataError naming the file.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("a single array")
        with loaded as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a features file ({error}); export it again") from error
