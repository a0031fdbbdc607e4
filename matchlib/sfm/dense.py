"""Dense points of a model by COLMAP's patch-match stereo, which needs a COLMAP that was built with CUDA."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from matchlib.completion import MARKER, atomic_write_json, fingerprint, read_marker
from matchlib.errors import ConfigError, DataError
from matchlib.sfm.colmap import colmap_step, read_model
from matchlib.sfm.work import REVISION, finished_folder

logger = logging.getLogger(__name__)

FUSED = "fused.ply"
COUNT = "dense.json"
_STAGE = "dense"
_SHOWN = 5
_CHECK = "that the photographs are those of the model, and that the GPU has memory left"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSettings:
    """The benchmark's: photometric depth maps of small images, fused where enough of them agree."""

    max_image_size: int = 1200
    """Longer side of the undistorted images, in pixels."""
    min_pixels: int = 5
    """Pixels that a point is fused from at least."""


def has_cuda() -> bool:
    """Whether this pycolmap was built with CUDA. The package on PyPI was not."""
    import pycolmap

    return bool(pycolmap.has_cuda)


def dense_points(model: Path, images: Path, out: Path, settings: DenseSettings | None = None) -> int:
    """Number of fused points of a finished model; `out` gets them as `fused.ply`, finished or absent.

    What is finished for the same model and settings is not made again: it takes hours. Raises ConfigError without
    CUDA, DataError for what COLMAP reports.
    """
    wanted = settings or DenseSettings()
    if (finished := finished_points(model, out, wanted)) is not None:
        return finished
    if not has_cuda():
        raise ConfigError("dense: expected a pycolmap built with CUDA, got one without; set dense to false")
    with finished_folder(out, stage=_STAGE, settings=asdict(wanted), inputs=[model / MARKER]) as folder:
        workspace = folder.with_name("workspace")
        workspace.mkdir()
        undistort(model, images, workspace, wanted.max_image_size)
        count = _stereo(model, workspace, folder / FUSED, wanted.min_pixels)
        atomic_write_json(folder / COUNT, {"points": count})
    logger.info("%s: %d dense points", out, count)
    return count


def undistort(model: Path, images: Path, workspace: Path, max_image_size: int) -> None:
    """Write the undistorted images and the model of pinhole cameras that stereo works on.

    Raises DataError for a folder without a model, and for photographs that are absent or unreadable.
    """
    import pycolmap

    names = [image.name for image in read_model(model).images.values() if image.has_pose]
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = max_image_size
    with colmap_step(model, "undistortion", check=_CHECK):
        pycolmap.undistort_images(workspace, model, images, undistort_options=options)
    # COLMAP logs what it cannot read and goes on.
    if missing := sorted(name for name in names if not (workspace / "images" / name).is_file()):
        raise DataError(
            f"{images}: {len(missing)} of the {len(names)} photographs of {model} are absent or unreadable: "
            f"{', '.join(missing[:_SHOWN])}; give the folder that the model was made from"
        )


def finished_points(model: Path, out: Path, settings: DenseSettings | None = None) -> int | None:
    """What `dense_points` found for the same model and settings, here or on another machine; None: not made yet.

    Raises DataError for a model that is not finished, and for a count that is none.
    """
    marker = read_marker(out)
    wanted = asdict(settings or DenseSettings())
    mark = fingerprint(stage=_STAGE, revision=REVISION, settings=wanted, inputs=[model / MARKER])
    if marker is None or marker.fingerprint != mark:
        return None
    path = out / COUNT
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["points"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected the number of points as JSON, got {error!r}; remove {out} and run again"
        ) from error


def _stereo(model: Path, workspace: Path, out: Path, min_pixels: int) -> int:
    import pycolmap

    with colmap_step(model, "dense reconstruction", check=_CHECK):
        stereo = pycolmap.PatchMatchOptions()
        stereo.geom_consistency = False
        pycolmap.patch_match_stereo(workspace, options=stereo)
        fusion = pycolmap.StereoFusionOptions()
        fusion.min_num_pixels = min_pixels
        fused = pycolmap.stereo_fusion(
            out, workspace, input_type="photometric", options=fusion, output_type="ply"
        )
    return int(fused.num_points3D())
