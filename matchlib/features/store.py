"""Features on disk: one HDF5 file per method and image set, in the layout that hloc reads and writes.

One group per image, named by its path below the image folder ('/' nests), with `keypoints` (N, 2) float32,
`scores` (N,) float32, `descriptors` (D, N) float32 and `image_size` (2,) int64 as (width, height). Keypoints
keep matchlib's convention, which is hloc's: the centre of the first pixel is (0, 0).

Beyond hloc's layout:
- file attributes `layout`, `method`, `fingerprint`, `settings` (JSON), `unreadable` (JSON: image -> reason),
  and, written last, `complete`: a digest of all of it, by which evaluations cite the file;
- group attributes `image_digest` (of the image file) and, written last, `complete`: a digest of the arrays.
Equal images under equal settings give an equal file, byte for byte: it is written in one go, sorted by name,
and without times of creation.

HDF5 is not crash-safe: a kill in the middle of a flush can damage the whole file. So the unfinished work lies in
`<name>.work/` as sealed parts, `part-000000.h5`, ...: small files of the same layout, each written in one go
under a temporary name, fsynced and renamed, and never opened for writing again. A kill costs the images of the
part that was not sealed, at most `part_seconds` of work or `part_bytes` of features. `finish` puts the file
together from the parts and removes them, so the disk holds the features at most twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from matchlib.completion import Lease, atomic_path, digest_file, digest_json
from matchlib.errors import DataError, ShapeError
from matchlib.features.types import Features

logger = logging.getLogger(__name__)

LAYOUT = "matchlib-features-1"
_COMPLETE = "complete"
# Object headers of version 1.8 carry checksums, so damage is noticed, and every HDF5 since 2008 reads them.
_LIBVER = ("v108", "latest")
_ARRAYS = ("keypoints", "scores", "descriptors", "image_size")
_Arrays = Mapping[str, npt.NDArray[Any]]
_PARTS = "part-*.h5"
_WHOLE = "features.h5"
PART_BYTES = 64 << 20
PART_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHeader:
    """What the features are: written into the file, compared before a run is resumed.

    method:      name in tables
    fingerprint: digest of method, weights and settings (the extractor's, joined with the extraction settings)
    settings:    the settings themselves, JSON values, for people
    """

    method: str
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def features_digest(features: Features) -> str:
    """Digest of the values, the same on every machine and in every file they are stored in."""
    digest = hashlib.sha256()
    for array in (features.keypoints, features.scores, features.descriptors):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    digest.update(repr(tuple(int(side) for side in features.image_size)).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- writing
@dataclass(frozen=True, slots=True)
class _Stored:
    """Where the features of one image lie (None: in the open part), and the digests that are stated there."""

    file: Path | None
    digest: str
    image_digest: str


class FeatureWriter:
    """Writes one features file; a context manager. Nothing appears at `path` before `finish`.

    Entering takes the lease of `<path>.work/` (DataError if another process is writing) and takes over the
    parts that a killed run of the same header sealed there, and the images of a finished file of that header;
    `kept` maps each such image to the digest of its image file. Parts of another header are removed, damaged
    parts and images left out with a warning. Not thread-safe: one thread writes.

    part_bytes, part_seconds: a part is sealed when it holds this much, or when so long ago the last one was;
    that is what a kill may cost. The images of the open part wait in memory.
    """

    def __init__(
        self,
        path: Path,
        header: StoreHeader,
        *,
        part_bytes: int = PART_BYTES,
        part_seconds: float = PART_SECONDS,
    ) -> None:
        self.path = path
        self.header = header
        self.kept: dict[str, str] = {}
        self._work = path.with_name(path.name + ".work")
        self._lease = Lease(self._work)
        self._part_bytes, self._part_seconds = part_bytes, part_seconds
        self._images: dict[str, _Stored] = {}
        self._open_part: dict[str, _Arrays] = {}
        self._open_bytes = 0
        self._next_part = 0
        self._last_seal = time.monotonic()
        self._is_open = False
        self._is_finished = False

    def __enter__(self) -> FeatureWriter:
        self._lease.__enter__()
        try:
            self._resume()
        except BaseException:
            self._lease.__exit__(None, None, None)
            raise
        self._is_open, self._last_seal = True, time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_open = False
        try:
            # Also after an error: what was extracted so far is kept for the next run.
            if not self._is_finished:
                self._seal()
        except (OSError, RuntimeError) as fault:  # a full disk; the first error must not be hidden by it
            if error is None:
                raise
            logger.warning("%s: %d images could not be kept: %s", self.path, len(self._open_part), fault)
        finally:
            self._lease.__exit__(kind, error, trace)
        with contextlib.suppress(OSError):  # not empty: parts to resume from, or another writer's lease
            self._work.rmdir()

    def add(self, name: str, features: Features, *, image_digest: str = "") -> None:
        """Store the features of one image under its path below the image folder.

        Replaces an earlier version. The arrays are copied.
        """
        self._check_open()
        arrays = _packed(features)
        self._open_part[_checked_name(name)] = arrays
        self._images[name] = _Stored(None, features_digest(features), image_digest)
        self._open_bytes += sum(array.nbytes for array in arrays.values())
        is_due = time.monotonic() - self._last_seal >= self._part_seconds
        if is_due or self._open_bytes >= self._part_bytes:
            self._seal()

    def drop(self, name: str) -> None:
        """Forget an image that an earlier run stored (its file changed, or it left the image set)."""
        self._check_open()
        del self._images[name]
        self._open_part.pop(name, None)
        self.kept.pop(name, None)

    def finish(self, unreadable: Mapping[str, str] | None = None) -> str:
        """Put the file together, sorted by name, and move it to `path`. Returns its content digest.

        unreadable: image -> reason, for images that were left out; readers repeat the reason.
        """
        self._check_open()
        missing = dict(sorted((unreadable or {}).items()))
        digest = digest_json(
            {
                "method": self.header.method,
                "fingerprint": self.header.fingerprint,
                "unreadable": sorted(missing),
                "images": {name: (image.digest, image.image_digest) for name, image in self._images.items()},
            }
        )
        whole = self._work / _WHOLE
        entries = self._entries(sorted(self._images))
        _write_file(whole, self.header, entries, unreadable=json.dumps(missing), complete=digest)
        _fsync(whole)
        os.replace(whole, self.path)
        with contextlib.suppress(OSError):  # some network file systems refuse to sync a folder
            _fsync(self.path.parent)
        self._is_finished, self._is_open = True, False
        for part in self._work.glob(_PARTS):
            part.unlink()
        return digest

    def _check_open(self) -> None:
        if not self._is_open:
            raise DataError(f"{self.path}: the writer is closed; use it inside 'with', before finish()")

    def _seal(self) -> None:
        """Write the open part and make it permanent."""
        if self._open_part:
            part = self._work / _PARTS.replace("*", f"{self._next_part:06d}")
            with atomic_path(part) as temporary:
                _write_file(temporary, self.header, self._entries(self._open_part))
            for name in self._open_part:
                self._images[name] = replace(self._images[name], file=part)
            self._open_part, self._open_bytes, self._next_part = {}, 0, self._next_part + 1
        self._last_seal = time.monotonic()

    def _entries(self, names: Iterable[str]) -> Iterator[tuple[str, _Stored, _Arrays]]:
        """Images as they are written. Neighbours that share a part, as most do, open it once."""
        images = ((name, self._images[name]) for name in names)
        for path, run in itertools.groupby(images, key=lambda image: image[1].file):
            with contextlib.nullcontext() if path is None else h5py.File(path, "r") as file:
                for name, image in run:
                    yield name, image, self._open_part[name] if file is None else _read_arrays(file[name])

    def _resume(self) -> None:
        """Take over what earlier runs left: first the finished file, then the parts, later ones win."""
        for leftover in (*self._work.glob(".tmp-*"), self._work / _WHOLE):
            leftover.unlink(missing_ok=True)
        parts = sorted(self._work.glob(_PARTS))
        if parts:
            self._next_part = int(parts[-1].stem.rpartition("-")[2]) + 1
        for path in (self.path, *parts):
            try:
                is_ours = not path.is_file() or self._take_over(path)
            except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py's ways to say "damaged"
                logger.warning("%s: damaged (%s); its images are extracted again", path, error)
                is_ours = False
            if not is_ours and path != self.path:
                path.unlink()
        self.kept = {name: image.image_digest for name, image in self._images.items()}
        if self.kept:
            logger.info("%s: resuming with %d finished images", self.path, len(self.kept))

    def _take_over(self, path: Path) -> bool:
        """Note every intact image of a file; False if the file has another header."""
        found: dict[str, _Stored] = {}
        with h5py.File(path, "r") as file:
            if file.attrs.get("layout") != LAYOUT or file.attrs.get("fingerprint") != self.header.fingerprint:
                logger.info("%s: of other settings, not used", path)
                return False
            for name in _image_names(file):
                digest = _intact_digest(file[name])
                if digest is None:
                    logger.warning("%s: image '%s' is damaged and extracted again", path, name)
                else:
                    found[name] = _Stored(path, digest, str(file[name].attrs["image_digest"]))
        self._images.update(found)
        return True


def _packed(features: Features) -> _Arrays:
    """Copies as they are stored. A view of a dense map would keep the whole map in memory until it is sealed."""
    return {
        "keypoints": features.keypoints.copy(),
        "scores": features.scores.copy(),
        "descriptors": features.descriptors.T.copy(),
        "image_size": np.array(features.image_size, dtype=np.int64),
    }


def _read_arrays(group: h5py.Group) -> _Arrays:
    return {key: group[key][()] for key in _ARRAYS}


def _write_file(
    path: Path, header: StoreHeader, images: Iterable[tuple[str, _Stored, _Arrays]], **attributes: str
) -> None:
    """Write a whole file in the order of `images`; equal arguments give equal bytes."""
    with h5py.File(path, "w", libver=_LIBVER) as file:
        file.attrs["layout"] = LAYOUT
        file.attrs["method"] = header.method
        file.attrs["fingerprint"] = header.fingerprint
        file.attrs["settings"] = json.dumps(dict(header.settings), sort_keys=True)
        for name, image, arrays in images:
            group = _make_group(file, name)
            for key in _ARRAYS:
                group.create_dataset(key, data=arrays[key])
            group.attrs["image_digest"] = image.image_digest
            group.attrs[_COMPLETE] = image.digest
        for key, value in attributes.items():
            file.attrs[key] = value


def _make_group(file: h5py.File, name: str) -> h5py.Group:
    """As h5py's `require_group`, which however stores the time at which a group was made."""
    group: h5py.Group = file
    for part in PurePosixPath(name).parts:
        if part not in group:
            properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
            properties.set_obj_track_times(False)
            h5py.h5g.create(group.id, part.encode(), gcpl=properties)
        group = group[part]
    return group


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _intact_digest(group: h5py.Group) -> str | None:
    """The digest that an image states, if its arrays are all there and have it; else None."""
    stated = group.attrs.get(_COMPLETE)
    if stated is None:
        return None
    try:
        features = _read_group(group, Path(group.file.filename), group.name)
    except DataError:
        return None
    return str(stated) if features_digest(features) == stated else None


def _checked_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or PurePosixPath(name).as_posix() != name:
        raise DataError(
            f"image name {name!r}: expected a plain path below the image folder, such as 'a/b.jpg'"
        )
    return name


# ---------------------------------------------------------------- reading
class FeatureReader:
    """Reads a features file lazily, ours or hloc's; a context manager.

    Files of other programs need `keypoints` and `descriptors` per image and `image_size`; absent scores
    become 1, half precision becomes float32, descriptors are scaled to unit length.
    Raises DataError for a file that is absent, unreadable, or not finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: not found; extract the features first")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(
                f"{path}: not a readable HDF5 file ({error}); delete it and extract again"
            ) from error
        try:
            self.header = self._read_header()
            self.names: tuple[str, ...] = tuple(_image_names(self._file))
            self.unreadable: dict[str, str] = json.loads(self._file.attrs.get("unreadable", "{}"))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> FeatureReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._file and "keypoints" in self._file[name]

    @property
    def digest(self) -> str:
        """Digest of the content (of the bytes, for files of other programs)."""
        return str(self._file.attrs[_COMPLETE]) if self.header is not None else digest_file(self.path)

    def image_digest(self, name: str) -> str:
        """Digest of the image file that the features were taken from; empty if unknown."""
        return str(self._file[name].attrs.get("image_digest", ""))

    def read(self, name: str) -> Features:
        """Features of one image. Raises DataError if there are none or they are inconsistent."""
        if name in self.unreadable:
            raise DataError(
                f"{self.path}: image '{name}' could not be read at extraction: {self.unreadable[name]}"
            )
        if name not in self:
            known = ", ".join(self.names[:3]) + (", ..." if len(self) > 3 else "")
            raise DataError(
                f"{self.path}: no features of image '{name}' (it has {len(self)} images: {known}); extract "
                f"again, with names relative to the same folder"
            )
        features = _read_group(self._file[name], self.path, name)
        return features if self.header is not None else _with_unit_descriptors(features)

    def _read_header(self) -> StoreHeader | None:
        attributes = self._file.attrs
        layout = attributes.get("layout")
        if layout is None:
            return None
        if layout != LAYOUT:
            raise DataError(
                f"{self.path}: expected layout {LAYOUT}, got {layout}; extract again with this version"
            )
        if _COMPLETE not in attributes:
            raise DataError(
                f"{self.path}: not finished; run the extraction again, it goes on where it stopped"
            )
        return StoreHeader(
            method=str(attributes["method"]),
            fingerprint=str(attributes["fingerprint"]),
            settings=json.loads(attributes["settings"]),
        )


def _image_names(file: h5py.File) -> list[str]:
    """Names of all groups that hold keypoints or were meant to, sorted."""
    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and ("keypoints" in item or "image_digest" in item.attrs):
            names.append(name)

    file.visititems(visit)
    return sorted(names)


def _read_group(group: h5py.Group, path: Path, name: str) -> Features:
    try:
        keypoints = np.asarray(group["keypoints"][()], dtype=np.float32)
        descriptors = np.asarray(group["descriptors"][()], dtype=np.float32)
        ones = np.ones(len(keypoints), dtype=np.float32)
        scores = np.asarray(group["scores"][()], dtype=np.float32) if "scores" in group else ones
        width, height = (int(side) for side in group["image_size"][()])
        return Features(
            keypoints=keypoints,
            scores=scores,
            descriptors=np.ascontiguousarray(descriptors.T),
            image_size=(width, height),
        )
    except (KeyError, ValueError, TypeError, OSError, ShapeError) as error:
        raise DataError(f"{path}: image '{name}': {error}; delete the file and extract again") from error


def _with_unit_descriptors(features: Features) -> Features:
    length = np.linalg.norm(features.descriptors, axis=1, keepdims=True)
    unit = (features.descriptors / np.maximum(length, 1e-12)).astype(np.float32)
    return replace(features, descriptors=unit)
