"""The checked configuration with the dataset descriptions it names: what the graph asks its questions. No torch.

Here is checked what only the whole can tell: that names exist, and that each stage gets the supervision it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matchlib.config import (
    BaselineConfig,
    DatasetConfig,
    LocalisationEvaluation,
    PoseConfig,
    RunConfig,
    WorkflowConfig,
    method_settings,
    weights_files,
)
from matchlib.datasets.types import FORMATS, DatasetFormat
from matchlib.downloads.config import EXCLUDE_SCENES, DatasetSource, read_source
from matchlib.errors import ConfigError
from matchlib.methods.spec import METHODS, StageSpec
from matchlib.registry import load_symbol
from matchlib.typed_yaml import dump_typed, load_typed, merged


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
        fitting = (row.label for row in rows if not row.is_variant and not _uses_truth(row))
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


def _uses_truth(row: Candidate) -> bool:
    """Whether a row's descriptors are made with the true warp: only evaluations that know it can give it."""
    settings = method_settings(METHODS.get(row.method), row.settings, row.label)
    return bool(getattr(settings, "uses_truth", False))


def max_validation(settings: DatasetConfig, format_name: str) -> int:
    """The most scenes, or photographs, of a dataset that serve for validation."""
    is_photos = FORMATS.get(format_name).list_images is not None
    return settings.validation_images if is_photos else settings.validation_scenes


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
    exclude: tuple[str, ...] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Scenes of a dataset on disk by subset, or photographs where the format has those; else none (hpatches).

    max_validation: the most scenes or photographs that are held out or used for validation
    exclude:        see `DatasetConfig.exclude`
    Raises ConfigError for an unknown split and for a list of training scenes that names an excluded one,
    DataError for missing lists or folders.
    """
    dataset_format = FORMATS.get(format_name)
    lister = dataset_format.list_images
    if dataset_format.read_scene is not None:
        lister = dataset_format.list_scenes
    if lister is None:
        return {"train": (), "validation": ()}
    list_names = cast(Callable[[Path, str], tuple[str, ...]], load_symbol(lister))
    held_out = None if validation_split is None else list_names(root, validation_split)
    is_list = train_split not in dataset_format.folder_splits
    return select_scenes(
        source, list_names(root, train_split), held_out, max_validation, exclude=exclude, is_list=is_list
    )


def select_scenes(
    source: DatasetSource,
    scenes: Iterable[str],
    held_out: Iterable[str] | None,
    max_validation: int,
    *,
    exclude: tuple[str, ...] | None = None,
    is_list: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Split a dataset's scenes: excluded ones never train; validation scenes never train.

    Those of the description's `exclude_scenes` still validate if `held_out` names them, as GL3D's own test list
    does; those of its named `exclusions` never do.
    Without `held_out`, validation scenes are the description's own; without any of those, the last
    `max_validation` scenes (at most a fifth) in sorted order are held out.
    is_list: somebody wrote `scenes` down; one that a named list excludes is then an error and not left out
    Raises ConfigError.
    """
    lists = source.excluded(exclude)
    tested = {scene: name for name, names in lists.items() if name != EXCLUDE_SCENES for scene in names}
    scenes = set(scenes)
    if is_list and (clash := sorted(scenes & set(tested))):
        raise ConfigError(
            f"dataset {source.name}: its list of training scenes holds {', '.join(clash)}, which the exclusions "
            f"'{tested[clash[0]]}' keep for a benchmark; take it out, or set `exclude` to the lists to apply"
        )
    usable = sorted(scenes - set(tested) - set(lists.get(EXCLUDE_SCENES, ())))
    if held_out is None:
        held_out = sorted(set(usable) & set(source.validation_scenes))
        if not held_out:
            held_out = usable[len(usable) - min(max_validation, len(usable) // 5) :]
    validation = set(held_out) - set(tested)
    return {
        "train": tuple(scene for scene in usable if scene not in validation),
        "validation": tuple(sorted(validation)[:max_validation]),
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


def _check_dataset(name: str, dataset: DatasetConfig, workflow: Workflow) -> None:
    source = workflow.sources[name]
    FORMATS.get(workflow.format_of(name))
    try:
        source.excluded(dataset.exclude)
    except ConfigError as error:
        raise ConfigError(f"datasets.{name}.{error}") from error
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
    needs_data = any(stage in spec.stages and spec.stages[stage].needs is not None for stage in run.stages)
    if needs_data and not run.train_on:
        raise ConfigError(f"{where}.train_on: expected at least one dataset ({', '.join(workflow.sources)})")
    for variant, changes in run.variants.items():
        method_settings(spec, merged(run.settings, changes), f"{where}.variants.{variant}")
    for stage in run.stages:
        if stage not in spec.stages:
            raise ConfigError(
                f"{where}.stages.{stage}: unknown stage of {run.method} (known: {', '.join(spec.stages)})"
            )
        for before, what in (
            (spec.stages[stage].init_from, "starts from"),
            (spec.stages[stage].labels_from, "learns from labels by"),
        ):
            if before is not None and before not in run.stages:
                raise ConfigError(
                    f"{where}.stages.{stage}: {what} stage '{before}', which the run does not train"
                )
        for dataset in run.train_on:
            _check_supervision(f"{where}.stages.{stage}", run.method, spec.stages[stage], dataset, workflow)


def _check_supervision(where: str, method: str, stage: StageSpec, dataset: str, workflow: Workflow) -> None:
    if dataset not in workflow.sources:
        raise ConfigError(f"{where}: unknown dataset '{dataset}' (known: {', '.join(workflow.sources)})")
    if stage.needs is None:
        return
    dataset_format = FORMATS.get(workflow.format_of(dataset))
    if stage.needs not in _supervision(dataset_format):
        raise ConfigError(
            f"{where}: {method} needs '{stage.needs}' pairs, but dataset '{dataset}' gives "
            f"{', '.join(sorted(dataset_format.gives))}; train on a dataset of format "
            f"{' or '.join(_formats_for(stage.needs))}"
        )
    if stage.needs == "homography" and dataset_format.list_images is None:
        raise ConfigError(
            f"{where}: {method} learns from warped photographs, but dataset '{dataset}' ({dataset_format.name}) is "
            f"for evaluation; train on a dataset of format photos or coco"
        )
    source = workflow.config.datasets[dataset].match_sets.source
    if dataset_format.read_scene is not None and source not in _sources_for(stage.needs, dataset_format):
        raise ConfigError(
            f"datasets.{dataset}.match_sets.source: '{source}' makes no '{stage.needs}' pairs for {method} from format "
            f"{dataset_format.name}; expected {' or '.join(_sources_for(stage.needs, dataset_format))}"
        )


def _supervision(dataset_format: DatasetFormat) -> frozenset[str]:
    """All that a format gives, with what follows from it."""
    given = dataset_format.gives
    return given | {"pose"} if "depth_pose" in given else given


def _formats_for(needs: str) -> tuple[str, ...]:
    """Names of formats that can be trained on with this supervision."""
    formats = (FORMATS.get(name) for name in FORMATS.names())
    return tuple(
        f.name
        for f in formats
        if needs in _supervision(f) and (f.read_scene is not None or f.list_images is not None)
    )


def _sources_for(needs: str, dataset_format: DatasetFormat) -> tuple[str, ...]:
    """Values of `match_sets.source` that make pairs with this supervision; whether a scene has its files is seen later.

    Listed pairs have no correspondences, and a format that gives poses only has no others.
    """
    if needs == "tracks":
        return ("auto", "corr", "depth")
    return ("auto", "list") if dataset_format.gives == {"pose"} else ("auto", "corr", "depth", "list")


def _check_baseline(name: str, baseline: BaselineConfig) -> None:
    spec = METHODS.get(baseline.method)
    method_settings(spec, baseline.settings, f"baselines.{name}.settings")
    if spec.weights != "none" and baseline.weights is None:
        raise ConfigError(f"baselines.{name}.weights: {baseline.method} needs weights; name their file")
    if spec.weights == "none" and baseline.weights is not None:
        raise ConfigError(f"baselines.{name}.weights: {baseline.method} has no weights; leave them out")


def _check_labels(workflow: Workflow) -> None:
    labels = workflow.candidates()
    expected = len(workflow.config.baselines) + sum(
        len(run.stages) + len(run.variants) + 1 for run in workflow.config.runs.values()
    )
    if len(labels) != expected:
        raise ConfigError(
            "runs, baselines: two rows of the tables have the same label; rename a run or baseline"
        )
    hpatches, pck = workflow.config.evaluate_hpatches, workflow.config.evaluate_pck
    if hpatches is not None:
        _check_evaluation("evaluate_hpatches", hpatches.dataset, hpatches.methods or (), workflow)
        _check_no_oracle("evaluate_hpatches", hpatches.methods or (), labels)
    if workflow.config.evaluate_pose is not None:
        _check_pose(workflow.config.evaluate_pose, workflow)
    for name, localisation in workflow.localisations().items():
        _check_extracting(
            f"evaluate_{name}",
            localisation.dataset,
            localisation.methods,
            ("aachen", "aachen_v1_1", "photos"),
            workflow,
        )
    eth = workflow.config.evaluate_eth
    for dataset in eth.scenes.values() if eth else ():
        _check_extracting("evaluate_eth", dataset, eth.methods if eth else (), ("eth_benchmark",), workflow)
    if pck is not None:
        ablation = pck.ablation.methods if pck.ablation else ()
        for where, named in (("evaluate_pck", pck.methods or ()), ("evaluate_pck.ablation", ablation)):
            _check_evaluation(where, pck.dataset, named, workflow)
            for label in named:
                if METHODS.get(labels[label].method).dense is None:
                    raise ConfigError(
                        f"{where}.methods: '{label}' ({labels[label].method}) has no descriptors at every place"
                    )


def _check_no_oracle(where: str, methods: Iterable[str], labels: Mapping[str, Candidate]) -> None:
    for label in methods:
        if _uses_truth(labels[label]):
            raise ConfigError(f"{where}.methods: '{label}' uses the true warp, which only evaluate_pck gives")


def _check_extracting(
    where: str, dataset: str, methods: tuple[str, ...] | None, formats: tuple[str, ...], workflow: Workflow
) -> None:
    """An evaluation on features of its own image set."""
    _check_names(where, dataset, methods or (), workflow)
    _check_no_oracle(where, methods or (), workflow.candidates())
    if workflow.format_of(dataset) not in formats:
        raise ConfigError(
            f"{where}: expected a dataset of format {' or '.join(formats)}, got '{dataset}' of format "
            f"{workflow.format_of(dataset)}"
        )


def _check_pose(pose: PoseConfig, workflow: Workflow) -> None:
    _check_names("evaluate_pose", pose.dataset, pose.methods or (), workflow)
    _check_no_oracle("evaluate_pose", pose.methods or (), workflow.candidates())
    dataset_format = FORMATS.get(workflow.format_of(pose.dataset))
    if pose.list is None and "pose" not in _supervision(dataset_format):
        raise ConfigError(
            f"evaluate_pose.dataset: expected a dataset with poses, or `list` with pairs of its images, got "
            f"'{pose.dataset}' of format {dataset_format.name}"
        )


def _check_evaluation(where: str, dataset: str, methods: Iterable[str], workflow: Workflow) -> None:
    _check_names(where, dataset, methods, workflow)
    if workflow.format_of(dataset) != "hpatches":
        raise ConfigError(
            f"{where}.dataset: expected a dataset of format hpatches, got '{dataset}' of format "
            f"{workflow.format_of(dataset)}"
        )


def _check_names(where: str, dataset: str, methods: Iterable[str], workflow: Workflow) -> None:
    """That the dataset and all labels of an evaluation exist."""
    labels = workflow.candidates()
    if dataset not in workflow.sources:
        raise ConfigError(
            f"{where}.dataset: unknown dataset '{dataset}' (known: {', '.join(workflow.sources)})"
        )
    for label in methods:
        if label not in labels:
            raise ConfigError(f"{where}.methods: unknown label '{label}' (known: {', '.join(labels)})")
