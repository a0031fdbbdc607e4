"""Pictures of one saved state of a training: those that the trainer draws, for any weights file of the stage."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from matchlib.completion import atomic_write_json, digest_file
from matchlib.config import method_settings
from matchlib.errors import ConfigError, DataError
from matchlib.jobs.training import TrainingJob, pairs_of
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol

if TYPE_CHECKING:
    from matchlib.training.types import TrainableModel

FIGURES = "figures.json"


def draw_training_pictures(job: TrainingJob, weights: Path, out: Path, *, pairs: int, device: str) -> int:
    """Draw what the trainer draws, for the first `pairs` pairs of its validations; returns how many there were.

    weights: safetensors of the job's stage: of a finished stage, or `model.safetensors` of a checkpoint
    out:     gets a folder per pair, `000_<name of the pair>`, with a PNG per picture, and last `figures.json` with the
             validation figures of each pair (null: undefined for this pair). Other files there are left alone
    Raises ConfigError for a job of no trained method or stage; DataError for weights of another stage, method or
    network, for a job without validation pairs, and for a pair that cannot be read.
    """
    import torch

    from matchlib.training.types import as_module
    from matchlib.visualization.draw import save_png

    if pairs < 1:
        raise ConfigError(f"pairs: expected at least 1, got {pairs}")
    model = _load_model(job, weights)
    place = torch.device(device)
    as_module(model).to(place).eval()
    precision = job.config.precision
    autocast = torch.autocast(place.type, dtype=getattr(torch, precision), enabled=precision != "float32")
    figures = {}
    for number, batch in enumerate(_validation_batches(job, pairs)):
        folder = f"{number:03d}_{_file_name(batch.names[0])}"
        on_device = batch.to(place)
        with torch.no_grad(), autocast:
            figures[folder] = _json_figures(model.validation_step(on_device))
            pictures = model.pictures(on_device)
        for name, picture in pictures.items():
            save_png(out / folder / f"{_file_name(name)}.png", picture)
    about = {"weights": str(weights), "weights_digest": digest_file(weights), "pairs": figures}
    atomic_write_json(out / FIGURES, about)
    return len(figures)


def _load_model(job: TrainingJob, weights: Path) -> TrainableModel:
    """The model of the job's stage with these weights."""
    from matchlib.features.foreign_weights import load_weights
    from matchlib.training.types import as_module

    spec = METHODS.get(job.method)
    if spec.trainable is None or job.stage not in spec.stages:
        known = ", ".join(spec.stages) or "none"
        raise ConfigError(f"stage: unknown stage '{job.stage}' of {job.method} (known: {known})")
    _check_header(job, weights)
    settings = method_settings(spec, job.settings, f"settings of {job.method}")
    model = cast("TrainableModel", cast(Any, load_symbol(spec.trainable))(settings, job.stage, job.seed))
    load_weights(as_module(model), weights, what=f"{job.method}/{job.stage} with the settings of this job")
    return model


def _check_header(job: TrainingJob, weights: Path) -> None:
    """Refuse weights that say they are another method's or stage's. A checkpoint's say nothing."""
    from matchlib.training.checkpoint import read_about

    if weights.suffix != ".safetensors" or not weights.is_file():
        raise DataError(
            f"{weights}: expected a safetensors file of {job.method}/{job.stage}; name weights.safetensors of the "
            f"finished stage, or model.safetensors of a checkpoint below its work/checkpoints"
        )
    manifest = read_about(weights).get("manifest", {})
    found = (manifest.get("method", job.method), manifest.get("stage", job.stage))
    if found != (job.method, job.stage):
        raise DataError(
            f"{weights}: expected weights of {job.method}/{job.stage}, got those of {'/'.join(found)}; name weights "
            f"of the job's stage, or the job of that stage"
        )


def _validation_batches(job: TrainingJob, pairs: int) -> Iterator[Any]:
    """The pairs of a validation, in its order, one by one."""
    from matchlib.training.sampler import validation_batches

    spec = METHODS.get(job.method)
    settings = method_settings(spec, job.settings, f"settings of {job.method}")
    source = pairs_of(job, spec.stages[job.stage], settings, "validation")
    if source is None or len(source) == 0:
        raise DataError(
            f"{job.run}/{job.stage}: expected a job with validation pairs, got none; give a dataset of the run a "
            f"validation_split, and describe the job again"
        )
    chosen = validation_batches(
        count=len(source), pairs=pairs, seed=job.seed, batch_size=1, rank=0, world_size=1
    )
    for (address,) in chosen:
        yield source.load(address.index, address.seed)


def _json_figures(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "pair"
