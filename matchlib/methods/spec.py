"""What a method says about itself, readable without torch: its settings, its stages, where its code is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from matchlib.datasets.types import Supervision
from matchlib.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One training stage.

    needs:       the supervision its pairs must carry; None: the stage draws its own pictures (`pairs`)
    metric:      validation figure that chooses the best weights
    metric_is_better: whether a "higher" or "lower" metric is better
    init_from:   stage whose weights it starts from, None for a fresh start
    labels_from: stage whose weights label interest points in the photographs before this stage starts (the
                 method's `labeller`); None: no labels
    pairs:       for `needs=None`: "module:function" with (config, subset: "train" | "validation",
                 size: (width, height), seed: int) -> training.loading.PairSource
    ignores:     keys of the settings, dots between levels, that neither training nor validation of this stage reads.
                 Changing them leaves finished weights valid; the stage is given the defaults, whatever is configured.
    """

    needs: Supervision | None
    metric: str
    metric_is_better: str = "higher"
    init_from: str | None = None
    labels_from: str | None = None
    pairs: str | None = None
    ignores: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """One method of local features.

    config:    frozen dataclass of its settings (torch-free)
    stages:    training stages in order; empty for methods without training
    trainable: "module:function" with (config, stage: str, seed: int) -> training.types.TrainableModel, or
               None
    extractor: "module:function" with (config, weights: Path | None, device: str) -> features.types.Extractor
    dense:     the same for features.dense.DenseDescriber; None for methods without descriptors at any place
    labeller:  the same for photo_pairs.labelling.Labeller; needed by stages with `labels_from`
    importer:  "module:function" with (config, path: Path) -> state dict of this method, for weights that
               another program wrote; None if there are none to import
    weights:   "trained": a safetensors file of one of its stages; "foreign": a file that the user brings,
               published by others; "none": the method has no weights
    """

    name: str
    config: type
    extractor: str
    stages: Mapping[str, StageSpec] = field(default_factory=dict)
    trainable: str | None = None
    dense: str | None = None
    labeller: str | None = None
    importer: str | None = None
    weights: Literal["trained", "foreign", "none"] = "none"

    def __post_init__(self) -> None:
        if bool(self.stages) != (self.weights == "trained"):
            raise ValueError(f"method {self.name}: weights are 'trained' if and only if it has stages")


METHODS: Registry[MethodSpec] = Registry("method", "matchlib.methods")
