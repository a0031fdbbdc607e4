"""Images on disk: 8-bit RGB whatever the file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.errors import DataError, ShapeError, check_shape

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 RGB, in the orientation of the stored pixels (EXIF rotation is not
    applied).

    Reads whatever OpenCV reads, going by content and not by name: grey becomes three equal channels, 16 bits
    are scaled to 8, an alpha channel is dropped, CMYK is converted. Raises DataError for a missing, foreign,
    truncated or float image; OpenCV itself would fill the missing part of a truncated JPEG with grey.
    """
    import cv2  # not at module level: the graph imports every module of this package

    data = _read_bytes(path)
    _check_end(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"{path}: not a readable image ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: not a readable image ({len(data)} bytes, begins with {data[:8]!r})")
    return _to_rgb(path, image)


def list_images(folder: Path) -> list[str]:
    """Paths of all image files below a folder, relative to it, sorted. Raises DataError if there is none."""
    endings = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file()]
    if not found:
        raise DataError(f"{folder}: expected image files ({' '.join(endings)}), found none")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def write_image(path: Path, rgb: npt.NDArray[np.uint8], quality: int = 95) -> None:
    """Write (H, W, 3) uint8 RGB, or (H, W) uint8 grey, in the format of the name's ending, atomically.

    `quality` (1-100) is JPEG's. Raises ShapeError for other arrays, DataError for an ending that OpenCV does
    not know.
    """
    import cv2

    if rgb.dtype != np.uint8:
        raise ShapeError(f"image for {path}: expected uint8, got {rgb.dtype}")
    if rgb.ndim != 2:
        check_shape(f"image for {path}", rgb, "H W 3")
    pixels = rgb if rgb.ndim == 2 else np.ascontiguousarray(rgb[:, :, ::-1])
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    try:
        done, encoded = cv2.imencode(
            path.suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, quality] if is_jpeg else []
        )
    except cv2.error as error:
        raise DataError(f"{path}: cannot be written as '{path.suffix}' ({error.err})") from error
    if not done:
        raise DataError(f"{path}: cannot be written as '{path.suffix}'")
    atomic_write(path, encoded.tobytes())


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise DataError(f"{path}: empty file")
    return data


def _to_rgb(path: Path, image: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{path}: expected 8 or 16 bits per channel, got {image.dtype}")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] <= 2:  # grey, or grey with alpha
        return np.repeat(image[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(image[:, :, 2::-1])


def _check_end(path: Path, data: bytes) -> None:
    """Refuse JPEG and PNG files that lack their end marker."""
    if data.startswith(_JPEG) and data.find(b"\xff\xd9", _jpeg_scan_start(data)) < 0:
        raise DataError(f"{path}: truncated JPEG ({len(data)} bytes, no end marker); fetch the file anew")
    if data.startswith(_PNG) and data.rfind(b"IEND") < 0:
        raise DataError(f"{path}: truncated PNG ({len(data)} bytes, no IEND chunk); fetch the file anew")


def _jpeg_scan_start(data: bytes) -> int:
    """Offset of the first scan. Segments before it are skipped: an embedded preview has an end marker of its
    own.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        if (
            marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7
        ):  # fill byte, or marker without a length
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)
