"""A place by day and by night in the layout of Aachen Day-Night, v1 and v1.1 in one folder.

Unlike upstream's, the poses of the queries are known and lie beside the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.aachen import QUERY_POSES, write_pose_list
from matchlib.datasets.colmap_camera import ColmapCamera, write_intrinsics_list
from matchlib.datasets.images import write_image
from matchlib.datasets.nvm import NvmPoint, write_nvm
from matchlib.mirror.aachen_views import View, aachen_views, colmap_camera, surface_points, take_picture
from matchlib.mirror.archives import files_below
from matchlib.mirror.config import AachenMirrorConfig
from matchlib.mirror.scene import MirrorScene
from matchlib.mirror.visibility import covisible_shares
from matchlib.randomness import generator_for

Float64 = npt.NDArray[np.float64]

IMAGES = Path("images/images_upright")
V1_1 = Path("3D-models/aachen_v_1_1")
QUERY_PAIRS, QUERY_PAIRS_V1_1 = "pairs-query-covisible.txt", "pairs-query-covisible_v1_1.txt"
IMAGES_ZIP, V1_1_ZIP = "database_and_query_images.zip", "aachen_v1_1.zip"
# What upstream offers as single files, below the dataset's root.
_LOOSE = (
    "3D-models/aachen_cvpr2018_db.nvm",
    "3D-models/database_intrinsics.txt",
    "database.db",
    "database_v1_1.db",
    "image_pairs_to_match.txt",
    "image_pairs_to_match_v1_1.txt",
    "queries/day_time_queries_with_intrinsics.txt",
    "queries/night_time_queries_with_intrinsics.txt",
    f"queries/{QUERY_PAIRS}",
    f"queries/{QUERY_POSES}",
)
AACHEN_FILES = (IMAGES_ZIP, V1_1_ZIP, *(path.rpartition("/")[2] for path in _LOOSE))
_FIRST_QUERY_ID = 10_000  # of the published database of v1.1
_GUESSED_FOCAL = 1.2  # times the longer side: what the published database of v1 has instead of intrinsics


def write_aachen(
    root: Path, scene: MirrorScene, config: AachenMirrorConfig, *, seed: int, supersampling: int
) -> None:
    """Write images, lists, models and databases below `root`. The scene has `aachen_images(config)` cameras."""
    views = aachen_views(scene, config, seed=seed)
    for index, view in enumerate(views):
        noise = generator_for(seed, "aachen", scene.name, index, "noise")
        write_image(root / IMAGES / view.name, take_picture(scene.world, view, noise, supersampling))
    shares = covisible_shares(scene.world, [view.camera for view in views])
    points = list(surface_points(scene.world, views, config, seed))
    _write_v1(root, views, shares, points, config)
    _write_v1_1(root, views, shares, points, config)


def aachen_archives(root: Path) -> dict[str, tuple[Path, list[Path]]]:
    """What is packed under upstream's names: file name -> folder that members are named from, and files."""
    loose = [root / path for path in _LOOSE]
    others = sorted(set(files_below(root)) - set(loose))
    is_new = ("sequences/", "nexus5x_additional_night/", f"{V1_1.as_posix()}/", "_v1_1.txt")
    v1_1 = [path for path in others if any(part in path.as_posix() for part in is_new)]
    v1 = [path for path in others if path not in v1_1]
    zips = {IMAGES_ZIP: (root / "images", v1), V1_1_ZIP: (root, v1_1)}
    return zips | {path.name: (path.parent, [path]) for path in loose}


# ---------------------------------------------------------------- lists
def _write_v1(
    root: Path,
    views: Sequence[View],
    shares: Float64,
    points: Sequence[tuple[Float64, dict[str, Float64]]],
    config: AachenMirrorConfig,
) -> None:
    reference = [view for view in views if view.role == "db"]
    queries = [view for view in views if view.role in ("day", "night")]
    models, lists = root / "3D-models", root / "queries"
    _write_nvm(models / "aachen_cvpr2018_db.nvm", reference, points)
    write_intrinsics_list(models / "database_intrinsics.txt", _intrinsics(reference))
    for role in ("day", "night"):
        asked = [view for view in queries if view.role == role]
        write_intrinsics_list(lists / f"{role}_time_queries_with_intrinsics.txt", _intrinsics(asked))
    every_query = [view for view in views if view.name.startswith("query/")]
    write_pose_list(lists / QUERY_POSES, {view.name: view.camera.T_world_to_cam for view in every_query})
    night = [view for view in queries if view.role == "night"]
    mapping = _mapping_pairs(views, shares, reference, config)
    _write_pairs(
        root / "image_pairs_to_match.txt", mapping + _query_pairs(views, shares, night, reference, config)
    )
    _write_pairs(lists / QUERY_PAIRS, _query_pairs(views, shares, queries, reference, config))
    guessed = {view.name: replace(view, intrinsics=_guessed(view)) for view in reference}
    rows = [
        (guessed.get(view.name, view), number, number) for number, view in enumerate(reference + queries, 1)
    ]
    _write_database(root / "database.db", rows, has_prior=False)


def _write_v1_1(
    root: Path,
    views: Sequence[View],
    shares: Float64,
    points: Sequence[tuple[Float64, dict[str, Float64]]],
    config: AachenMirrorConfig,
) -> None:
    reference = [view for view in views if view.role in ("db", "sequence")]
    night = [view for view in views if view.role.endswith("night")]
    _write_nvm(root / V1_1 / "aachen_v_1_1.nvm", reference, points)
    _write_model(root / V1_1, reference, points)
    write_intrinsics_list(root / V1_1 / "database_intrinsics_v1_1.txt", _intrinsics(reference))
    write_intrinsics_list(
        root / "queries" / "night_time_queries_with_intrinsics_v1_1.txt", _intrinsics(night)
    )
    mapping = _mapping_pairs(views, shares, reference, config)
    queries = _query_pairs(views, shares, night, reference, config)
    asked = [view for view in views if view.name.startswith("query/")]
    _write_pairs(root / "queries" / QUERY_PAIRS_V1_1, _query_pairs(views, shares, asked, reference, config))
    # As in the published list, most mapping pairs come in both orders.
    backwards = [(second, first) for first, second in mapping]
    _write_pairs(root / "image_pairs_to_match_v1_1.txt", mapping + backwards + queries)
    shared = len(reference) + 1  # all night queries are of one telephone
    rows = [(view, number, number) for number, view in enumerate(reference, 1)]
    rows += [(view, _FIRST_QUERY_ID + number, shared) for number, view in enumerate(night)]
    _write_database(root / "database_v1_1.db", rows, has_prior=True)


def _intrinsics(views: Sequence[View]) -> dict[str, ColmapCamera]:
    return {view.name: view.intrinsics for view in views}


def _guessed(view: View) -> ColmapCamera:
    width, height = view.intrinsics.width, view.intrinsics.height
    return replace(view.intrinsics, params=(_GUESSED_FOCAL * max(width, height), width / 2, height / 2, 0.0))


def _mapping_pairs(
    views: Sequence[View], shares: Float64, reference: Sequence[View], config: AachenMirrorConfig
) -> list[tuple[str, str]]:
    """Reference images that show enough of each other."""
    row = {view.name: index for index, view in enumerate(views)}
    names = [view.name for view in reference]
    return [
        (first, second)
        for place, first in enumerate(names)
        for second in names[place + 1 :]
        if min(shares[row[first], row[second]], shares[row[second], row[first]]) >= config.min_covisible_share
    ]


def _query_pairs(
    views: Sequence[View],
    shares: Float64,
    queries: Sequence[View],
    reference: Sequence[View],
    config: AachenMirrorConfig,
) -> list[tuple[str, str]]:
    """Each query with the reference images that show most of it, best first: retrieval without a fault."""
    row = {view.name: index for index, view in enumerate(views)}
    pairs = []
    for query in queries:
        ranked = sorted(reference, key=lambda view: -shares[row[query.name], row[view.name]])
        pairs += [(query.name, view.name) for view in ranked[: config.pairs_per_query]]
    return pairs


def _write_pairs(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    atomic_write(path, "".join(f"{first} {second}\n" for first, second in pairs))


# ---------------------------------------------------------------- models and databases
def _write_nvm(
    path: Path, reference: Sequence[View], points: Sequence[tuple[Float64, dict[str, Float64]]]
) -> None:
    row = {view.name: index for index, view in enumerate(reference)}
    listed = [
        NvmPoint(position=position, images=tuple(row[name] for name in seen if name in row))
        for position, seen in points
    ]
    write_nvm(
        path,
        {view.name: view.camera.T_world_to_cam for view in reference},
        focal_px={view.name: view.intrinsics.params[0] for view in reference},
        points=[point for point in listed if len(point.images) > 1],
    )


def _write_model(
    folder: Path, reference: Sequence[View], points: Sequence[tuple[Float64, dict[str, Float64]]]
) -> None:
    """`cameras.bin`, `images.bin`, `points3D.bin`; rigs and frames came after v1.1 was published."""
    import pycolmap

    model = pycolmap.Reconstruction()
    ids = {view.name: number for number, view in enumerate(reference, 1)}
    places: dict[str, list[Float64]] = {view.name: [] for view in reference}
    tracks = []
    for _, seen in points:
        tracks.append([(ids[name], len(places[name])) for name in seen])
        for name, position in seen.items():
            places[name].append(position)
    for view in reference:
        number = ids[view.name]
        model.add_camera_with_trivial_rig(colmap_camera(view.intrinsics, number))
        keypoints = np.array(places[view.name], dtype=np.float64).reshape(-1, 2)
        image = pycolmap.Image(view.name, keypoints, camera_id=number, image_id=number)
        T = view.camera.T_world_to_cam
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(T[:3, :3]), T[:3, 3]))
    for (position, _), track in zip(points, tracks, strict=True):
        model.add_point3D(position, pycolmap.Track([pycolmap.TrackElement(*element) for element in track]))
    folder.mkdir(parents=True, exist_ok=True)
    model.write_binary(str(folder))
    for name in ("rigs.bin", "frames.bin"):
        (folder / name).unlink(missing_ok=True)


def _write_database(path: Path, rows: Sequence[tuple[View, int, int]], *, has_prior: bool) -> None:
    """Cameras and images without features; `rows` are (view, image id, camera id)."""
    import pycolmap

    database = pycolmap.Database.open(str(path))
    try:
        with pycolmap.DatabaseTransaction(database):
            written: set[int] = set()
            for view, image_id, camera_id in rows:
                if camera_id not in written:
                    camera = colmap_camera(view.intrinsics, camera_id)
                    camera.has_prior_focal_length = has_prior
                    database.write_camera(camera, use_camera_id=True)
                    written.add(camera_id)
                image = pycolmap.Image(name=view.name, camera_id=camera_id, image_id=image_id)
                database.write_image(image, use_image_id=True)
    finally:
        database.close()
