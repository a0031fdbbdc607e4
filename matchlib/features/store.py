"""Features on disk: one HDF5 file per method and image set, in the layout that hloc reads and writes.

One group per image, named by its path below the image folder ('/' nests), with `keypoints` (N, 2) float32,
`scores` (N,) float32, `descriptors` (D, N) float32 and `image_size` (2,) int64 as (width, height). Keypoints
keep matchlib's convention, which is hloc's: the centre of the first pixel is (0, 0).

Beyond hloc's layout:
- file attributes `layout`, `method`, `fingerprint`, `settings` (JSON), `unreadable` (JSON: image -> reason),
  and, written last, `complete`: a digest of all of it, by which evaluations cite the file;
- group attributes `image_digest` (of the image file) and, written last, `complete`: a digest of the arrays.
An unfinished file lives in `<name>.work/` and is renamed when finished. A resumed run keeps exactly those
images whose arrays still have the digest that `complete` states. HDF5 itself is not crash-safe: a kill in the
middle of a flush can damage the unfinished file, which is then started again with a warning (work is lost,
never a wrong result).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from matchlib.completion import Lease, atomic_path, digest_file, digest_json
from matchlib.errors import DataError, ShapeError
from matchlib.features.types import Features

logger = logging.getLogger(__name__)

LAYOUT = "matchlib-features-1"
_COMPLETE = "complete"
# Version 1.8 object headers carry checksums, so damage is noticed; from 1.10 on a killed writer would also
# leave the file locked ("already open for write") and unusable for the run that resumes it.
_LIBVER = ("v108", "latest")


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
class FeatureWriter:
    """Writes one features file; a context manager. Nothing appears at `path` before `finish`.

    Entering takes the lease of `<path>.work/` (DataError if another process is writing) and opens what a
    killed run of the same header left there; `kept` maps each image that survived to the digest of its image
    file. State of another header, or damaged beyond reading, is discarded. Not thread-safe: one thread
    writes.
    """

    def __init__(self, path: Path, header: StoreHeader) -> None:
        self.path = path
        self.header = header
        self.kept: dict[str, str] = {}
        self._work = path.with_name(path.name + ".work")
        self._lease = Lease(self._work)
        self._file: h5py.File | None = None
        self._digests: dict[str, tuple[str, str]] = {}
        self._is_finished = False

    def __enter__(self) -> FeatureWriter:
        self._lease.__enter__()
        try:
            self._file = self._resume() or self._start()
        except BaseException:
            self._lease.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lease.__exit__(kind, error, trace)
        if self._is_finished:
            shutil.rmtree(self._work, ignore_errors=True)

    def add(self, name: str, features: Features, *, image_digest: str = "") -> None:
        """Store the features of one image under its path below the image folder.

        Replaces an earlier version.
        """
        file = self._open_file()
        if name in file:
            del file[name]
        group = file.create_group(_checked_name(name))
        group.create_dataset("keypoints", data=features.keypoints)
        group.create_dataset("scores", data=features.scores)
        group.create_dataset("descriptors", data=np.ascontiguousarray(features.descriptors.T))
        group.create_dataset("image_size", data=np.array(features.image_size, dtype=np.int64))
        group.attrs["image_digest"] = image_digest
        file.flush()  # the arrays are with the operating system before the image is declared complete
        digest = features_digest(features)
        group.attrs[_COMPLETE] = digest
        file.flush()
        self._digests[name] = (digest, image_digest)

    def drop(self, name: str) -> None:
        """Forget an image that an earlier run stored (its file changed, or it left the image set)."""
        del self._open_file()[name]
        del self._digests[name]
        self.kept.pop(name, None)

    def finish(self, unreadable: Mapping[str, str] | None = None) -> str:
        """Declare the file finished and move it to `path`. Returns its content digest.

        unreadable: image -> reason, for images that were left out; readers repeat the reason.
        """
        file = self._open_file()
        missing = dict(sorted((unreadable or {}).items()))
        digest = digest_json(
            {
                "method": self.header.method,
                "fingerprint": self.header.fingerprint,
                "unreadable": sorted(missing),
            }
            | {"images": self._digests}
        )
        file.attrs["unreadable"] = json.dumps(missing)
        file.attrs[_COMPLETE] = digest
        file.close()
        self._file = None
        _fsync(self._partial)
        os.replace(
            self._partial, self.path
        )  # one step: a kill before it leaves a file to resume, after it a result
        self._is_finished = True
        return digest

    @property
    def _partial(self) -> Path:
        return self._work / "features.h5"

    def _open_file(self) -> h5py.File:
        if self._file is None:
            raise DataError(f"{self.path}: the writer is closed; use it inside 'with', before finish()")
        return self._file

    def _start(self) -> h5py.File:
        self._partial.unlink(missing_ok=True)
        file = h5py.File(self._partial, "w", libver=_LIBVER)
        file.attrs["layout"] = LAYOUT
        file.attrs["method"] = self.header.method
        file.attrs["fingerprint"] = self.header.fingerprint
        file.attrs["settings"] = json.dumps(dict(self.header.settings), sort_keys=True)
        file.flush()
        return file

    def _resume(self) -> h5py.File | None:
        """The file of an earlier run, killed or finished, cleaned of all that is not intact, or None."""
        if not self._partial.exists():
            if not self.path.is_file():
                return None
            with atomic_path(self._partial) as temporary:
                shutil.copyfile(self.path, temporary)
        file = None
        try:
            file = h5py.File(self._partial, "r+", libver=_LIBVER)
            if file.attrs.get("fingerprint") != self.header.fingerprint:
                logger.info("%s: settings changed, starting again", self.path)
                file.close()
                return None
            file.attrs.pop(_COMPLETE, None)
            self._keep_intact_images(file)
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py's ways to say "damaged"
            logger.warning("%s: unfinished file is damaged (%s), starting again", self.path, error)
            self.kept, self._digests = {}, {}
            with contextlib.suppress(OSError, RuntimeError):
                if file is not None:
                    file.close()
            return None
        logger.info("%s: resuming with %d finished images", self.path, len(self.kept))
        return file

    def _keep_intact_images(self, file: h5py.File) -> None:
        for name in _image_names(file):
            digest = _intact_digest(file[name])
            if digest is None:
                del file[name]
                continue
            image_digest = str(file[name].attrs["image_digest"])
            self.kept[name] = image_digest
            self._digests[name] = (digest, image_digest)


def _fsync(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


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
