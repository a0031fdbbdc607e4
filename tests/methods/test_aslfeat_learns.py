"""Both stages learn, by the trainer the graph uses, on pairs that validation never shares with training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from matchlib.datasets.batch import PairBatch
from matchlib.methods.aslfeat.config import ASLFeatConfig, NetworkConfig
from matchlib.methods.aslfeat.training import build
from matchlib.methods.spec import METHODS
from matchlib.training.config import StageConfig
from matchlib.training.outputs import TrainResult
from matchlib.training.train import train_stage

SETTINGS = ASLFeatConfig(
    network=NetworkConfig(variant="small", batch_norm_momentum=0.1), validation_keypoints=128
)


class PlanarPairs:
    """`count` views of textured planes with exact depth, all different from those of another `first`."""

    def __init__(self, make: Callable[..., PairBatch], *, first: int, count: int) -> None:
        self._make, self._first, self._count = make, first, count
        self.digest = f"planes {first} {count}"

    def __len__(self) -> int:
        return self._count

    def load(self, index: int, seed: int) -> PairBatch:
        return self._make(size=96, seed=self._first + index, motion=2.0)


@pytest.mark.slow
def test_every_stage_beats_what_it_starts_from(planar_pair: Callable[..., PairBatch], tmp_path: Path) -> None:
    def train(stage: str, steps: int, learning_rate: float, start: Path | None) -> TrainResult:
        return train_stage(
            model=build(SETTINGS, stage, 0),
            train_pairs=PlanarPairs(planar_pair, first=100, count=60),
            validation_pairs=PlanarPairs(planar_pair, first=0, count=12),
            config=StageConfig(
                steps=steps,
                optimiser="adam",
                learning_rate=learning_rate,
                schedule="cosine",
                workers=0,
                validate_every=steps,
                validation_pairs=12,
                checkpoint_every=1000,
            ),
            spec=METHODS.get("aslfeat").stages[stage],
            out=tmp_path / stage,
            fingerprint=stage,
            seed=0,
            initial_weights=start,
        )

    base = train("base", 30, 1e-3, None)
    assert base.metric_best > base.metric_initial + 0.1
    dcn = train("dcn", 80, 1e-3, tmp_path / "base" / "last.safetensors")
    assert dcn.metric_best > dcn.metric_initial
