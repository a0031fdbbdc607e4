"""The layouts in which other programs leave features, read as they are; `foreign_features` checks what comes out.

hloc    one HDF5 file, a group per image: `keypoints` (N, 2), `descriptors` (D, N), `scores` (N,), `image_size` (2,)
npz     `<image>.<postfix>` per image, a NumPy archive whatever its ending: `keypoints` (N, 2 or more), `descriptors`
        (N, D), `scores` (N,) or (N, 1), and sometimes `image_size` (2,), R2D2's `imsize`. PoSFeat's, D2-Net's
        (whose third column is the scale), CAPS', R2D2's and our own
imw     per folder of images `keypoints.h5`, `descriptors.h5`, perhaps `scores.h5`; a dataset per image, named without
        its ending: the Image Matching Workshop's

Pickled objects are refused by all of them: what they would run is nobody's features.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy.typing as npt

from matchlib.completion import digest_file, digest_json
from matchlib.errors import DataError
from matchlib.features.npz import read_arrays

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
_ZIP = b"PK"
_KEYPOINTS_FILE = "keypoints.h5"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFeatures:
    """Arrays of one image as a file holds them, unchecked.

    keypoints:   (N, 2 or more), x and y first
    descriptors: (N, D)
    scores:      (N,) or (N, 1), or None where the file has none
    image_size:  (width, height), or None where the file does not say
    """

    keypoints: npt.NDArray[Any]
    descriptors: npt.NDArray[Any]
    scores: npt.NDArray[Any] | None
    image_size: npt.NDArray[Any] | None


class ForeignLayout(Protocol):
    """Features of many images in one layout.

    kind:   name of the layout
    method: what the files call the method, as well as one can tell
    names:  of the images as the layout has them, sorted; perhaps without ending
    """

    kind: str
    method: str
    names: tuple[str, ...]

    def read(self, name: str) -> RawFeatures:
        """One image. Raises DataError naming the file."""
        ...

    def digest(self) -> str:
        """Digest of the bytes of all files."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class HlocFile:
    """See `ForeignLayout`. PoSFeat writes this layout with descriptors (N, D); which it is, the shapes tell."""

    kind = "hloc"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.method = path.stem
        self._file = _open_h5(path)
        names: list[str] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Group) and "keypoints" in item:
                names.append(name)

        self._file.visititems(visit)
        self.names = tuple(sorted(names))
        self._dimension_first = self._is_dimension_first()

    def read(self, name: str) -> RawFeatures:
        """See `ForeignLayout`."""
        try:
            group = self._file[name]
            descriptors = group["descriptors"][()]
            return RawFeatures(
                keypoints=group["keypoints"][()],
                descriptors=descriptors.T if self._dimension_first else descriptors,
                scores=group["scores"][()] if "scores" in group else None,
                image_size=group["image_size"][()] if "image_size" in group else None,
            )
        except (KeyError, OSError, TypeError) as error:
            raise DataError(f"{self._path}: image '{name}': {error}; extract it again") from error

    def digest(self) -> str:
        """See `ForeignLayout`."""
        return digest_file(self._path)

    def close(self) -> None:
        """See `ForeignLayout`."""
        self._file.close()

    def _is_dimension_first(self) -> bool:
        """By the first image of which the shapes can be one of (D, N) and (N, D) only; (D, N) if there is none."""
        for name in self.names:
            group = self._file[name]
            if "descriptors" in group and len(group["descriptors"].shape) == 2:
                rows, columns = group["descriptors"].shape
                count = group["keypoints"].shape[0]
                if (rows == count) != (columns == count):
                    return bool(columns == count)
        return True


class NpzFolder:
    """See `ForeignLayout`. The folder may be that of the images, and hold features of several methods."""

    kind = "npz"

    def __init__(self, folder: Path, files: Mapping[str, Path], postfix: str) -> None:
        self._files = files
        self.method = folder.name if postfix == "npz" else postfix
        self.names = tuple(sorted(files))

    def read(self, name: str) -> RawFeatures:
        """See `ForeignLayout`."""
        path = self._files[name]
        found = read_arrays(path)
        if missing := [key for key in ("keypoints", "descriptors") if key not in found]:
            raise DataError(
                f"{path}: expected arrays 'keypoints' and 'descriptors', got {', '.join(sorted(found)) or 'none'}; "
                f"'{missing[0]}' is missing, so these are no features, or of a layout that matchlib does not know"
            )
        return RawFeatures(
            keypoints=found["keypoints"],
            descriptors=found["descriptors"],
            scores=found.get("scores"),
            image_size=found.get("image_size", found.get("imsize")),
        )

    def digest(self) -> str:
        """See `ForeignLayout`."""
        return digest_json({name: digest_file(path) for name, path in self._files.items()})

    def close(self) -> None:
        """See `ForeignLayout`; files are closed as soon as they are read."""


class ImwFolder:
    """See `ForeignLayout`. The files of one folder of images are open at a time, three at most."""

    kind = "imw"

    def __init__(self, folder: Path, parts: list[Path]) -> None:
        self.method = folder.name
        self._open: tuple[Path, dict[str, h5py.File]] | None = None
        self._places: dict[str, tuple[Path, str]] = {}
        for part in parts:
            parent = part.relative_to(folder)
            with _open_h5(part / _KEYPOINTS_FILE) as file:
                for stem in file:
                    self._places[(parent / stem).as_posix()] = (part, stem)
        self.names = tuple(sorted(self._places))

    def read(self, name: str) -> RawFeatures:
        """See `ForeignLayout`."""
        part, stem = self._places[name]
        files = self._files_of(part)
        try:
            return RawFeatures(
                keypoints=files["keypoints"][stem][()],
                descriptors=files["descriptors"][stem][()],
                scores=files["scores"][stem][()] if "scores" in files else None,
                image_size=None,
            )
        except (KeyError, OSError, TypeError) as error:
            raise DataError(f"{part}: image '{stem}': {error}; extract it again") from error

    def digest(self) -> str:
        """See `ForeignLayout`."""
        parts = sorted({part for part, _ in self._places.values()})
        paths = [path for part in parts for path in sorted(part.glob("*.h5"))]
        return digest_json([(path.parent.name, path.name, digest_file(path)) for path in paths])

    def close(self) -> None:
        """See `ForeignLayout`."""
        if self._open is not None:
            for file in self._open[1].values():
                file.close()
        self._open = None

    def _files_of(self, part: Path) -> dict[str, h5py.File]:
        if self._open is None or self._open[0] != part:
            self.close()
            with contextlib.ExitStack() as stack:
                files = {
                    key: stack.enter_context(_open_h5(part / f"{key}.h5"))
                    for key in ("keypoints", "descriptors", "scores")
                    if key != "scores" or (part / "scores.h5").is_file()
                }
                stack.pop_all()
            self._open = (part, files)
        return self._open[1]


def open_layout(path: Path, *, postfix: str | None = None) -> ForeignLayout:
    """The features at a path, whatever the layout. Raises DataError if there are none, or of several methods."""
    if path.is_file():
        return HlocFile(path)
    if not path.is_dir():
        raise DataError(f"{path}: not found; expected a features file or a folder of them")
    if parts := sorted(file.parent for file in path.rglob(_KEYPOINTS_FILE)):
        return ImwFolder(path, parts)
    by_postfix = _archives(path)
    if postfix is not None:
        by_postfix = {postfix: by_postfix[postfix]} if postfix in by_postfix else {}
    if not by_postfix:
        wanted = "<image>.<postfix>" if postfix is None else f"<image>.{postfix}"
        raise DataError(
            f"{path}: no features found; expected NumPy archives {wanted}, or keypoints.h5 beside descriptors.h5"
        )
    if len(by_postfix) > 1:
        found = ", ".join(f"{len(files)} of '{key}'" for key, files in sorted(by_postfix.items()))
        raise DataError(f"{path}: features of several methods: {found}; say the postfix of one")
    ((only, files),) = by_postfix.items()
    return NpzFolder(path, files, only)


def _archives(folder: Path) -> dict[str, dict[str, Path]]:
    """NumPy archives below a folder: postfix -> image name -> file."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        is_candidate = path.suffix.lower() not in ("", *IMAGE_ENDINGS) and not path.name.startswith(".")
        if is_candidate and path.is_file() and _is_archive(path):
            name, postfix = _split(path.name)
            found[postfix][(path.relative_to(folder).parent / name).as_posix()] = path
    return dict(found)


def _split(file_name: str) -> tuple[str, str]:
    """`1.jpg.d2-net` -> `1.jpg`, `d2-net`; the postfix begins after the image's ending, and may have dots itself."""
    words = file_name.split(".")
    for place in range(1, len(words) - 1):
        if f".{words[place].lower()}" in IMAGE_ENDINGS:
            return ".".join(words[: place + 1]), ".".join(words[place + 1 :])
    name, _, postfix = file_name.rpartition(".")
    return name, postfix


def _is_archive(path: Path) -> bool:
    """A zip file of arrays, or a damaged one, whose reading then says so. Others, as PyTorch's, are passed over."""
    with open(path, "rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True


def _open_h5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path}: not a readable HDF5 file ({error}); expected hloc's features, our own, or a folder of "
            f"NumPy archives; other files (.pt, .pkl, .npy) are not read, because that may run code"
        ) from error
