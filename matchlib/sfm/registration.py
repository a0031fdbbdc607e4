"""Poses of further images against a model that stays as it is: COLMAP's `image_registrator`, which pycolmap lacks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matchlib.errors import DataError
from matchlib.sfm.colmap import (
    colmap_step,
    copy_database,
    from_rigid,
    open_database,
    read_model,
    require_verification,
)
from matchlib.sfm.config import RegistrationConfig
from matchlib.sfm.database_rows import read_rows
from matchlib.sfm.poses import Registered, read_poses, write_poses
from matchlib.sfm.work import finished_folder

logger = logging.getLogger(__name__)

POSES = "poses.json"


def register_images(
    database: Path,
    model: Path,
    names: Sequence[str],
    out: Path,
    config: RegistrationConfig,
    *,
    threads: int = 1,
) -> dict[str, Registered | None]:
    """Register `names` against `model` by all their verified matches with it, one after the other: no new points, no
    bundle adjustment, intrinsics as in the database. What is registered joins the tracks of the points that it sees, so
    that verified matches between `names` count for those that come later.

    out: folder of the model with the registered images (.bin files) and `poses.json`, finished or absent
    Returns the pose of every name, None for those without enough inliers (or without any match): they count as failed.
    A model without points registers none. Raises DataError for a database without verification, and for names that it
    lacks, that are in the model already, or that come twice.
    """
    settings = {"config": asdict(config), "names": list(names)}
    inputs = [database, *sorted(path for kind in ("*.bin", "*.txt") for path in model.glob(kind))]
    with finished_folder(out, stage="registration", settings=settings, inputs=inputs) as folder:
        reconstruction = read_model(model)
        copy = copy_database(database, folder.with_name("database.db"))
        require_verification(copy, source=database)
        if reconstruction.num_points3D() == 0:
            logger.warning("%s: has no 3D points, so that no image can be registered", model)
        with open_database(copy) as opened:
            ids = _ids(names, read_rows(opened).image_ids, database)
            posed = {image.name for image in reconstruction.images.values() if image.has_pose}
            if known := [name for name in names if name in posed]:
                raise DataError(
                    f"{model}: '{known[0]}' has a pose already; register images that are not in the model"
                )
            poses = _register(opened, reconstruction, ids, database, config, threads)
        reconstruction.write(str(folder))
        write_poses(folder / POSES, poses)
    logger.info(
        "%s: %d of %d images registered", out, sum(pose is not None for pose in poses.values()), len(poses)
    )
    return poses


def read_registered(out: Path) -> dict[str, Registered | None]:
    """The poses that `register_images` left in `out`. Raises DataError."""
    return read_poses(out / POSES)


def _ids(names: Sequence[str], image_ids: dict[str, int], database: Path) -> dict[str, int]:
    if missing := [name for name in names if name not in image_ids]:
        raise DataError(
            f"{database}: lacks {len(missing)} of {len(names)} images to register, the first '{missing[0]}'; build the "
            f"database with the names of the list"
        )
    ids = {name: image_ids[name] for name in names}
    if len(ids) < len(names):
        raise DataError(f"{database}: {len(names) - len(ids)} images to register come twice; name each once")
    return ids


def _register(
    opened: Any, model: Any, ids: dict[str, int], database: Path, config: RegistrationConfig, threads: int
) -> dict[str, Registered | None]:
    import pycolmap

    poses: dict[str, Registered | None] = {}
    with colmap_step(database, "registration", check="that the model was made from this database"):
        cache_options = pycolmap.DatabaseCacheOptions()
        cache_options.min_num_matches = config.min_matches
        # The mapper looks up every image of the model, those without a verified match too.
        cache_options.load_all_images = True
        cache = pycolmap.DatabaseCache.create(opened, cache_options)
        mapper = pycolmap.IncrementalMapper(cache)  # refers to `cache`, which must live as long
        mapper.begin_reconstruction(model)
        options = _options(config, threads)
        for name, image_id in ids.items():
            is_registered = mapper.register_next_image(options, image_id)
            poses[name] = _pose(model.image(image_id)) if is_registered else None
        mapper.end_reconstruction(False)
    return poses


def _pose(image: Any) -> Registered:
    return Registered(T_world_to_cam=from_rigid(image.cam_from_world()), inliers=int(image.num_points3D))


def _options(config: RegistrationConfig, threads: int) -> Any:
    import pycolmap

    pipeline = pycolmap.IncrementalPipelineOptions()
    # Copied by `get_mapper` into the refinement of the pose: intrinsics stay.
    pipeline.ba_refine_focal_length = False
    pipeline.ba_refine_principal_point = False
    pipeline.ba_refine_extra_params = False
    pipeline.num_threads = threads
    pipeline.random_seed = config.seed
    options = pipeline.get_mapper()
    options.abs_pose_max_error = config.max_error_px
    options.abs_pose_min_num_inliers = config.min_inliers
    options.abs_pose_min_inlier_ratio = config.min_inlier_ratio
    return options
