"""Whole jobs as the graph and the command line run them: read a job's description, put the parts together, run.

Each function here is one rule of the graph; workflow scripts and `matchlib` verbs call the same ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from matchlib import revisions
from matchlib.completion import MARKER, atomic_write_json, digest_file, fingerprint
from matchlib.config import (
    DatasetConfig,
    HPatchesConfig,
    RunConfig,
    list_subsets,
    match_set_folder,
    method_settings,
)
from matchlib.datasets.types import FORMATS
from matchlib.downloads.config import read_source
from matchlib.downloads.dataset import check_in_place
from matchlib.errors import DataError
from matchlib.match_sets.config import MatchSetConfig
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol
from matchlib.training.config import StageConfig, result_settings
from matchlib.typed_yaml import dump_typed, load_typed, read_yaml

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsOf:
    """Match sets of one dataset: scenes below `match_sets`, images below `root`."""

    dataset: str
    format: str
    root: str
    match_sets: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    min_rotation_deg: float
    max_rot_diff_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """Everything one training stage depends on; written as JSON, so that a stage can be run again by hand."""

    run: str
    method: str
    stage: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: StageConfig
    pairs: tuple[PairsOf, ...]
    initial_weights: str | None = None


def write_training_job(job: TrainingJob, path: Path) -> None:
    """Write a job description, atomically."""
    atomic_write_json(path, dump_typed(job))


def read_training_job(path: Path) -> TrainingJob:
    """Read a job description. Raises ConfigError naming file and key."""
    return load_typed(TrainingJob, read_yaml(path), str(path))  # JSON is YAML


def run_training(job: TrainingJob, out: Path, *, device: str) -> None:
    """Train one stage into `out` (see `matchlib.training.train`). Resumes where a former attempt stopped."""
    from matchlib.match_sets.pairs import DepthPosePairs
    from matchlib.training.train import train_stage

    spec = METHODS.get(job.method)
    settings = method_settings(spec, job.settings, f"settings of {job.method}")
    if spec.trainable is None:
        raise DataError(f"{job.method} is not trained")
    train = DepthPosePairs(_sources(job.pairs, "train"), image_size=job.config.image_size)
    validation_sources = _sources(job.pairs, "validation")
    validation = (
        DepthPosePairs(validation_sources, image_size=job.config.image_size) if validation_sources else None
    )
    initial = None if job.initial_weights is None else Path(job.initial_weights)
    manifest = {
        "method": job.method,
        "stage": job.stage,
        "settings": dump_typed(settings),
        "seed": job.seed,
        "training_pairs": train.digest,
        "validation_pairs": None if validation is None else validation.digest,
        "initial_weights": None if initial is None else digest_file(initial),
        "scenes": {p.dataset: {"train": list(p.train), "validation": list(p.validation)} for p in job.pairs},
    }
    build = cast(Any, load_symbol(spec.trainable))
    train_stage(
        model=build(settings, job.stage, job.seed),
        train_pairs=train,
        validation_pairs=validation,
        config=job.config,
        spec=spec.stages[job.stage],
        out=out,
        fingerprint=fingerprint(
            stage=f"train/{job.method}/{job.stage}",
            revision=revisions.REVISIONS["train"],
            settings={"manifest": manifest, "config": result_settings(job.config)},
        ),
        seed=job.seed,
        device=device,
        initial_weights=initial,
        manifest=manifest,
    )


def _sources(pairs: Sequence[PairsOf], subset: str) -> list[Any]:
    from matchlib.match_sets.pairs import MatchSetSource

    sources = []
    for group in pairs:
        for scene in group.train if subset == "train" else group.validation:
            folder = Path(group.match_sets) / match_set_folder(scene)
            if not (folder / MARKER).is_file():
                raise DataError(f"{folder}: match set not finished; run: snakemake match_sets_all")
            sources.append(
                MatchSetSource(dataset_format=group.format, root=Path(group.root), scene=scene, folder=folder)
            )
    return sources


def describe_training(
    *,
    run: str,
    stage: str,
    settings: RunConfig,
    filters: Sequence[MatchSetConfig],
    indices: Sequence[Path],
    match_sets: Path,
    initial_weights: str | None,
) -> TrainingJob:
    """Put together all that one stage of a run depends on.

    filters, indices: match-set settings and file of `index_dataset` of each dataset of `settings.train_on`
    """
    return TrainingJob(
        run=run,
        method=settings.method,
        stage=stage,
        seed=settings.seed,
        settings=settings.settings,
        config=settings.stages[stage],
        pairs=tuple(
            PairsOf(
                dataset=index.dataset,
                format=index.format,
                root=index.root,
                match_sets=str(match_sets / index.dataset),
                train=index.train,
                validation=index.validation,
                min_rotation_deg=chosen.min_rotation_deg,
                max_rot_diff_deg=chosen.max_rot_diff_deg,
            )
            for index, chosen in zip(map(read_index, indices), filters, strict=True)
        ),
        initial_weights=initial_weights,
    )


# ---------------------------------------------------------------- datasets
@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIndex:
    """Where a dataset lies and which scenes it has; changes whenever what was unpacked changes.

    content: digest of the marker of the unpacked root, null for a root that is used in place
    """

    dataset: str
    format: str
    root: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    content: str | None


def index_dataset(
    name: str, settings: DatasetConfig, *, source: Path, unpacked: Path | None, out: Path
) -> None:
    """Write the index of a dataset.

    source:   its description
    unpacked: marker in the folder that its archives were unpacked into; None for a root that is used in place
    Raises DataError where the root does not hold what its format needs.
    """
    description = read_source(source)
    format_name = settings.format or description.format
    has_scenes = FORMATS.get(format_name).read_scene is not None
    if unpacked is not None:
        root = unpacked.parent
    elif settings.root is not None:
        root = Path(settings.root)
        check_in_place(format_name, root, split=settings.train_split if has_scenes else "all")
    else:
        raise DataError(f"{name}: neither unpacked nor given a root")
    scenes = list_subsets(
        description,
        root,
        format_name=format_name,
        train_split=settings.train_split,
        validation_split=settings.validation_split,
        max_validation=settings.validation_scenes,
    )
    _log.info(
        "%s: %d training and %d validation scenes", name, len(scenes["train"]), len(scenes["validation"])
    )
    index = DatasetIndex(
        dataset=name,
        format=format_name,
        root=str(root),
        train=scenes["train"],
        validation=scenes["validation"],
        content=None if unpacked is None else digest_file(unpacked),
    )
    atomic_write_json(out, dump_typed(index))


def read_index(path: Path) -> DatasetIndex:
    """Read what `index_dataset` wrote. Raises ConfigError."""
    return load_typed(DatasetIndex, read_yaml(path), str(path))


# ---------------------------------------------------------------- features
def run_extraction(
    *,
    method: str,
    settings: Mapping[str, Any],
    weights: Path | None,
    dataset_format: str,
    root: Path,
    out: Path,
    device: str = "auto",
) -> None:
    """Features of every image of a dataset's image set, in one HDF5 file."""
    from matchlib.api import build_extractor
    from matchlib.features.extract import extract_features

    if dataset_format != "hpatches":
        raise DataError(
            f"{root}: images of format {dataset_format} are extracted with `matchlib extract --images`"
        )
    from matchlib.datasets.hpatches import image_set

    extractor = build_extractor(method, weights=weights, settings=settings, device=device)
    extract_features(root=root, names=image_set(root), extractor=extractor, out=out)


# ---------------------------------------------------------------- evaluation
def run_hpatches(
    settings: Mapping[str, Any],
    *,
    features: Path,
    root: Path,
    label: str,
    result: Path,
    homographies: Sequence[Path],
    device: str = "auto",
) -> None:
    """Evaluate one features file on HPatches sequences and write all its results.

    settings:     the section `evaluate_hpatches` of the configuration
    homographies: a file per homography protocol of the settings, in their order
    """
    from matchlib.api import choose_device
    from matchlib.evaluation.homography import evaluate_homography
    from matchlib.evaluation.homography_result import write_homography_result
    from matchlib.evaluation.hpatches import write_result
    from matchlib.evaluation.hpatches_run import evaluate_hpatches

    config = load_typed(HPatchesConfig, dict(settings), "evaluate_hpatches")
    place = choose_device(device)
    for protocol, path in zip(config.homography_protocols, homographies, strict=True):
        found = evaluate_homography(
            features, root, protocol=protocol, sequences=config.protocol.sequences, label=label, device=place
        )
        write_homography_result(found, path)
    write_result(
        evaluate_hpatches(features, root, protocol=config.protocol, label=label, device=place), result
    )
