"""Points from verified matches and known poses; poses and intrinsics stay exactly as given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matchlib.completion import digest_json
from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.errors import DataError
from matchlib.sfm.colmap import (
    Float64,
    colmap_step,
    copy_database,
    open_database,
    require_verification,
    to_colmap_camera,
    to_rigid,
)
from matchlib.sfm.config import TriangulationConfig
from matchlib.sfm.database_rows import Rows, read_rows
from matchlib.sfm.statistics import ModelStatistics, model_statistics, write_statistics
from matchlib.sfm.work import finished_folder

logger = logging.getLogger(__name__)

_CHECK = (
    "that keypoints are in pixels of the original image, that poses are world to camera, and that intrinsics belong to "
    "these images"
)


def triangulate(
    database: Path,
    known: Mapping[str, tuple[ColmapCamera, Float64]],
    out: Path,
    config: TriangulationConfig,
    *,
    images: Path | None = None,
    threads: int = 1,
) -> ModelStatistics:
    """Triangulate the verified matches between the images of `known`; COLMAP's `point_triangulator`.

    known:  intrinsics and (4, 4) T_world_to_cam by name. They count, not those of the database.
    out:    folder of the model (.bin files, `statistics.json`), finished or absent. Other images of the database are
            not in it.
    images: folder of the photographs, for the colours of the points; None: black
    threads: the same bits for any two runs with 1 (see `config`)
    No point at all is a result, a model of posed images only, and a warning says what usually causes it. Raises
    DataError for a database without verification, for images that it lacks, and for images that share a camera with
    different intrinsics.
    """
    import pycolmap

    settings = {"config": asdict(config), "known": _digest(known), "has_colours": images is not None}
    with finished_folder(out, stage="triangulation", settings=settings, inputs=[database]) as folder:
        copy = copy_database(database, folder.with_name("database.db"))
        with open_database(copy) as opened:
            rows = read_rows(opened)
        require_verification(copy, source=database)
        empty = empty_model(database, known, rows)
        options = _options(config, threads)
        # Without photographs COLMAP warns of each one that it cannot colour points from.
        with colmap_step(database, "triangulation", check=_CHECK, quiet=images is None):
            model = pycolmap.triangulate_points(
                empty, str(copy), str(images or folder), str(folder), True, options, False
            )
        statistics = model_statistics(model, copy)
        write_statistics(folder, statistics)
    logger.info("%s: %d points, %d observations", out, statistics.points, statistics.observations)
    if statistics.points == 0:
        logger.warning(
            "%s: no point came out of %d verified pairs and %d known poses: nothing can be localised in it; check %s",
            out,
            statistics.verified_pairs,
            len(known),
            _CHECK,
        )
    return statistics


def empty_model(database: Path, known: Mapping[str, tuple[ColmapCamera, Float64]], rows: Rows) -> Any:
    """`pycolmap.Reconstruction` of posed images without points, with the ids of the database.

    Raises DataError for no image at all, for images that the database lacks, for images that share a camera with
    different intrinsics, and for poses that are not rigid.
    """
    import pycolmap

    missing = sorted(set(known) - set(rows.image_ids))
    if missing or not known:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{database}: lacks {len(missing)} of {len(known)} images with a known pose: {shown or 'there is none'}; "
            f"build the database with the names of the poses"
        )
    model = pycolmap.Reconstruction()
    owner: dict[int, str] = {}
    for name in sorted(known):
        camera, T_world_to_cam = known[name]
        camera_id, image_id = rows.camera_ids[name], rows.image_ids[name]
        first = owner.setdefault(camera_id, name)
        if first == name:
            model.add_camera_with_trivial_rig(to_colmap_camera(camera, camera_id))
        elif known[first][0] != camera:
            raise DataError(
                f"{database}: '{first}' and '{name}' share camera {camera_id}, but are given different intrinsics: "
                f"{known[first][0]}, {camera}"
            )
        image = pycolmap.Image(name=name, camera_id=camera_id, image_id=image_id)
        model.add_image_with_trivial_frame(image, to_rigid(name, T_world_to_cam))
    return model


def _options(config: TriangulationConfig, threads: int) -> Any:
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.min_num_matches = config.min_matches
    options.num_threads = threads
    options.random_seed = config.seed
    options.mapper.filter_max_reproj_error = config.max_reprojection_error_px
    options.mapper.filter_min_tri_angle = config.min_angle_deg
    options.triangulation.min_angle = config.min_angle_deg
    options.triangulation.create_max_angle_error = config.max_angle_error_deg
    options.triangulation.continue_max_angle_error = config.max_angle_error_deg
    options.triangulation.merge_max_reproj_error = config.max_reprojection_error_px
    options.triangulation.complete_max_reproj_error = config.max_reprojection_error_px
    options.triangulation.ignore_two_view_tracks = config.ignore_two_view_tracks
    options.triangulation.random_seed = config.seed
    return options


def _digest(known: Mapping[str, tuple[ColmapCamera, Float64]]) -> str:
    return digest_json({name: [asdict(camera), T.tolist()] for name, (camera, T) in known.items()})
