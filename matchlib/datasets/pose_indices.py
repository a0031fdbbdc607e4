"""The published indices of MegaDepth-1500 and ScanNet-1500, in the files that LoFTR's repository holds."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.datasets.plain_pickle import read_plain_pickle
from matchlib.datasets.pose_pairs import PosePair, relative_pose
from matchlib.errors import DataError, ShapeError

SCANNET_SIZE = (640, 480)
"""Size of the frames that the intrinsics of ScanNet-1500 are for; the originals are 1296 x 968."""


def read_megadepth(index: Path) -> tuple[PosePair, ...]:
    """Pairs of one scene index, or of all `.npz` files of a folder in order of name (MegaDepth-1500: five of 300).

    Despite their ending these files are pickles, which are read without running code in them. Names of images are
    theirs: `Undistorted_SfM/<scene>/images/<name>.jpg`; the scene is `<scene>`. Intrinsics are for the image on disk,
    in COLMAP's pixels. Raises DataError naming the file and the pair.
    """
    paths = sorted(index.glob("*.npz")) if index.is_dir() else [index]
    if not paths:
        raise DataError(f"{index}: expected scene indices (.npz), found none")
    return tuple(pair for path in paths for pair in _read_scene(path))


def _read_scene(path: Path) -> list[PosePair]:
    body = read_plain_pickle(path)
    keys = ("image_paths", "intrinsics", "poses", "pair_infos")
    missing = [key for key in keys if not isinstance(body, Mapping) or key not in body]
    if missing:
        raise DataError(f"{path}: expected a scene index of LoFTR with {', '.join(keys)}; missing: {missing}")
    pairs = []
    for number, info in enumerate(body["pair_infos"]):
        try:
            pairs.append(_megadepth_pair(body, info))
        except (DataError, ShapeError, TypeError, ValueError, IndexError, np.linalg.LinAlgError) as error:
            raise DataError(f"{path}: pair_infos[{number}]: {error}") from error
    return pairs


def _megadepth_pair(body: Mapping[str, Any], info: Any) -> PosePair:
    index0, index1 = (int(index) for index in info[0])
    if min(index0, index1) < 0:
        raise DataError(f"expected indices of at least 0, got {index0} and {index1}")
    names, K, poses = (
        [body[key][i] for i in (index0, index1)] for key in ("image_paths", "intrinsics", "poses")
    )
    gaps = [i for i, name in zip((index0, index1), names, strict=True) if not isinstance(name, str)]
    if gaps:
        raise DataError(f"image {gaps[0]} of the scene has no file")
    T0, T1 = (np.asarray(pose, dtype=np.float64) for pose in poses)
    parts = PurePosixPath(names[0]).parts
    return PosePair(
        name0=names[0],
        name1=names[1],
        K0=np.asarray(K[0], dtype=np.float64),
        K1=np.asarray(K[1], dtype=np.float64),
        T_0to1=relative_pose(T0, T1),
        scene=parts[1] if len(parts) > 1 else "",
    )


# ---------------------------------------------------------------- ScanNet
def read_scannet(folder: Path) -> tuple[PosePair, ...]:
    """Pairs of `test.npz` with the intrinsics of `intrinsics.npz`, both without pickles.

    Names of images are `<scan>/color/<frame>.jpg`, as in LoFTR's archive; the scene is the scan. Intrinsics are for
    frames of SCANNET_SIZE. Raises DataError naming the file and the pair.
    """
    table = _read_arrays(folder / "test.npz")
    intrinsics = _read_arrays(folder / "intrinsics.npz")
    for key, width in (("name", 4), ("rel_pose", 12)):
        if key not in table or table[key].ndim != 2 or table[key].shape[1] != width:
            found = table[key].shape if key in table else "nothing"
            raise DataError(f"{folder / 'test.npz'}: {key}: expected shape (P, {width}), got {found}")
    if len(table["name"]) != len(table["rel_pose"]):
        raise DataError(
            f"{folder / 'test.npz'}: {len(table['name'])} names and {len(table['rel_pose'])} poses do not fit"
        )
    pairs = []
    for number, (name, pose) in enumerate(zip(table["name"], table["rel_pose"], strict=True)):
        scan = f"scene{int(name[0]):04d}_{int(name[1]):02d}"
        if scan not in intrinsics:
            raise DataError(
                f"{folder / 'intrinsics.npz'}: no intrinsics of {scan}, which pair {number} needs"
            )
        try:
            pairs.append(_scannet_pair(scan, int(name[2]), int(name[3]), intrinsics[scan], pose))
        except (DataError, ShapeError) as error:
            raise DataError(f"{folder / 'test.npz'}: pair {number}: {error}") from error
    return tuple(pairs)


def _scannet_pair(
    scan: str, frame0: int, frame1: int, K: npt.NDArray[Any], pose: npt.NDArray[Any]
) -> PosePair:
    T_0to1 = np.eye(4)
    T_0to1[:3] = pose.reshape(3, 4)
    return PosePair(
        name0=f"{scan}/color/{frame0}.jpg",
        name1=f"{scan}/color/{frame1}.jpg",
        K0=np.asarray(K, dtype=np.float64),
        K1=np.asarray(K, dtype=np.float64),
        T_0to1=T_0to1,
        scene=scan,
        size0=SCANNET_SIZE,
        size1=SCANNET_SIZE,
    )


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an `.npz` file; arrays of objects, which would be pickles, are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays ({error}); fetch it again") from error
