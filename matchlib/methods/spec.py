"""What a method says about itself, readable without torch: its settings, its stages, where its code is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from matchlib.datasets.types import Supervision
from matchlib.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One training stage.

    needs:     the supervision its pairs must carry
    init_from: stage whose weights it starts from, None for a fresh start
    metric:    validation figure that chooses the best weights
    metric_is_better: whether a "higher" or "lower" metric is better
    """

    needs: Supervision
    metric: str
    metric_is_better: str = "higher"
    init_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """One method of local features.

    config:    frozen dataclass of its settings (torch-free)
    stages:    training stages in order; empty for methods without training
    trainable: "module:function" with (config, stage: str, seed: int) -> training.types.TrainableModel, or
               None
    extractor: "module:function" with (config, weights: Path | None, device: str) -> features.types.Extractor
    """

    name: str
    config: type
    extractor: str
    stages: Mapping[str, StageSpec] = field(default_factory=dict)
    trainable: str | None = None


METHODS: Registry[MethodSpec] = Registry("method", "matchlib.methods")
