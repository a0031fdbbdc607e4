"""The checked configuration with the dataset descriptions it names: what the graph asks its questions. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matchlib.config import (
    LocalisationEvaluation,
    RunConfig,
    WorkflowConfig,
    method_settings,
    weights_files,
)
from matchlib.datasets.types import FORMATS
from matchlib.downloads.config import DatasetSource
from matchlib.methods.spec import METHODS, StageSpec
from matchlib.subsets import list_subsets, max_validation, select_scenes
from matchlib.typed_yaml import dump_typed, merged, without


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One row of a results table: a method with settings and, where it is trained, the weights of a stage.

    weights: a file of the user, or None; trained weights are found from `run` and `stage`
    initial: the weights before the first step of `stage` instead of the trained ones
    is_variant: other settings of weights that another row has as trained
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    weights: str | None = None
    run: str | None = None
    stage: str | None = None
    initial: bool = False
    is_variant: bool = False

    @property
    def uses_truth(self) -> bool:
        """Whether its descriptors are made with the true warp: only evaluations that know it can give it."""
        settings = method_settings(METHODS.get(self.method), self.settings, self.label)
        return bool(getattr(settings, "uses_truth", False))


@dataclass(frozen=True, slots=True)
class Workflow:
    """The checked configuration with the descriptions it refers to; what the graph asks its questions."""

    config: WorkflowConfig
    sources: Mapping[str, DatasetSource]
    folder: Path

    # ------------------------------------------------------------ datasets
    def format_of(self, dataset: str) -> str:
        """Name of the dataset's on-disk format."""
        return self.config.datasets[dataset].format or self.sources[dataset].format

    def has_scenes(self, dataset: str) -> bool:
        """Whether a dataset has scenes, which pairs are chosen from; photographs and sequences are none."""
        return FORMATS.get(self.format_of(dataset)).read_scene is not None

    def source_path(self, dataset: str) -> str:
        """File of the dataset's description."""
        return str(self.folder / self.config.datasets[dataset].source)

    def downloads(self) -> dict[str, str]:
        """What has to be fetched: name of a description -> a dataset that uses it; none that is used in place."""
        wanted = {name: d for name, d in self.config.datasets.items() if d.root is None}
        return {self.sources[name].name: name for name in reversed(wanted)}

    def static_scenes(self, dataset: str) -> dict[str, tuple[str, ...]] | None:
        """Scenes by subset where they are known before any job has run: those that the description names, or those
        of a root that is used in place. None: they are found after unpacking.
        """
        settings, source = self.config.datasets[dataset], self.sources[dataset]
        if not self.has_scenes(dataset):
            return {"train": (), "validation": ()}
        if source.scenes is not None:
            limit = settings.validation_scenes
            return select_scenes(source, source.scenes, None, limit, exclude=settings.exclude, is_list=True)
        if settings.root is not None:
            return self.scenes_below(dataset, Path(settings.root))
        return None

    def scenes_below(self, dataset: str, root: Path) -> dict[str, tuple[str, ...]]:
        """Scenes by subset as the dataset's own lists or folders below `root` say. Raises ConfigError, DataError."""
        settings, source = self.config.datasets[dataset], self.sources[dataset]
        return list_subsets(
            source,
            root,
            format_name=self.format_of(dataset),
            train_split=settings.train_split,
            validation_split=settings.validation_split,
            max_validation=self.max_validation(dataset),
            exclude=settings.exclude,
        )

    def max_validation(self, dataset: str) -> int:
        """The most scenes, or photographs, of a dataset that serve for validation."""
        return max_validation(self.config.datasets[dataset], self.format_of(dataset))

    def label_folder(self, run: str, stage: str, dataset: str) -> str:
        """Where the labels lie that weights of `stage` gave the photographs of a dataset: a folder per shard."""
        return f"results/labels/{run}/{stage}/{dataset}/{self.config.runs[run].label_shards}-shards"

    # ------------------------------------------------------------ runs
    def stage_spec(self, run: str, stage: str) -> StageSpec:
        """What the method says of a stage."""
        return METHODS.get(self.config.runs[run].method).stages[stage]

    def run_of_stage(self, run: str, stage: str) -> RunConfig:
        """A run reduced to what one of its stages depends on: a setting of another stage, or of extraction, retrains
        nothing."""
        settings = self.config.runs[run]
        return replace(
            settings,
            stages={stage: settings.stages[stage]},
            settings=without(settings.settings, self.stage_spec(run, stage).ignores),
            variants={},
        )

    # ------------------------------------------------------------ evaluation
    def candidates(self) -> dict[str, Candidate]:
        """All rows by label: baselines first, then each run at initialisation and after each stage."""
        rows = [
            Candidate(label=name, method=b.method, settings=b.settings, weights=b.weights)
            for name, b in self.config.baselines.items()
        ]
        for name, run in self.config.runs.items():
            rows += _rows_of_run(name, run)
        return {row.label: row for row in rows}

    def hpatches_labels(self) -> tuple[str, ...]:
        """Labels that `evaluate_hpatches` compares, in table order; all that need no truth, unless named."""
        evaluation = self.config.evaluate_hpatches
        return () if evaluation is None else self._extractable(evaluation.methods)

    def pose_labels(self) -> tuple[str, ...]:
        """Labels that `evaluate_pose` compares, in table order; all that need no truth, unless named."""
        evaluation = self.config.evaluate_pose
        return () if evaluation is None else self._extractable(evaluation.methods)

    def localisations(self) -> dict[str, LocalisationEvaluation]:
        """The localisation evaluations that are asked for, by name."""
        found = {"aachen": self.config.evaluate_aachen, "aachen_v1_1": self.config.evaluate_aachen_v1_1}
        return {name: evaluation for name, evaluation in found.items() if evaluation is not None}

    def localisation_labels(self, name: str) -> tuple[str, ...]:
        """Labels that one of `localisations` compares, in table order."""
        return self._extractable(self.localisations()[name].methods)

    def eth_labels(self) -> tuple[str, ...]:
        """Labels that `evaluate_eth` compares, in table order."""
        evaluation = self.config.evaluate_eth
        return () if evaluation is None else self._extractable(evaluation.methods)

    def _extractable(self, named: tuple[str, ...] | None) -> tuple[str, ...]:
        """Labels whose features can be extracted, or those that are named."""
        rows = self.candidates().values()
        fitting = (row.label for row in rows if not row.is_variant and not row.uses_truth)
        return tuple(fitting) if named is None else named

    def pck_labels(self) -> tuple[str, ...]:
        """Labels that `evaluate_pck` compares, in table order; all with dense descriptors, unless named."""
        evaluation = self.config.evaluate_pck
        if evaluation is None:
            return ()
        rows = self.candidates().values()
        dense = (row.label for row in rows if METHODS.get(row.method).dense is not None)
        return tuple(dense) if evaluation.methods is None else evaluation.methods


def _rows_of_run(name: str, run: RunConfig) -> list[Candidate]:
    """A run before its first step, after each stage, and its variants."""
    shared: dict[str, Any] = {"method": run.method, "run": name}
    # In the order of training, whatever that of the configuration.
    stages = [stage for stage in METHODS.get(run.method).stages if stage in run.stages]
    rows = [
        Candidate(label=f"{name}-initial", settings=run.settings, stage=stages[0], initial=True, **shared)
    ]
    rows += [
        Candidate(label=f"{name}-{stage}", settings=run.settings, stage=stage, **shared) for stage in stages
    ]
    rows += [
        Candidate(
            label=f"{name}-{stages[-1]}-{variant}",
            settings=merged(run.settings, settings),
            stage=stages[-1],
            is_variant=True,
            **shared,
        )
        for variant, settings in run.variants.items()
    ]
    return rows


def files_of_settings(row: Candidate) -> tuple[str, ...]:
    """Files that the settings of a row name: keys that end in `_weights`, at any depth."""
    settings = method_settings(METHODS.get(row.method), row.settings, row.label)
    return tuple(weights_files(dump_typed(settings)).values())


def match_set_folder(scene: str) -> str:
    """Folder name of a scene's match set.

    The suffix is for GL3D's first scene: Snakemake takes a wildcard of 24 zeros for an endless recursion.
    """
    return f"{scene}.set"
