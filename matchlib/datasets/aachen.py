"""Aachen Day-Night v1 and v1.1, as published, as PoSFeat re-arranges it, or as the demo world writes it.

Reference images have intrinsics and a pose, queries have intrinsics. Names are paths below the folder of images, e.g.
`db/1.jpg`, `query/night/nexus5x/IMG_20161227_160713.jpg`. Poses of the queries are not published; where somebody knows
them, they lie in `query_poses.txt`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.colmap_camera import ColmapCamera, read_intrinsics_list, require_cameras
from matchlib.datasets.nvm import quaternion_from_rotation, read_nvm, rotation_from_quaternion
from matchlib.datasets.parsing import filled_lines, format_row, numbers
from matchlib.datasets.types import DatasetFormat
from matchlib.errors import ConfigError, DataError, check_shape

Float64 = npt.NDArray[np.float64]
Version = Literal["v1", "v1_1"]

SPECS = (
    DatasetFormat(
        name="aachen", gives=frozenset(), list_scenes="matchlib.datasets.aachen:list_conditions_v1"
    ),
    DatasetFormat(
        name="aachen_v1_1", gives=frozenset(), list_scenes="matchlib.datasets.aachen:list_conditions_v1_1"
    ),
)
HELD_OUT = "held_out"
QUERY_FOLDER = "query/"
QUERY_POSES = "query_poses.txt"
_CONDITIONS = ("day", "night")
_IMAGE_FOLDERS = ("images/images_upright", "images_upright", "images", ".")
_FOLDERS = (".", "others", "3D-models", "3D-models/aachen_v_1", "3D-models/aachen_v_1_1", "queries")
_NOT_SEARCHED = {"images", "images_upright", "db", "query", "sequences", "intermedia", "results"}
_SHOWN = 5
_NOT_UNIT = 1e-3  # quaternions in text files are rounded

# What is looked for, by its names in order of preference: v1.1 may lie on top of v1 in one folder.
_FILES: Mapping[Version, Mapping[str, tuple[str, ...]]] = {
    "v1": {
        "poses": ("aachen_cvpr2018_db.nvm",),
        "intrinsics": ("database_intrinsics.txt",),
        "night": ("night_time_queries_with_intrinsics.txt",),
        "day": ("day_time_queries_with_intrinsics.txt",),
        "pairs": ("image_pairs_to_match.txt",),
        "skeleton": ("database.db",),
        "truth": (QUERY_POSES,),
    },
    "v1_1": {
        "poses": ("aachen_v_1_1.nvm",),
        "intrinsics": ("database_intrinsics_v1_1.txt",),
        "night": ("night_time_queries_with_intrinsics_v1_1.txt", "night_time_queries_with_intrinsics.txt"),
        "day": ("day_time_queries_with_intrinsics_v1_1.txt", "day_time_queries_with_intrinsics.txt"),
        "pairs": ("image_pairs_to_match_v1_1.txt",),
        "skeleton": ("database_v1_1.db",),
        "truth": (QUERY_POSES,),
    },
}
_REQUIRED = ("poses", "intrinsics", "night")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceImage:
    """An image of known pose.

    camera:         intrinsics in COLMAP's pixels
    T_world_to_cam: (4, 4) float64, scene units (Aachen: metres)
    """

    camera: ColmapCamera
    T_world_to_cam: Float64

    def __post_init__(self) -> None:
        check_shape("T_world_to_cam", self.T_world_to_cam, "4 4")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AachenDataset:
    """A visual localisation task: images of known pose, and queries whose pose is asked for.

    name:      in tables and file names
    images:    folder that all names are relative to
    reference: images of known pose by name
    queries:   condition ("day", "night", "held_out") -> intrinsics by name
    pairs:     list of pairs to match, or None
    skeleton:  COLMAP database of images and cameras whose ids are to be kept, or None
    tracks:    what says which reference images see a common point: a COLMAP model's folder or an NVM file, or None
    truth:     `T_world_to_cam` (4, 4) of queries by name, as far as known
    ignored:   images that pair lists name but that this task leaves out: the queries, where others are held out
    """

    name: str
    images: Path
    reference: Mapping[str, ReferenceImage]
    queries: Mapping[str, Mapping[str, ColmapCamera]]
    pairs: Path | None = None
    skeleton: Path | None = None
    tracks: Path | None = None
    truth: Mapping[str, Float64] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        names = [name for cameras in self.queries.values() for name in cameras]
        if twice := _shown(name for name in set(names) if names.count(name) > 1 or name in self.reference):
            raise DataError(f"{self.name}: images that are more than one of reference and query: {twice}")
        if not self.reference:
            raise DataError(f"{self.name}: expected reference images with poses, got none")

    def path_of(self, name: str) -> Path:
        """Where an image lies."""
        return self.images / name

    def known(self) -> dict[str, tuple[ColmapCamera, Float64]]:
        """Intrinsics and pose of every reference image."""
        return {name: (image.camera, image.T_world_to_cam) for name, image in self.reference.items()}

    def query_cameras(self, conditions: Collection[str] | None = None) -> dict[str, ColmapCamera]:
        """Intrinsics of the queries of these conditions (None: of all). Raises ConfigError for an unknown one."""
        wanted = list(self.queries) if conditions is None else list(conditions)
        if unknown := [condition for condition in wanted if condition not in self.queries]:
            raise ConfigError(
                f"conditions: '{unknown[0]}' is none of {self.name} (known: {', '.join(self.queries) or 'none'})"
            )
        return {name: camera for condition in wanted for name, camera in self.queries[condition].items()}

    def cameras(self) -> dict[str, ColmapCamera]:
        """Intrinsics of all reference images and queries."""
        return {name: image.camera for name, image in self.reference.items()} | self.query_cameras()


def read_aachen(root: Path, version: Version = "v1") -> AachenDataset:
    """Read Aachen Day-Night, or the demo world's like, from wherever its files lie below `root`.

    Needed: images, NVM file, intrinsics of the reference images, night queries. Used where present: day queries, pair
    list, database, binary model (v1.1), true query poses. Raises DataError that lists all that is missing, for a file
    that lies in several places, and for faults of the files.
    """
    if version not in _FILES:
        raise ConfigError(f"version: expected one of {', '.join(_FILES)}, got '{version}'")
    found = _find_files(root, version)
    images = next((root / folder for folder in _IMAGE_FOLDERS if (root / folder / "db").is_dir()), None)
    missing = [" or ".join(_FILES[version][key]) for key in _REQUIRED if found[key] is None]
    if images is None:
        missing.append(f"a folder of images with db/ ({', '.join(_IMAGE_FOLDERS[:3])})")
    poses, intrinsics = found["poses"], found["intrinsics"]
    if missing or images is None or poses is None or intrinsics is None:
        raise DataError(
            f"{root}: not Aachen {version}: missing {'; '.join(missing)}; unpack the archives there"
        )
    truth = found["truth"]
    model = poses.parent
    return AachenDataset(
        name="aachen" if version == "v1" else "aachen_v1_1",
        images=images,
        reference=_reference(poses, intrinsics),
        queries={key: read_intrinsics_list(path) for key in _CONDITIONS if (path := found[key]) is not None},
        pairs=found["pairs"],
        skeleton=found["skeleton"],
        tracks=model if (model / "points3D.bin").is_file() else poses,
        truth={} if truth is None else read_pose_list(truth),
    )


def list_conditions_v1(root: Path, split: str) -> tuple[str, ...]:
    """Conditions of the queries of v1; reading all lists on the way checks what was unpacked. Raises DataError."""
    return tuple(read_aachen(root, "v1").queries)


def list_conditions_v1_1(root: Path, split: str) -> tuple[str, ...]:
    """Conditions of the queries of v1.1; see `list_conditions_v1`."""
    return tuple(read_aachen(root, "v1_1").queries)


def hold_out(dataset: AachenDataset, every: int, *, among: Collection[str] | None = None) -> AachenDataset:
    """The same task with every `every`-th reference image (by name) as a query of known pose, and no other query.

    among: only these may become queries, e.g. those that the pair list matches. The true poses of Aachen's queries are
    kept by its authors; this is what can be scored without them. Poses of the reference images come from the same
    reconstruction, so such figures are better than those of real queries. Raises DataError if no image is left over.
    """
    names = sorted(name for name in dataset.reference if among is None or name in among)
    held = names[every // 2 :: every]
    if not held or len(held) == len(dataset.reference):
        raise DataError(
            f"{dataset.name}: holding out every {every}th of {len(names)} images leaves {len(held)} queries and "
            f"{len(dataset.reference) - len(held)} reference images; choose another number"
        )
    chosen = set(held)
    return replace(
        dataset,
        reference={name: image for name, image in dataset.reference.items() if name not in chosen},
        queries={HELD_OUT: {name: dataset.reference[name].camera for name in held}},
        truth={name: dataset.reference[name].T_world_to_cam for name in held},
        ignored=dataset.ignored | set(dataset.query_cameras()),
    )


# ---------------------------------------------------------------- lists of poses
def read_pose_list(path: Path) -> dict[str, Float64]:
    """`T_world_to_cam` (4, 4) by name from lines `name qw qx qy qz tx ty tz`, the format of submissions.

    Raises DataError naming file and line.
    """
    poses: dict[str, Float64] = {}
    for line, text in filled_lines(path):
        name, _, rest = text.partition(" ")
        values = np.array(numbers(path, line, rest, 7))
        if not np.isfinite(values).all() or abs(np.linalg.norm(values[:4]) - 1) > _NOT_UNIT:
            raise DataError(
                f"{path}:{line}: expected a unit quaternion (w x y z) and a translation, got '{rest}'"
            )
        if name in poses:
            raise DataError(f"{path}:{line}: image '{name}' was given before; leave one line of it")
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = rotation_from_quaternion(values[:4]), values[4:]
        poses[name] = T
    return poses


def write_pose_list(path: Path, poses: Mapping[str, Float64]) -> None:
    """Write what `read_pose_list` reads, atomically, one line per image in the given order."""
    rows = (
        f"{name} {format_row([*quaternion_from_rotation(T[:3, :3]).tolist(), *T[:3, 3].tolist()])}\n"
        for name, T in poses.items()
    )
    atomic_write(path, "".join(rows))


# ---------------------------------------------------------------- skeleton
def skeleton_images(path: Path) -> dict[str, int]:
    """Ids of the images of a shipped COLMAP database by name, in ascending order of id. Never touches the file.

    Raises DataError for a file that is absent or no COLMAP database.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; expected a COLMAP database")
    try:
        # `immutable`: shipped databases are in write-ahead mode, where even a reader writes beside the file.
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)
        with closing(connection):
            rows = connection.execute("select name, image_id from images order by image_id").fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path}: not a COLMAP database ({error}); fetch it again") from error
    return {str(name): int(number) for name, number in rows}


# ---------------------------------------------------------------- parts
def _reference(poses: Path, intrinsics: Path) -> dict[str, ReferenceImage]:
    placed = read_nvm(poses)
    cameras = require_cameras(placed, read_intrinsics_list(intrinsics), source=intrinsics)
    return {name: ReferenceImage(camera=cameras[name], T_world_to_cam=T) for name, T in placed.items()}


def _find_files(root: Path, version: Version) -> dict[str, Path | None]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the root of Aachen {version}")
    wanted = {name for names in _FILES[version].values() for name in names}
    places: dict[str, list[Path]] = {name: [] for name in wanted}
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(set(inner) - _NOT_SEARCHED)
        for name in wanted & set(files):
            places[name].append(Path(folder) / name)
    return {
        key: next((path for name in names if (path := _choose(root, places[name]))), None)
        for key, names in _FILES[version].items()
    }


def _choose(root: Path, places: list[Path]) -> Path | None:
    """The one place, or the first of the published places. Raises DataError if neither says which is meant."""
    if len(places) <= 1:
        return places[0] if places else None
    for folder in _FOLDERS:
        if (path := root / folder / places[0].name) in places:
            return path
    raise DataError(f"{root}: {places[0].name} lies in several places: {_shown(map(str, places))}; leave one")


def _shown(names: Iterable[str]) -> str:
    """The first few names, for messages."""
    listed = sorted(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
