"""The whole configuration file as frozen dataclasses, checked before the graph is built. Imports no torch.

Every part owns its dataclass (match sets, training stages, methods, protocols); here they are put together, and
what only the whole can tell is checked: that names exist and that each stage gets the supervision it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from matchlib.datasets.types import FORMATS
from matchlib.downloads.config import DatasetSource, FetchPolicy, read_source
from matchlib.errors import ConfigError
from matchlib.evaluation.config import HOMOGRAPHY_PROTOCOLS, HomographyProtocol, HPatchesProtocol
from matchlib.match_sets.config import MatchSetConfig
from matchlib.methods.spec import METHODS, MethodSpec, StageSpec
from matchlib.mirror.config import MirrorConfig
from matchlib.registry import load_symbol
from matchlib.training.config import StageConfig
from matchlib.typed_yaml import dump_typed, load_typed


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """A dataset and how its pairs are chosen."""

    source: str
    """Description of the dataset (archives, licence, format): a YAML file, relative to the configuration's folder."""
    format: str | None = None
    """Another on-disk format than the description's, e.g. gl3d_blended_or_plain for GL3D; null: the description's."""
    root: str | None = None
    """A copy that you already have; used in place, never written to, nothing is downloaded. null: download."""
    train_split: str = "all"
    """Scenes to train on: a split of the format, e.g. gl3d: comb/train (file `list/comb/imageset_train.txt`)."""
    validation_split: str | None = None
    """Scenes for validation figures, e.g. comb/test; null: the description's, else some of `train_split`, held out."""
    validation_scenes: int = 5
    """At most this many validation scenes are used."""
    match_sets: MatchSetConfig = field(default_factory=MatchSetConfig)
    """Which pairs of images are kept, and what is stored of them."""

    def __post_init__(self) -> None:
        if self.validation_scenes < 1:
            raise ConfigError(f"validation_scenes: expected at least 1, got {self.validation_scenes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One training run: a method, the data it sees, and its stages."""

    method: str
    """A method with training stages, e.g. aslfeat."""
    train_on: tuple[str, ...]
    """Datasets (keys of `datasets`) whose training scenes are used together."""
    seed: int = 0
    """Every random draw of the run follows from it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method; `matchlib settings METHOD` lists them."""
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    """Training settings by stage of the method; a stage that is not named is not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineConfig:
    """A method that is only evaluated: without training, or with weights that you bring."""

    method: str
    """Any method, e.g. rootsift or aslfeat."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method; `matchlib settings METHOD` lists them."""
    weights: str | None = None
    """Weights file of a trained method (safetensors)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HPatchesConfig:
    """`evaluate_hpatches`: matching accuracy and homographies on HPatches sequences."""

    dataset: str
    """Dataset of format hpatches."""
    methods: tuple[str, ...] | None = None
    """Labels to evaluate (baselines and <run>-<stage>); null: all there are."""
    protocol: HPatchesProtocol = field(default_factory=HPatchesProtocol)
    """Everything that changes a number."""
    homography_protocols: tuple[HomographyProtocol, ...] = HOMOGRAPHY_PROTOCOLS
    """Protocols of the separate homography table; a list replaces the four published ones, [] makes none."""
    published: str | None = None
    """Folder of published result files (`<method>.npy`) to draw in the same plot."""

    def __post_init__(self) -> None:
        names = [protocol.name for protocol in self.homography_protocols]
        if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
            raise ConfigError(f"homography_protocols: expected distinct plain names, got {', '.join(names)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowConfig:
    """The configuration file."""

    mirror: MirrorConfig | None = None
    """The demo world that `mirror:` addresses of dataset descriptions point into; null: there is none."""
    downloads: FetchPolicy = field(default_factory=FetchPolicy)
    """Patience and limits of downloads."""
    datasets: Mapping[str, DatasetConfig] = field(default_factory=dict)
    """Datasets by a name of your choice. Entries with the same `source` share its download."""
    runs: Mapping[str, RunConfig] = field(default_factory=dict)
    """Training runs by a name of your choice."""
    baselines: Mapping[str, BaselineConfig] = field(default_factory=dict)
    """Methods to compare with, by a name of your choice."""
    evaluate_hpatches: HPatchesConfig | None = None
    """HPatches evaluation; null: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One row of a results table: a method with settings and, where it is trained, the weights of a stage.

    weights: a file of the user, or None; trained weights are found from `run` and `stage`
    initial: the weights before the first step of `stage` instead of the trained ones
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    weights: str | None = None
    run: str | None = None
    stage: str | None = None
    initial: bool = False


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
        if FORMATS.get(self.format_of(dataset)).read_scene is None:
            return {"train": (), "validation": ()}
        if source.scenes is not None:
            return select_scenes(source, source.scenes, None, settings.validation_scenes)
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
            max_validation=settings.validation_scenes,
        )

    # ------------------------------------------------------------ runs
    def stage_spec(self, run: str, stage: str) -> StageSpec:
        """What the method says of a stage."""
        return METHODS.get(self.config.runs[run].method).stages[stage]

    # ------------------------------------------------------------ evaluation
    def candidates(self) -> dict[str, Candidate]:
        """All rows by label: baselines first, then each run at initialisation and after each stage."""
        rows = [
            Candidate(label=name, method=b.method, settings=b.settings, weights=b.weights)
            for name, b in self.config.baselines.items()
        ]
        for name, run in self.config.runs.items():
            for index, stage in enumerate(run.stages):
                row = Candidate(
                    label=f"{name}-{stage}", method=run.method, settings=run.settings, run=name, stage=stage
                )
                if index == 0:
                    rows.append(
                        Candidate(
                            label=f"{name}-initial",
                            method=run.method,
                            settings=run.settings,
                            run=name,
                            stage=stage,
                            initial=True,
                        )
                    )
                rows.append(row)
        return {row.label: row for row in rows}

    def hpatches_labels(self) -> tuple[str, ...]:
        """Labels that `evaluate_hpatches` compares, in table order."""
        evaluation = self.config.evaluate_hpatches
        if evaluation is None:
            return ()
        return tuple(self.candidates()) if evaluation.methods is None else evaluation.methods


def match_set_folder(scene: str) -> str:
    """Folder name of a scene's match set.

    The suffix is for GL3D's first scene: Snakemake takes a wildcard of 24 zeros for an endless recursion.
    """
    return f"{scene}.set"


def list_subsets(
    source: DatasetSource,
    root: Path,
    *,
    format_name: str,
    train_split: str,
    validation_split: str | None,
    max_validation: int,
) -> dict[str, tuple[str, ...]]:
    """Scenes of a dataset on disk by subset. Formats without scenes (hpatches) have none.

    Raises ConfigError for an unknown split, DataError for missing lists or folders.
    """
    dataset_format = FORMATS.get(format_name)
    if dataset_format.read_scene is None:
        return {"train": (), "validation": ()}
    list_scenes = cast(Callable[[Path, str], tuple[str, ...]], load_symbol(dataset_format.list_scenes))
    held_out = None if validation_split is None else list_scenes(root, validation_split)
    return select_scenes(source, list_scenes(root, train_split), held_out, max_validation)


def select_scenes(
    source: DatasetSource, scenes: Iterable[str], held_out: Iterable[str] | None, max_validation: int
) -> dict[str, tuple[str, ...]]:
    """Split a dataset's scenes: excluded ones leave, validation scenes never train.

    Without `held_out`, validation scenes are the description's own; without any of those, the last
    `max_validation` scenes (at most a fifth) in sorted order are held out.
    """
    usable = sorted(set(scenes) - set(source.exclude_scenes))
    if held_out is None:
        held_out = [scene for scene in usable if scene in set(source.validation_scenes)]
        if not held_out:
            held_out = usable[len(usable) - min(max_validation, len(usable) // 5) :]
    validation = sorted(set(held_out))
    return {
        "train": tuple(scene for scene in usable if scene not in set(validation)),
        "validation": tuple(validation[:max_validation]),
    }


def load_workflow(mapping: Mapping[str, Any], *, where: str, folder: Path) -> Workflow:
    """Check a configuration and read the dataset descriptions it names (relative to `folder`).

    `where` names the file in messages. Raises ConfigError, one line per fault.
    """
    config = load_typed(WorkflowConfig, mapping, where)
    try:
        sources = {name: read_source(folder / dataset.source) for name, dataset in config.datasets.items()}
        workflow = Workflow(config, sources, folder)
        for name, dataset in config.datasets.items():
            _check_dataset(name, dataset, workflow)
        for name, run in config.runs.items():
            _check_run(name, run, workflow)
        for name, baseline in config.baselines.items():
            _check_baseline(name, baseline)
        _check_labels(workflow)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return workflow


def method_settings(spec: MethodSpec, settings: Mapping[str, Any], where: str) -> Any:
    """The typed settings of a method. Raises ConfigError naming `where` and the key."""
    return load_typed(spec.config, dict(settings), where)


def settings_help(cls: type) -> dict[str, Any]:
    """Every key of a settings dataclass with its default, as plain values."""
    return dict(dump_typed(cls()))


def _check_dataset(name: str, dataset: DatasetConfig, workflow: Workflow) -> None:
    source = workflow.sources[name]
    FORMATS.get(workflow.format_of(name))
    if dataset.root is not None and not Path(dataset.root).is_dir():
        raise ConfigError(f"datasets.{name}.root: no such folder: {dataset.root}")
    uses_mirror = any(url.startswith("mirror:") for archive in source.archives for url in archive.urls)
    if uses_mirror and workflow.config.mirror is None and dataset.root is None:
        raise ConfigError(
            f"datasets.{name}: its archives lie in the demo world, but `mirror` is null; give `mirror` settings"
        )
    for other, description in workflow.sources.items():
        if description.name == source.name and description != source:
            raise ConfigError(
                f"datasets.{name}.source: its name '{source.name}' is also that of {other}'s; rename one"
            )


def _check_run(name: str, run: RunConfig, workflow: Workflow) -> None:
    where = f"runs.{name}"
    spec = METHODS.get(run.method)
    method_settings(spec, run.settings, f"{where}.settings")
    if not run.stages:
        known = ", ".join(spec.stages) or "none: it is not trained; name it under `baselines`"
        raise ConfigError(f"{where}.stages: expected at least one stage of {run.method} ({known})")
    if not run.train_on:
        raise ConfigError(f"{where}.train_on: expected at least one dataset ({', '.join(workflow.sources)})")
    for stage in run.stages:
        if stage not in spec.stages:
            raise ConfigError(
                f"{where}.stages.{stage}: unknown stage of {run.method} (known: {', '.join(spec.stages)})"
            )
        before = spec.stages[stage].init_from
        if before is not None and before not in run.stages:
            raise ConfigError(
                f"{where}.stages.{stage}: starts from stage '{before}', which the run does not train"
            )
        for dataset in run.train_on:
            _check_supervision(f"{where}.stages.{stage}", run.method, spec.stages[stage], dataset, workflow)


def _check_supervision(where: str, method: str, stage: StageSpec, dataset: str, workflow: Workflow) -> None:
    if dataset not in workflow.sources:
        raise ConfigError(f"{where}: unknown dataset '{dataset}' (known: {', '.join(workflow.sources)})")
    gives = FORMATS.get(workflow.format_of(dataset)).gives
    if stage.needs not in gives:
        raise ConfigError(
            f"{where}: {method} needs '{stage.needs}' pairs, but dataset '{dataset}' gives {', '.join(sorted(gives))}"
        )


def _check_baseline(name: str, baseline: BaselineConfig) -> None:
    spec = METHODS.get(baseline.method)
    method_settings(spec, baseline.settings, f"baselines.{name}.settings")
    if spec.stages and baseline.weights is None:
        raise ConfigError(
            f"baselines.{name}.weights: {baseline.method} is a trained method; name its weights file"
        )


def _check_labels(workflow: Workflow) -> None:
    labels = workflow.candidates()
    expected = len(workflow.config.baselines) + sum(
        len(run.stages) + 1 for run in workflow.config.runs.values()
    )
    if len(labels) != expected:
        raise ConfigError("baselines: a baseline has the same label as a stage of a run; rename it")
    evaluation = workflow.config.evaluate_hpatches
    if evaluation is None:
        return
    if evaluation.dataset not in workflow.sources:
        raise ConfigError(
            f"evaluate_hpatches.dataset: unknown dataset '{evaluation.dataset}' "
            f"(known: {', '.join(workflow.sources)})"
        )
    if workflow.format_of(evaluation.dataset) != "hpatches":
        raise ConfigError(
            f"evaluate_hpatches.dataset: expected a dataset of format hpatches, got '{evaluation.dataset}' of format "
            f"{workflow.format_of(evaluation.dataset)}"
        )
    for label in evaluation.methods or ():
        if label not in labels:
            raise ConfigError(
                f"evaluate_hpatches.methods: unknown label '{label}' (known: {', '.join(labels)})"
            )
