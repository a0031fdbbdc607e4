"""A features file in the layouts that other programs read, and back.

`npz`          `<image>.npz` per image, see `features.npz`
`posfeat-npz`  `<image>.<postfix>` per image, a NumPy archive in spite of its name, as PoSFeat's evaluations on
               HPatches, Aachen and ETH read them (D2-Net's and CAPS' do too): `keypoints` (N, 2), `scores` (N, 1),
               `descriptors` (N, D), all float32. The folder may be that of the images; the postfix tells methods apart.
`imw-h5`       per folder of images `keypoints.h5` (N, 2), `descriptors.h5` (N, D), `scores.h5` (N, 1) and `scales.h5`
               (N, 1) of ones, all float32; a dataset per image, named without the ending: the Image Matching Workshop's
`hloc-h5`      `feat.h5`, a group per image: `keypoints` (N, 2), `scores` (N,), `descriptors` (D, N), `image_size` (2,).
               Our own file is of this layout already; this one lacks what it has beyond it, and may hold
               descriptors in half precision

Keypoints are float32 everywhere: in half precision they would be a pixel apart beyond x = 1024. Every file appears
whole or not at all; an export that was killed is run again and writes everything anew.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_path
from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.features.npz import export_npz, read_arrays
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features

Layout = Literal["npz", "posfeat-npz", "imw-h5", "hloc-h5"]
HLOC_FILE = "feat.h5"
_IMW_ARRAYS = ("keypoints", "descriptors", "scores", "scales")


def export_features(
    reader: FeatureReader,
    folder: Path,
    *,
    layout: Layout,
    postfix: str = "posfeat",
    half_descriptors: bool = False,
) -> int:
    """Write all images of a features file in another layout below `folder`; returns the number of files.

    postfix:          of posfeat-npz, without the dot
    half_descriptors: float16 descriptors, for hloc-h5 only
    Raises ConfigError for a combination that no layout has, and DataError for images whose names coincide there.
    """
    if half_descriptors and layout != "hloc-h5":
        raise ConfigError(f"half precision: expected layout hloc-h5, got {layout}, which has float32 only")
    if layout == "npz":
        return export_npz(reader, folder)
    if layout == "posfeat-npz":
        return _export_posfeat_npz(reader, folder, postfix)
    if layout == "imw-h5":
        return _export_imw(reader, folder)
    return _export_hloc(reader, folder, np.dtype(np.float16 if half_descriptors else np.float32))


def read_posfeat_npz(path: Path, image_size: tuple[int, int]) -> Features:
    """Features of one image from a posfeat-npz file; scores (N, 1) or (N,), absent ones become 1.

    image_size: (width, height), which such files do not hold
    Raises DataError naming the file.
    """
    found = read_arrays(path)
    try:
        return _features(found["keypoints"], found["descriptors"], found.get("scores"), image_size)
    except (KeyError, ValueError, ShapeError) as error:
        raise DataError(
            f"{path}: not a features file in layout posfeat-npz ({error}); export it again"
        ) from error


def read_imw(folder: Path, name: str, image_size: tuple[int, int]) -> Features:
    """Features of one image from a folder in layout imw-h5; scores are optional.

    name:       of the image, without its ending
    image_size: (width, height), which such files do not hold
    Raises DataError naming the folder and the image.
    """
    try:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for key in ("keypoints", "descriptors", "scores"):
            if key != "scores" or (folder / "scores.h5").is_file():
                with h5py.File(folder / f"{key}.h5", "r") as file:
                    arrays[key] = file[name][()]
        return _features(arrays["keypoints"], arrays["descriptors"], arrays.get("scores"), image_size)
    except (OSError, KeyError, ValueError, ShapeError) as error:
        raise DataError(
            f"{folder}: no features of image '{name}' in layout imw-h5 ({error}); export them again"
        ) from error


def _export_posfeat_npz(reader: FeatureReader, folder: Path, postfix: str) -> int:
    if not postfix or "/" in postfix:
        raise ConfigError(f"postfix: expected a word such as posfeat, got {postfix!r}")
    for name in reader.names:
        features = reader.read(name)
        # NumPy would append .npz to a name, but not to an open file.
        with atomic_path(folder / f"{name}.{postfix}") as temporary, open(temporary, "wb") as stream:
            np.savez(
                stream,
                keypoints=features.keypoints,
                scores=features.scores[:, None],
                descriptors=features.descriptors,
            )
    return len(reader)


def _export_imw(reader: FeatureReader, folder: Path) -> int:
    """One folder at a time; its four files are renamed together, `keypoints.h5` last."""
    by_folder = sorted(reader.names, key=lambda name: (_parent(name), name))
    _refuse_equal_stems(reader.path, by_folder)
    files = 0
    for parent, names in itertools.groupby(by_folder, key=_parent):
        with contextlib.ExitStack() as stack:
            paths = {
                key: stack.enter_context(atomic_path(folder / parent / f"{key}.h5")) for key in _IMW_ARRAYS
            }
            with contextlib.ExitStack() as open_files:
                opened = {key: open_files.enter_context(h5py.File(path, "w")) for key, path in paths.items()}
                for name in names:
                    for key, array in _imw_arrays(reader.read(name)).items():
                        opened[key].create_dataset(PurePosixPath(name).stem, data=array)
        files += len(_IMW_ARRAYS)
    return files


def _imw_arrays(features: Features) -> dict[str, npt.NDArray[np.float32]]:
    return {
        "keypoints": features.keypoints,
        "descriptors": features.descriptors,
        "scores": features.scores[:, None],
        "scales": np.ones((len(features), 1), np.float32),
    }


def _export_hloc(reader: FeatureReader, folder: Path, dtype: np.dtype[Any]) -> int:
    with atomic_path(folder / HLOC_FILE) as temporary, h5py.File(temporary, "w") as file:
        for name in reader.names:
            features = reader.read(name)
            group = file.create_group(name)
            group.create_dataset("keypoints", data=features.keypoints)
            group.create_dataset("scores", data=features.scores)
            group.create_dataset("descriptors", data=features.descriptors.T.astype(dtype))
            group.create_dataset("image_size", data=np.array(features.image_size, np.int64))
    return 1


def _refuse_equal_stems(path: Path, names: list[str]) -> None:
    seen: dict[PurePosixPath, str] = {}
    for name in names:
        other = seen.setdefault(PurePosixPath(name).with_suffix(""), name)
        if other != name:
            raise DataError(
                f"{path}: images '{other}' and '{name}' have one name in layout imw-h5, which drops the ending; "
                f"rename one, or choose another layout"
            )


def _parent(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _features(
    keypoints: npt.NDArray[Any],
    descriptors: npt.NDArray[Any],
    scores: npt.NDArray[Any] | None,
    image_size: tuple[int, int],
) -> Features:
    """Arrays of any float dtype, (N, 2), (N, D) and (N,) or (N, 1), as features; descriptors get unit length."""
    values = np.ones(len(keypoints)) if scores is None else scores
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    wide = np.asarray(descriptors, np.float32)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return Features(
        keypoints=np.asarray(keypoints, np.float32),
        scores=np.asarray(values, np.float32),
        descriptors=np.asarray(wide / np.maximum(length, 1e-12), np.float32),
        image_size=image_size,
    )
