"""Reconstruction from nothing but verified matches."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matchlib.sfm.colmap import colmap_step, copy_database, require_verification, verified_counts
from matchlib.sfm.config import MappingConfig
from matchlib.sfm.statistics import ModelStatistics, model_statistics, write_statistics
from matchlib.sfm.work import finished_folder

logger = logging.getLogger(__name__)

_CHECK = "intrinsics and matches, and that the folder of the photographs is there"


def reconstruct(
    database: Path, images: Path | None, out: Path, config: MappingConfig, *, threads: int = 1
) -> ModelStatistics:
    """Map incrementally and keep the model of most registered images (then of most points).

    images: folder of the photographs, for the colours of the points; None: black
    out:    folder of that model (.bin files, `statistics.json`), finished or absent
    threads: the same bits for any two runs with 1 (see `config`)
    A reconstruction that fails is a result: an empty model, `models` 0, no registered image. Disconnected images give
    several models; their number is in the statistics. Raises DataError for a database without verification, and for
    what COLMAP reports.
    """
    import pycolmap

    settings = {"config": asdict(config), "has_colours": images is not None}
    with finished_folder(out, stage="mapping", settings=settings, inputs=[database]) as folder:
        every = folder.with_name("models")
        every.mkdir()
        copy = copy_database(database, folder.with_name("database.db"))
        require_verification(copy, source=database)
        options = _options(config, threads)
        options.extract_colors = images is not None
        models: list[Any] = []
        pairs, inliers = verified_counts(copy)
        if pairs > 0:
            with colmap_step(database, "mapping", check=_CHECK, quiet=True):
                found = pycolmap.incremental_mapping(str(copy), str(images or every), str(every), options)
            models = [found[index] for index in sorted(found)]
        best = max(models, key=_size, default=None)
        if best is None:
            logger.warning(
                "%s: no model came out of %d verified pairs with %d inliers: %s",
                out,
                pairs,
                inliers,
                "no pair serves to begin with (mapping.init_...)" if pairs else "there is nothing to map",
            )
            best = pycolmap.Reconstruction()
        best.write(str(folder))
        statistics = model_statistics(best, copy, models=len(models))
        write_statistics(folder, statistics)
    logger.info(
        "%s: %d of %d images registered in the largest of %d models",
        out,
        statistics.registered_images,
        statistics.images,
        statistics.models,
    )
    return statistics


def _size(model: Any) -> tuple[int, int]:
    return int(model.num_reg_images()), int(model.num_points3D())


def _options(config: MappingConfig, threads: int) -> Any:
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.min_num_matches = config.min_matches
    options.min_model_size = config.min_model_size
    options.multiple_models = config.multiple_models
    options.num_threads = threads
    options.random_seed = config.seed
    options.ba_refine_focal_length = config.refine_focal_length
    options.ba_refine_extra_params = config.refine_distortion
    options.ba_refine_principal_point = config.refine_principal_point
    options.structure_less_registration_fallback = config.structure_less_fallback
    options.mapper.init_min_num_inliers = config.init_min_inliers
    options.mapper.init_min_tri_angle = config.init_min_angle_deg
    options.mapper.filter_max_reproj_error = config.max_reprojection_error_px
    options.mapper.filter_min_tri_angle = config.min_angle_deg
    return options
