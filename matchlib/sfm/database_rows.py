"""Cameras, images, keypoints and matches as rows of an open COLMAP database; each is written once and checked before.

COLMAP trusts its database: an index beyond the keypoints is a segmentation fault, keypoints of a resized image are a
reconstruction without points. Both are refused here, by name.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.errors import DataError
from matchlib.features.types import Features
from matchlib.matching.types import Matches
from matchlib.sfm.colmap import to_colmap_camera

logger = logging.getLogger(__name__)

_BATCH = 500  # rows per transaction: fewer cost a sync each, more keep the write-ahead log large
_SIZE_TOLERANCE = 0.02  # lists and files differ by a pixel here and there; resized images by much more
_T = TypeVar("_T")


class FeatureSource(Protocol):
    """What is asked of `matchlib.features.store.FeatureReader`."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> Features:
        """Features of one image; keypoints in pixels of the original image, first centre at (0, 0)."""
        ...


class MatchSource(Protocol):
    """What is asked of `matchlib.matching.store.MatchReader`."""

    def items(self) -> Iterator[tuple[str, str, Matches]]:
        """(name0, name1, matches) of every pair, one after the other."""
        ...


@dataclass(slots=True)
class Rows:
    """What a database holds, as far as the next rows must agree with it.

    image_ids:  by name
    camera_ids: by image name
    keypoints:  number by image name, for images that have been given theirs
    """

    image_ids: dict[str, int] = field(default_factory=dict)
    camera_ids: dict[str, int] = field(default_factory=dict)
    keypoints: dict[str, int] = field(default_factory=dict)


def read_rows(database: Any) -> Rows:
    """Ids of the images and cameras of a database."""
    images = database.read_all_images()
    return Rows(
        image_ids={image.name: int(image.image_id) for image in images},
        camera_ids={image.name: int(image.camera_id) for image in images},
    )


def write_images(
    database: Any, images: Mapping[str, ColmapCamera], rows: Rows, *, shared_camera: bool
) -> None:
    """Add images and their cameras, one camera per image or one for all, sorted by name.

    Raises DataError if one camera shall be shared by images of different intrinsics.
    """
    import pycolmap

    if shared_camera and len(set(images.values())) > 1:
        (name0, camera0), (name1, camera1) = _first_two_different(images)
        raise DataError(
            f"shared camera: '{name0}' has {_text(camera0)}, '{name1}' has {_text(camera1)}; give all images the same "
            f"intrinsics, or each its own camera"
        )
    camera_id = None

    def write(name: str) -> None:
        nonlocal camera_id
        if camera_id is None or not shared_camera:
            camera_id = int(database.write_camera(to_colmap_camera(images[name])))
        rows.camera_ids[name] = camera_id
        rows.image_ids[name] = int(database.write_image(pycolmap.Image(name=name, camera_id=camera_id)))

    _in_batches(database, sorted(images), write)


def update_cameras(database: Any, images: Mapping[str, ColmapCamera], rows: Rows) -> int:
    """Give images of a shipped database the intrinsics of `images`; returns the number of changed cameras.

    Whether the focal length counts as known stays as shipped: the published protocol depends on it. Raises DataError if
    images that share a camera are given different intrinsics.
    """
    wanted: dict[int, str] = {}
    for name in images:
        first = wanted.setdefault(rows.camera_ids[name], name)
        if images[first] != images[name]:
            raise DataError(
                f"camera {rows.camera_ids[name]}: '{first}' and '{name}' share it in the database, but are given "
                f"{_text(images[first])} and {_text(images[name])}; correct the list of intrinsics"
            )
    changed = 0

    def write(item: tuple[int, str]) -> None:
        nonlocal changed
        old, camera = database.read_camera(item[0]), images[item[1]]
        new = to_colmap_camera(camera, item[0])
        new.has_prior_focal_length = old.has_prior_focal_length
        if old != new:
            database.update_camera(new)
            changed += 1

    _in_batches(database, sorted(wanted.items()), write)
    return changed


def write_keypoints(database: Any, features: FeatureSource, rows: Rows, *, pixel_offset: float) -> None:
    """Keypoints of every image, none for images without features, one image in memory at a time.

    Raises DataError for coordinates that do not fit the size of the camera, or are not finite.
    """
    sizes = {int(camera.camera_id): (camera.width, camera.height) for camera in database.read_all_cameras()}

    def write(name: str) -> None:
        keypoints = np.zeros((0, 2), np.float32)
        if name in features:
            image = features.read(name)
            _check_coordinates(name, image, sizes[rows.camera_ids[name]])
            keypoints = image.keypoints + np.float32(pixel_offset)
        database.write_keypoints(rows.image_ids[name], keypoints)
        rows.keypoints[name] = len(keypoints)

    _in_batches(database, sorted(rows.image_ids), write)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchCounts:
    """pairs: written; empty: of them without a match; matches: in all; repeated: pairs that came again, in either
    order, and pairs of an image with itself, all left out.
    """

    pairs: int
    empty: int
    matches: int
    repeated: int


def write_matches(database: Any, matches: MatchSource, rows: Rows) -> MatchCounts:
    """Matches of every pair, streamed; of a pair that comes twice the first counts.

    Raises DataError for images that the database lacks and for indices beyond the keypoints.
    """
    seen: set[tuple[str, str]] = set()
    sizes: list[int] = []
    repeated = 0

    def write(item: tuple[str, str, Matches]) -> None:
        nonlocal repeated
        name0, name1, found = item
        key = (min(name0, name1), max(name0, name1))
        if name0 == name1 or key in seen:
            repeated += 1
            return
        seen.add(key)
        _check_indices(name0, name1, found, rows)
        # COLMAP swaps the columns itself where the first id is the larger one.
        index = found.index.astype(np.uint32)
        database.write_matches(rows.image_ids[name0], rows.image_ids[name1], index)
        sizes.append(len(found))

    _in_batches(database, matches.items(), write)
    return MatchCounts(pairs=len(sizes), empty=sizes.count(0), matches=sum(sizes), repeated=repeated)


def _check_coordinates(name: str, image: Features, camera_size: tuple[int, int]) -> None:
    if not np.isfinite(image.keypoints).all():
        raise DataError(f"{name}: expected finite keypoints; extract the features again")
    width, height = camera_size
    expected = np.array(camera_size)
    off = np.abs(np.array(image.image_size) - expected) > _SIZE_TOLERANCE * expected
    if off.any():
        raise DataError(
            f"{name}: features are of an image of {image.image_size[0]} x {image.image_size[1]} px, its camera is of "
            f"{width} x {height} px; give keypoints in pixels of the original image, or correct the intrinsics"
        )
    margin = _SIZE_TOLERANCE * expected
    is_outside = ((image.keypoints < -margin) | (image.keypoints > expected + margin)).any(axis=1)
    if is_outside.any():
        x, y = image.keypoints[is_outside][0]
        raise DataError(
            f"{name}: a keypoint at ({x:.1f}, {y:.1f}), outside of its {width} x {height} px; give keypoints in pixels "
            f"of the original image"
        )


def _check_indices(name0: str, name1: str, found: Matches, rows: Rows) -> None:
    for side, name in enumerate((name0, name1)):
        if name not in rows.image_ids:
            raise DataError(
                f"matches of {name0} and {name1}: the database has no image '{name}'; match images of its list"
            )
        index: npt.NDArray[np.int64] = found.index[:, side]
        if len(index) and not (0 <= index.min() and index.max() < rows.keypoints[name]):
            raise DataError(
                f"matches of {name0} and {name1}: expected indices of 0 to {rows.keypoints[name] - 1} into '{name}', "
                f"got {index.min()} to {index.max()}; matches and features are of different runs, match again"
            )


def _first_two_different(
    images: Mapping[str, ColmapCamera],
) -> tuple[tuple[str, ColmapCamera], tuple[str, ColmapCamera]]:
    first, *others = sorted(images.items())
    return first, next(item for item in others if item[1] != first[1])


def _text(camera: ColmapCamera) -> str:
    return (
        f"{camera.model} {camera.width} {camera.height} {' '.join(f'{value:g}' for value in camera.params)}"
    )


def _in_batches(database: Any, items: Iterable[_T], write: Callable[[_T], None]) -> None:
    import pycolmap

    stream = iter(items)
    while batch := list(itertools.islice(stream, 1)):
        with pycolmap.DatabaseTransaction(database):
            for item in itertools.chain(batch, itertools.islice(stream, _BATCH - 1)):
                write(item)
