"""Loading a configuration: what only the whole can tell is checked here. No torch.

That names exist, that each stage gets the supervision it needs, and each evaluation a dataset of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matchlib.config import (
    BaselineConfig,
    DatasetConfig,
    PoseConfig,
    RunConfig,
    WorkflowConfig,
    method_settings,
)
from matchlib.datasets.types import FORMATS, DatasetFormat
from matchlib.downloads.config import read_source
from matchlib.errors import ConfigError
from matchlib.matching.config import RetrievalConfig
from matchlib.methods.spec import METHODS, StageSpec
from matchlib.typed_yaml import load_typed, merged
from matchlib.workflow import Candidate, Workflow


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
        _check_evaluation("evaluate_hpatches", hpatches.dataset, hpatches.methods, ("hpatches",), workflow)
        _check_no_oracle("evaluate_hpatches", hpatches.methods, labels)
    if workflow.config.evaluate_pose is not None:
        _check_pose(workflow.config.evaluate_pose, workflow)
    for name, localisation in workflow.localisations().items():
        where, formats = f"evaluate_{name}", ("aachen", "aachen_v1_1", "photos")
        _check_evaluation(where, localisation.dataset, localisation.methods, formats, workflow)
        _check_no_oracle(where, localisation.methods, labels)
        _check_retrieval(where, localisation.retrieval, labels)
    eth = workflow.config.evaluate_eth
    if eth is not None:
        for dataset in eth.scenes.values():
            _check_evaluation("evaluate_eth", dataset, eth.methods, ("eth_benchmark",), workflow)
        _check_no_oracle("evaluate_eth", eth.methods, labels)
        _check_retrieval("evaluate_eth", eth.retrieval, labels)
    if pck is not None:
        ablation = pck.ablation.methods if pck.ablation else ()
        for where, named in (("evaluate_pck", pck.methods or ()), ("evaluate_pck.ablation", ablation)):
            _check_evaluation(where, pck.dataset, named, ("hpatches",), workflow)
            for label in named:
                if METHODS.get(labels[label].method).dense is None:
                    raise ConfigError(
                        f"{where}.methods: '{label}' ({labels[label].method}) has no descriptors at every place"
                    )


def _check_no_oracle(where: str, methods: Iterable[str] | None, labels: Mapping[str, Candidate]) -> None:
    for label in methods or ():
        if labels[label].uses_truth:
            raise ConfigError(f"{where}.methods: '{label}' uses the true warp, which only evaluate_pck gives")


def _check_retrieval(where: str, retrieval: RetrievalConfig | None, labels: Mapping[str, Candidate]) -> None:
    if retrieval is None:
        return
    label = retrieval.features
    if label not in labels:
        raise ConfigError(f"{where}.retrieval.features: unknown label '{label}' (known: {', '.join(labels)})")
    if labels[label].uses_truth:
        raise ConfigError(
            f"{where}.retrieval.features: '{label}' uses the true warp, which only evaluate_pck gives"
        )


def _check_evaluation(
    where: str, dataset: str, methods: Iterable[str] | None, formats: tuple[str, ...], workflow: Workflow
) -> None:
    """That dataset and labels of an evaluation exist, and that the dataset is of one of these formats."""
    _check_names(where, dataset, methods, workflow)
    if workflow.format_of(dataset) not in formats:
        raise ConfigError(
            f"{where}.dataset: expected a dataset of format {' or '.join(formats)}, got '{dataset}' of format "
            f"{workflow.format_of(dataset)}"
        )


def _check_pose(pose: PoseConfig, workflow: Workflow) -> None:
    _check_names("evaluate_pose", pose.dataset, pose.methods, workflow)
    _check_no_oracle("evaluate_pose", pose.methods, workflow.candidates())
    dataset_format = FORMATS.get(workflow.format_of(pose.dataset))
    if pose.list is None and "pose" not in _supervision(dataset_format):
        raise ConfigError(
            f"evaluate_pose.dataset: expected a dataset with poses, or `list` with pairs of its images, got "
            f"'{pose.dataset}' of format {dataset_format.name}"
        )


def _check_names(where: str, dataset: str, methods: Iterable[str] | None, workflow: Workflow) -> None:
    """That the dataset and all labels of an evaluation exist."""
    labels = workflow.candidates()
    if dataset not in workflow.sources:
        raise ConfigError(
            f"{where}.dataset: unknown dataset '{dataset}' (known: {', '.join(workflow.sources)})"
        )
    for label in methods or ():
        if label not in labels:
            raise ConfigError(f"{where}.methods: unknown label '{label}' (known: {', '.join(labels)})")
