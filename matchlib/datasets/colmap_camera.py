"""Intrinsics as COLMAP states them, and the text lists that benchmarks ship them in. Imports nothing heavy.

Parameters are in COLMAP's pixels, counted from the corner of the image: the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from matchlib.completion import atomic_write
from matchlib.datasets.parsing import filled_lines, numbers, whole_number
from matchlib.errors import DataError

# Source: COLMAP, src/colmap/sensor/models.h.
CAMERA_MODELS: Mapping[str, str] = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k",
    "RADIAL": "f cx cy k1 k2",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
    "FOV": "fx fy cx cy omega",
    "THIN_PRISM_FISHEYE": "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1",
}
"""Parameters by model, in their order."""
_GUESSED_FOCAL = 1.2  # times the longer side: COLMAP's own guess, about 45 degrees


@dataclass(frozen=True, slots=True, kw_only=True)
class ColmapCamera:
    """Intrinsics of one image.

    model:          a key of `CAMERA_MODELS`
    width, height:  in pixels
    params:         as `CAMERA_MODELS[model]` names them, in COLMAP's pixels
    is_calibrated:  the focal length is known, not guessed; verification then estimates essential matrices
    Raises DataError for an unknown model, another number of parameters, or impossible values.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]
    is_calibrated: bool = True

    def __post_init__(self) -> None:
        if self.model not in CAMERA_MODELS:
            raise DataError(f"camera model: expected one of {', '.join(CAMERA_MODELS)}, got '{self.model}'")
        names = CAMERA_MODELS[self.model].split()
        if len(self.params) != len(names):
            raise DataError(
                f"{self.model}: expected {len(names)} parameters ({' '.join(names)}), got {len(self.params)}: "
                f"{' '.join(map(str, self.params))}; check the camera model"
            )
        if self.width < 1 or self.height < 1:
            raise DataError(
                f"{self.model}: expected a size of at least 1 x 1 px, got {self.width} x {self.height}"
            )
        if not all(map(math.isfinite, self.params)):
            raise DataError(f"{self.model}: expected finite parameters, got {self.params}")
        if any(value <= 0 for name, value in zip(names, self.params, strict=True) if name.startswith("f")):
            raise DataError(f"{self.model}: expected a focal length above 0, got {self.params}")


def guessed_camera(width: int, height: int, *, model: str = "SIMPLE_RADIAL") -> ColmapCamera:
    """Intrinsics of an image of which only the size is known: focal length 1.2 times the longer side, principal point
    in the middle, no distortion. Raises DataError for an unknown model."""
    focal = _GUESSED_FOCAL * max(width, height)
    known = {"cx": width / 2, "cy": height / 2, "f": focal, "fx": focal, "fy": focal}
    params = tuple(known.get(name, 0.0) for name in CAMERA_MODELS.get(model, "").split())
    return ColmapCamera(model=model, width=width, height=height, params=params, is_calibrated=False)


def read_intrinsics_list(path: Path) -> dict[str, ColmapCamera]:
    """Intrinsics by image name from lines `name MODEL width height params...`, in the order of the file.

    The format of Aachen's query and database lists; lines that begin with # are comments. A name that comes twice with
    equal intrinsics counts once. Raises DataError naming file and line.
    """
    cameras: dict[str, ColmapCamera] = {}
    for line, text in filled_lines(path):
        if text.startswith("#"):
            continue
        words = text.split()
        if len(words) < 5:
            raise DataError(f"{path}:{line}: expected 'name MODEL width height params...', got '{text}'")
        values = numbers(path, line, " ".join(words[2:]))
        width, height = (
            whole_number(path, line, value, name)
            for value, name in zip(values[:2], ("width", "height"), strict=True)
        )
        try:
            camera = ColmapCamera(model=words[1], width=width, height=height, params=tuple(values[2:]))
        except DataError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        if cameras.setdefault(words[0], camera) != camera:
            raise DataError(f"{path}:{line}: '{words[0]}' comes twice, with other intrinsics; keep one line")
    return cameras


def write_intrinsics_list(path: Path, cameras: Mapping[str, ColmapCamera]) -> None:
    """Write what `read_intrinsics_list` reads, atomically; numbers read back to the same bits."""
    lines = [
        f"{name} {camera.model} {camera.width} {camera.height} {' '.join(map(repr, map(float, camera.params)))}\n"
        for name, camera in cameras.items()
    ]
    atomic_write(path, "".join(lines))


def require_cameras(
    names: Iterable[str], cameras: Mapping[str, ColmapCamera], *, source: Path
) -> dict[str, ColmapCamera]:
    """The intrinsics of exactly these images. Raises DataError naming those that `source` lacks.

    An image without intrinsics is refused, not guessed: a guess of the focal length fails without a word.
    """
    wanted = list(names)
    missing = [name for name in wanted if name not in cameras]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{source}: no intrinsics of {len(missing)} of {len(wanted)} images: {shown}; add a line "
            f"'name MODEL width height params...' for each"
        )
    return {name: cameras[name] for name in wanted}
