"""Dense points of a model by COLMAP's patch-match stereo, which needs a COLMAP that was built with CUDA."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from matchlib.completion import MARKER, atomic_write_json, fingerprint, read_marker
from matchlib.errors import ConfigError
from matchlib.sfm.colmap import colmap_step, read_model
from matchlib.sfm.work import REVISION, finished_folder

logger = logging.getLogger(__name__)

FUSED = "fused.ply"
COUNT = "dense.json"
_STAGE = "dense"
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
    identity = _Identity(settings=asdict(wanted), inputs=(model / MARKER,))
    if (finished := _finished_count(out, identity)) is not None:
        return finished
    if not has_cuda():
        raise ConfigError("dense: expected a pycolmap built with CUDA, got one without; set dense to false")
    with finished_folder(out, stage=_STAGE, settings=identity.settings, inputs=identity.inputs) as folder:
        workspace = folder.with_name("workspace")
        workspace.mkdir()
        undistort(model, images, workspace, wanted.max_image_size)
        count = _stereo(model, workspace, folder / FUSED, wanted.min_pixels)
        atomic_write_json(folder / COUNT, {"points": count})
    logger.info("%s: %d dense points", out, count)
    return count


def undistort(model: Path, images: Path, workspace: Path, max_image_size: int) -> None:
    """Write the undistorted images and the model of pinhole cameras that stereo works on. Raises DataError."""
    import pycolmap

    read_model(model)  # says clearly what is wrong with the folder
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = max_image_size
    with colmap_step(model, "undistortion", check=_CHECK):
        pycolmap.undistort_images(workspace, model, images, undistort_options=options)


@dataclass(frozen=True, slots=True)
class _Identity:
    """What the points depend on."""

    settings: dict[str, int]
    inputs: tuple[Path, ...]


def _finished_count(out: Path, identity: _Identity) -> int | None:
    marker = read_marker(out)
    mark = fingerprint(stage=_STAGE, revision=REVISION, settings=identity.settings, inputs=identity.inputs)
    if marker is None or marker.fingerprint != mark:
        return None
    return int(json.loads((out / COUNT).read_text(encoding="utf-8"))["points"])


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
