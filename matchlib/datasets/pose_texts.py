"""Lists of pose pairs as text: SuperGlue's and glue-factory's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from matchlib.datasets.parsing import filled_lines, numbers, whole_number
from matchlib.datasets.pose_pairs import Float, PosePair, Size, relative_pose, scene_of
from matchlib.errors import DataError

# Parameters of COLMAP's camera models that a list of undistorted images may use: focal lengths, then cx, cy. The
# second number counts distortion parameters, which must be zero.
_FOCALS = {
    "SIMPLE_PINHOLE": (1, 0),
    "PINHOLE": (2, 0),
    "SIMPLE_RADIAL": (1, 1),
    "RADIAL": (1, 2),
    "OPENCV": (2, 4),
}


def read_superglue(path: Path) -> tuple[PosePair, ...]:
    """Pairs of a text file, one per line, row major: `name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)`, 38 columns.

    Also taken: 36 columns, without the rotations, and 32, `name0 name1 K0(9) K1(9) R(9) t(3)`, as glue-factory's
    `pairs_calibrated.txt`. Raises DataError naming file and line.
    """
    pairs = []
    for line, text in filled_lines(path):
        names, words = text.split()[:2], text.split()[2:]
        rotations, rest = (words[:2], words[2:]) if len(words) == 36 else (["0", "0"], words)
        if len(rest) not in (30, 34):
            raise DataError(
                f"{path}:{line}: expected 38, 36 or 32 columns (names, intrinsics, pose), got {len(text.split())}; "
                f"lists without a true pose cannot be evaluated"
            )
        values = numbers(path, line, " ".join(rest))
        turns = numbers(path, line, " ".join(rotations))
        pairs.append(
            _pair(
                path,
                line,
                names=(names[0], names[1]),
                K=(_matrix(values[:9]), _matrix(values[9:18])),
                T_0to1=_rigid(values[18:]),
                turns=[whole_number(path, line, turn, "rot") for turn in turns],
            )
        )
    return tuple(pairs)


def _pair(
    path: Path, line: int, *, names: tuple[str, str], K: tuple[Float, Float], T_0to1: Float, turns: list[int]
) -> PosePair:
    try:
        return PosePair(
            name0=names[0],
            name1=names[1],
            K0=K[0],
            K1=K[1],
            T_0to1=T_0to1,
            rot0=turns[0],
            rot1=turns[1],
            scene=scene_of(names[0]),
        )
    except DataError as error:
        raise DataError(f"{path}:{line}: {error}") from error


def _matrix(values: list[float]) -> Float:
    return np.array(values, dtype=np.float64).reshape(3, 3)


def _rigid(values: list[float]) -> Float:
    """(4, 4) from 16 numbers, or from 9 of the rotation and 3 of the translation."""
    if len(values) == 16:
        return np.array(values, dtype=np.float64).reshape(4, 4)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = _matrix(values[:9]), values[9:]
    return T


# ---------------------------------------------------------------- glue-factory's scenes
def read_glue_factory(folder: Path) -> tuple[PosePair, ...]:
    """Pairs of a scene (`views.txt`, `pairs.txt`, `images/`), or of all scenes below a folder, sorted by name.

    A view is `name R(9) t(3) MODEL width height params...`, world to camera, COLMAP's models and pixels; a pair is
    two names. Names come out as `images/<name>`, or `<scene>/images/<name>`. Raises DataError naming file and line.
    """
    if (folder / "views.txt").is_file():
        return _read_scene(folder, prefix="images/")
    scenes = sorted(path.parent for path in folder.glob("*/views.txt"))
    if not scenes:
        raise DataError(f"{folder}: expected views.txt and pairs.txt, here or in folders below, found none")
    return tuple(pair for scene in scenes for pair in _read_scene(scene, prefix=f"{scene.name}/images/"))


_View = tuple[Float, Float, Size]


def _read_scene(folder: Path, *, prefix: str) -> tuple[PosePair, ...]:
    path = folder / "views.txt"
    views = dict(_view(path, line, text) for line, text in filled_lines(path))
    path = folder / "pairs.txt"
    pairs = []
    for line, text in filled_lines(path):
        names = text.split()
        if len(names) != 2:
            raise DataError(f"{path}:{line}: expected two names, got {len(names)}")
        unknown = [name for name in names if name not in views]
        if unknown:
            raise DataError(f"{path}:{line}: {unknown[0]} is not in {folder / 'views.txt'}")
        (K0, T0, size0), (K1, T1, size1) = views[names[0]], views[names[1]]
        try:
            pair = PosePair(
                name0=prefix + names[0],
                name1=prefix + names[1],
                K0=K0,
                K1=K1,
                T_0to1=relative_pose(T0, T1),
                scene=scene_of(names[0]) or folder.name,
                size0=size0,
                size1=size1,
            )
        except (DataError, np.linalg.LinAlgError) as error:
            raise DataError(f"{path}:{line}: {error}") from error
        pairs.append(pair)
    return tuple(pairs)


def _view(path: Path, line: int, text: str) -> tuple[str, _View]:
    words = text.split()
    model = words[13] if len(words) > 13 else ""
    if model not in _FOCALS:
        raise DataError(
            f"{path}:{line}: expected name, 9 + 3 numbers of a pose and a camera model "
            f"({', '.join(_FOCALS)}), got '{model}'"
        )
    focals, distortions = _FOCALS[model]
    T_world_to_cam = _rigid(numbers(path, line, " ".join(words[1:13]), 12))
    width, height, *params = numbers(path, line, " ".join(words[14:]), 2 + focals + 2 + distortions)
    if any(params[focals + 2 :]):
        raise DataError(f"{path}:{line}: expected an undistorted image, got {model} {params[focals + 2 :]}")
    K = np.array([[params[0], 0, params[focals]], [0, params[focals - 1], params[focals + 1]], [0, 0, 1]])
    size = whole_number(path, line, width, "width"), whole_number(path, line, height, "height")
    return words[0], (K, T_world_to_cam, size)
