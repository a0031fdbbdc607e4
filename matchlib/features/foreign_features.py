"""Features that another program extracted, checked and read like our own, or made into a features file of ours.

Every image is checked: equal counts, finite values, keypoints inside the image. What can be mended is mended with a
notice: descriptors get unit length, absent scores become 1. Keypoints in half precision cannot be mended; the notice
says how coarse they are. They are taken to have their origin at the centre of the first pixel, as ours do.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import h5py
import numpy as np
import numpy.typing as npt

from matchlib.completion import digest_file, fingerprint
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError
from matchlib.features.foreign_checks import agreed_size, check_array, check_finite, check_inside, image_names
from matchlib.features.foreign_layouts import ForeignLayout, open_layout
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features, Float32

logger = logging.getLogger(__name__)

REVISION = 1
_UNIT_TOLERANCE = 1e-3


class FeatureSource(Protocol):
    """What `FeatureReader` and `ForeignReader` have in common."""

    path: Path
    names: tuple[str, ...]
    header: StoreHeader | None
    unreadable: dict[str, str]

    @property
    def digest(self) -> str:
        """Digest of the content."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def __len__(self) -> int: ...

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> Features:
        """Features of one image. Raises DataError."""
        ...

    def image_digest(self, name: str) -> str:
        """Digest of the image file that the features were taken from; empty if unknown."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What `convert_features` did.

    kind:    the layout of the source: hloc, npz, imw, or matchlib
    images:  in the new file
    reused:  of these, taken over from an earlier run
    notices: what was mended or cannot be, each with the number of images (of those read in this run)
    digest:  of the new file
    """

    kind: str
    images: int
    reused: int
    notices: tuple[str, ...]
    digest: str


def open_features(path: Path, *, images: Path | None = None, postfix: str | None = None) -> FeatureSource:
    """Features of ours or of another program (see `foreign_layouts`), told by content; a context manager.

    images:  folder of the images; needed where the layout lacks image sizes or endings
    postfix: of a folder of NumPy archives with features of several methods, without the dot
    Raises DataError for what is not found, not of a known layout, or has no image in `images`.
    """
    if path.is_file() and h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            is_ours = "layout" in file.attrs
        if is_ours:
            return FeatureReader(path)
    return ForeignReader(path, open_layout(path, postfix=postfix), images)


def convert_features(
    source: Path,
    out: Path,
    *,
    images: Path | None = None,
    postfix: str | None = None,
    method: str | None = None,
) -> Converted:
    """Write the features at `source` as one features file of ours, atomically, streaming (see `FeatureWriter`).

    images, postfix: see `open_features`
    method:          name in tables; by default what the files are called
    A killed conversion goes on where it stopped. Raises DataError naming the file and the image of the first fault;
    no file appears then.
    """
    if source.resolve() == out.resolve():
        raise ConfigError(f"out: expected another file than the source, got {out}")
    with open_features(source, images=images, postfix=postfix) as reader:
        if not reader.names:
            raise DataError(f"{source}: no features of any image; is this the right file?")
        reused = 0
        with FeatureWriter(out, _header(reader, method)) as writer:
            for name in set(writer.kept) - set(reader.names):
                writer.drop(name)
            for name in reader.names:
                if name in reader.unreadable:
                    continue
                digest = reader.image_digest(name)
                if writer.kept.get(name) == digest:
                    reused += 1
                else:
                    writer.add(name, reader.read(name), image_digest=digest)
            written = writer.finish(reader.unreadable)
        converted = Converted(
            kind=reader.kind if isinstance(reader, ForeignReader) else "matchlib",
            images=len(set(reader.names) - set(reader.unreadable)),
            reused=reused,
            notices=reader.notices() if isinstance(reader, ForeignReader) else (),
            digest=written,
        )
    logger.info("%s: features of %d images (%d reused) from %s", out, converted.images, reused, source)
    return converted


class ForeignReader:
    """Features in a layout of another program, checked as they are read; see `FeatureReader`, whose use is the same.

    Raises DataError on `read` for what cannot be features of that image; mends the rest, with one warning in the log
    for each kind of fault. Not thread-safe.
    """

    header: StoreHeader | None = None

    def __init__(self, path: Path, layout: ForeignLayout, images: Path | None) -> None:
        self.path = path
        self.kind = layout.kind
        self.method = layout.method
        self.unreadable: dict[str, str] = {}
        self._layout = layout
        self._images = images
        self._counts: Counter[str] = Counter()
        self._coarsest_px = 0.0
        self._dimension: int | None = None
        try:
            self._places = image_names(path, layout.names, images)
        except BaseException:
            layout.close()
            raise
        self.names: tuple[str, ...] = tuple(sorted(self._places))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def close(self) -> None:
        """Close what is open."""
        self._layout.close()

    @property
    def digest(self) -> str:
        """Digest of the bytes of the files."""
        return self._layout.digest()

    def image_digest(self, name: str) -> str:
        """Digest of the image in the folder of images; empty without that folder."""
        return digest_file(self._images / name) if self._images is not None else ""

    def notices(self) -> tuple[str, ...]:
        """What was mended so far, or cannot be, with the number of images."""
        found = [f"{text} ({count} images)" for text, count in sorted(self._counts.items())]
        return (*found, _coarse(self._coarsest_px)) if self._coarsest_px else tuple(found)

    def read(self, name: str) -> Features:
        """Features of one image. Raises DataError if there are none or they are impossible."""
        if name not in self._places:
            raise DataError(f"{self.path}: no features of image '{name}' (it has {len(self)} images)")
        raw = self._layout.read(self._places[name])
        try:
            size = agreed_size(raw.image_size, self._size_in_folder(name))
            keypoints = self._keypoints(raw.keypoints, size)
            return Features(
                keypoints=keypoints,
                scores=self._scores(raw.scores, len(keypoints)),
                descriptors=self._descriptors(raw.descriptors, len(keypoints)),
                image_size=size,
            )
        except ValueError as error:
            raise DataError(f"{self.path}: image '{name}': {error}") from None

    def _size_in_folder(self, name: str) -> tuple[int, int] | None:
        if self._images is None:
            return None
        height, width = read_image(self._images / name).shape[:2]
        return width, height

    def _keypoints(self, keypoints: npt.NDArray[Any], size: tuple[int, int]) -> Float32:
        check_array("keypoints", keypoints, keypoints.ndim == 2 and keypoints.shape[1] >= 2, "(N, 2 or more)")
        if keypoints.dtype == np.float16 and len(keypoints):
            step = float(np.spacing(np.abs(keypoints[:, :2]).max()))
            if step > self._coarsest_px:
                self._coarsest_px = step
                logger.warning("%s: %s", self.path, _coarse(step))
        points = np.ascontiguousarray(keypoints[:, :2], dtype=np.float32)
        check_finite("keypoints", points)
        check_inside(points, size)
        return points

    def _scores(self, scores: npt.NDArray[Any] | None, count: int) -> Float32:
        if scores is None:
            self._note("no scores; all are 1")
            return np.ones(count, np.float32)
        fits = scores.shape in ((count,), (count, 1))
        check_array("scores", scores, fits, f"({count},) or ({count}, 1), as there are keypoints")
        values = scores.reshape(count).astype(np.float32)
        check_finite("scores", values)
        return values

    def _descriptors(self, descriptors: npt.NDArray[Any], count: int) -> Float32:
        """Of unit length. Images without keypoints get the dimension of the others."""
        if count == 0:
            return np.zeros((0, self._dimension_of_others()), np.float32)
        fits = descriptors.ndim == 2 and len(descriptors) == count
        check_array("descriptors", descriptors, fits, f"({count}, D), as there are keypoints")
        if self._dimension is None:
            self._dimension = descriptors.shape[1]
        if descriptors.shape[1] != self._dimension:
            raise ValueError(
                f"descriptors: expected dimension {self._dimension}, as before, got {descriptors.shape[1]}"
            )
        values = descriptors.astype(np.float32)
        check_finite("descriptors", values)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        if (length == 0).any():
            self._note("descriptors of length 0, which are nearest to none; kept")
        if (np.abs(length[length > 0] - 1) > _UNIT_TOLERANCE).any():
            self._note("descriptors brought to unit length")
        return np.asarray(values / np.where(length > 0, length, 1), np.float32)

    def _dimension_of_others(self) -> int:
        if self._dimension is None:
            self._dimension = 0
            for place in self._layout.names:
                raw = self._layout.read(place)
                if len(raw.keypoints) and raw.descriptors.ndim == 2:
                    self._dimension = int(raw.descriptors.shape[1])
                    break
        return self._dimension

    def _note(self, text: str) -> None:
        if text not in self._counts:
            logger.warning("%s: %s", self.path, text)
        self._counts[text] += 1


# ---------------------------------------------------------------- parts
def _header(reader: FeatureSource, method: str | None) -> StoreHeader:
    """The header of ours as it is; for others one with a digest of the bytes, so that only the same are resumed."""
    if not isinstance(reader, ForeignReader):
        if reader.header is None or method not in (None, reader.header.method):
            raise ConfigError(
                f"method: {reader.path} is a features file of ours and keeps its name, got {method!r}"
            )
        return reader.header
    settings = {"source": reader.digest, "layout": reader.kind, "coordinates": "centre of the first pixel"}
    return StoreHeader(
        method=method or reader.method,
        fingerprint=fingerprint(stage="foreign features", revision=REVISION, settings=settings),
        settings=settings,
    )


def _coarse(step_px: float) -> str:
    return (
        f"keypoints in half precision, rounded to steps of up to {step_px:g} px; extract again with keypoints in "
        f"single precision (hloc: as_half=False)"
    )
