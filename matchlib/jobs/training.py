"""Train one stage of one run: its description as a file, and running what the file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from matchlib import revisions
from matchlib.completion import MARKER, atomic_write_json, digest_file, digest_json, fingerprint
from matchlib.config import DatasetConfig, RunConfig, method_settings, weights_files
from matchlib.datasets.types import FORMATS
from matchlib.errors import ConfigError, DataError
from matchlib.jobs.data import DatasetIndex, read_index
from matchlib.methods.spec import METHODS, StageSpec
from matchlib.photo_pairs.config import WarpConfig
from matchlib.registry import load_symbol
from matchlib.training.config import StageConfig, result_settings
from matchlib.typed_yaml import dump_typed, load_typed, read_yaml
from matchlib.workflow import match_set_folder

if TYPE_CHECKING:
    from matchlib.match_sets.opened import MatchSetSource
    from matchlib.training.loading import PairSource

POSE_MAX_ROTATION_DEG = 80.0
"""Stages that need `pose` leave out pairs whose cameras are rotated further against each other, unless the settings of
the method say otherwise (`max_rotation_deg`; 180: no limit). Source: PoSFeat's released `rot_thr`."""


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
class PhotosOf:
    """Photographs of one dataset, named by the file of `index_dataset`.

    content: digest of that file, so that the job changes when the photographs do
    labels:  folder of the shards of labels, or None
    """

    dataset: str
    index: str
    content: str
    warps: WarpConfig
    labels: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """Everything one training stage depends on; written as JSON, so that a stage can be run again by hand.

    Raises ConfigError if a scene is in the training pairs of one dataset and the validation pairs of another.
    """

    run: str
    method: str
    stage: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: StageConfig
    pairs: tuple[PairsOf, ...] = ()
    photos: tuple[PhotosOf, ...] = ()
    initial_weights: str | None = None

    def __post_init__(self) -> None:
        _check_disjoint(self.pairs)


def _check_disjoint(pairs: Sequence[PairsOf]) -> None:
    """Raise ConfigError if a scene is trained on and validated on, be it under the names of two datasets."""
    trained = {(group.root, scene): group.dataset for group in pairs for scene in group.train}
    for group in pairs:
        for scene in group.validation:
            other = trained.get((group.root, scene))
            if other is not None:
                raise ConfigError(
                    f"scene {scene} of {group.root}: expected to train or to validate on it, but dataset "
                    f"'{other}' trains and dataset '{group.dataset}' validates; give both the same splits"
                )


def write_training_job(job: TrainingJob, path: Path) -> None:
    """Write a job description, atomically."""
    atomic_write_json(path, dump_typed(job))


def read_training_job(path: Path) -> TrainingJob:
    """Read a job description. Raises ConfigError naming file and key."""
    return load_typed(TrainingJob, read_yaml(path), str(path))  # JSON is YAML


def run_training(job: TrainingJob, out: Path, *, device: str) -> None:
    """Train one stage into `out` (see `matchlib.training.train`). Resumes where a former attempt stopped."""
    from matchlib.training.train import train_stage

    spec = METHODS.get(job.method)
    settings = method_settings(spec, job.settings, f"settings of {job.method}")
    if spec.trainable is None:
        raise DataError(f"{job.method} is not trained")
    if job.stage not in spec.stages:
        known = ", ".join(spec.stages)
        raise ConfigError(f"stage: unknown stage '{job.stage}' of {job.method} (known: {known})")
    train = pairs_of(job, spec.stages[job.stage], settings, "train")
    if train is None:
        raise DataError(
            f"{job.run}/{job.stage}: no training pairs; name datasets under runs.{job.run}.train_on"
        )
    validation = pairs_of(job, spec.stages[job.stage], settings, "validation")
    manifest = _manifest(job, settings, train, validation)
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
        initial_weights=None if job.initial_weights is None else Path(job.initial_weights),
        manifest=manifest,
    )


def _manifest(
    job: TrainingJob, settings: Any, train: PairSource, validation: PairSource | None
) -> dict[str, Any]:
    """What the weights depend on beside the stage's configuration; stands in their header."""
    return {
        "method": job.method,
        "stage": job.stage,
        "settings": dump_typed(settings),
        "files": _digests_of_files(dump_typed(settings)),
        "seed": job.seed,
        "training_pairs": train.digest,
        "validation_pairs": None if validation is None else validation.digest,
        "initial_weights": None if job.initial_weights is None else digest_file(Path(job.initial_weights)),
        "data": {
            **{p.dataset: digest_json([list(p.train), list(p.validation)]) for p in job.pairs},
            **{p.dataset: p.content for p in job.photos},
        },
    }


def _digests_of_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Digest by path of the files that settings name."""
    found: dict[str, str] = {}
    for key, path in weights_files(settings).items():
        if not Path(path).is_file():
            raise DataError(f"{key}: no such weights file: {path}")
        found[path] = digest_file(Path(path))
    return found


def pairs_of(job: TrainingJob, stage: StageSpec, settings: Any, subset: str) -> PairSource | None:
    """The pairs of one subset by the supervision that the stage needs; None if there are none."""
    size = job.config.image_width_height
    if stage.needs is None:
        build = cast(Any, load_symbol(stage.pairs or ""))
        return cast("PairSource", build(settings, subset, size, job.seed))
    if stage.needs == "homography":
        return _photo_pairs(job.photos, subset, size)
    if stage.needs == "pose":
        limit = float(getattr(settings, "max_rotation_deg", POSE_MAX_ROTATION_DEG))
        return _pose_pairs(job.pairs, subset, size, max_rotation_deg=limit)
    return _depth_pose_pairs(job.pairs, subset, size)


def _photo_pairs(photos: Sequence[PhotosOf], subset: str, size: tuple[int, int]) -> PairSource | None:
    from matchlib.photo_pairs.pairs import HomographyPairs, PhotoSource

    sources = []
    for group in photos:
        index = read_index(Path(group.index))
        names = index.train if subset == "train" else index.validation
        labels = None if group.labels is None else Path(group.labels)
        if names:
            sources.append(
                PhotoSource(
                    dataset=group.dataset,
                    root=Path(index.root),
                    names=names,
                    warps=group.warps,
                    labels=labels,
                )
            )
    return HomographyPairs(sources, size=size) if sources else None


def _pose_pairs(
    pairs: Sequence[PairsOf], subset: str, size: tuple[int, int], *, max_rotation_deg: float
) -> PairSource | None:
    from matchlib.match_sets.pairs import PosePairs

    sources = [replace(source, max_rotation_deg=max_rotation_deg) for source in _match_sets(pairs, subset)]
    return PosePairs(sources, size=size) if sources else None


def _depth_pose_pairs(pairs: Sequence[PairsOf], subset: str, size: tuple[int, int]) -> PairSource | None:
    from matchlib.match_sets.pairs import DepthPosePairs

    sources = _match_sets(pairs, subset)
    return DepthPosePairs(sources, size=size) if sources else None


def _match_sets(pairs: Sequence[PairsOf], subset: str) -> list[MatchSetSource]:
    """The finished match sets of one subset. Raises DataError for one that is not finished."""
    from matchlib.match_sets.opened import MatchSetSource

    sources = []
    for group in pairs:
        for scene in group.train if subset == "train" else group.validation:
            folder = Path(group.match_sets) / match_set_folder(scene)
            if not (folder / MARKER).is_file():
                raise DataError(f"{folder}: match set not finished; run: snakemake match_sets_all")
            sources.append(
                MatchSetSource(
                    dataset_format=group.format,
                    root=Path(group.root),
                    scene=scene,
                    folder=folder,
                    min_rotation_deg=group.min_rotation_deg,
                    max_rot_diff_deg=group.max_rot_diff_deg,
                )
            )
    return sources


def describe_training(
    *,
    run: str,
    stage: str,
    settings: RunConfig,
    datasets: Sequence[DatasetConfig],
    indices: Sequence[Path],
    match_sets: Path,
    labels: Sequence[str | None],
    initial_weights: str | None,
) -> TrainingJob:
    """Put together all that one stage of a run depends on.

    datasets, indices, labels: settings, file of `index_dataset`, and folder of labels of each dataset of
                               `settings.train_on`; empty for a stage that draws its own pictures
    Raises ConfigError if datasets that share a folder train and validate on the same scene.
    """
    pairs, photos = [], []
    for dataset, path, folder in zip(datasets, indices, labels, strict=True):
        index = read_index(path)
        if FORMATS.get(index.format).list_images is None:
            pairs.append(_pairs_in(index, dataset, match_sets))
        else:
            photos.append(
                PhotosOf(
                    dataset=index.dataset,
                    index=str(path),
                    content=digest_file(path),
                    warps=dataset.warps,
                    labels=folder,
                )
            )
    return TrainingJob(
        run=run,
        method=settings.method,
        stage=stage,
        seed=settings.seed,
        settings=settings.settings,
        config=settings.stages[stage],
        pairs=tuple(pairs),
        photos=tuple(photos),
        initial_weights=initial_weights,
    )


def _pairs_in(index: DatasetIndex, settings: DatasetConfig, match_sets: Path) -> PairsOf:
    return PairsOf(
        dataset=index.dataset,
        format=index.format,
        root=index.root,
        match_sets=str(match_sets / index.dataset),
        train=index.train,
        validation=index.validation,
        min_rotation_deg=settings.match_sets.min_rotation_deg,
        max_rot_diff_deg=settings.match_sets.max_rot_diff_deg,
    )
