"""Both stages learn from poses alone, by the trainer the graph uses, on pairs that validation never shares with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from matchlib.datasets.batch import PairBatch, PoseBatch
from matchlib.methods.posfeat.config import (
    DescriptorLossConfig,
    NetworkConfig,
    PoSFeatConfig,
    ValidationConfig,
)
from matchlib.methods.posfeat.training import build
from matchlib.methods.spec import METHODS
from matchlib.training.config import StageConfig
from matchlib.training.outputs import TrainResult
from matchlib.training.train import train_stage

SETTINGS = PoSFeatConfig(
    network=NetworkConfig(encoder="resnet18", decoder_channels=(64, 32), head_channels=(16, 32)),
    descriptor_loss=DescriptorLossConfig(cell_px=8, window=0.4, max_distance=0.3, colour_jitter=False),
    # So few that every state has as many: with fewer keypoints, precision alone would rise.
    validation=ValidationConfig(max_keypoints=24),
)


class PosedPlanes:
    """`count` views of textured planes, all different from those of another `first`, without their depth.

    The second view has its colours exchanged, so that an untrained network matches hardly better than chance.
    """

    def __init__(self, make: Callable[..., PairBatch], *, first: int, count: int) -> None:
        self._make, self._first, self._count = make, first, count
        self.digest = f"planes {first} {count}"

    def __len__(self) -> int:
        return self._count

    def load(self, index: int, seed: int) -> PoseBatch:
        pair = self._make(size=(128, 96), seed=self._first + index)
        known = {field.name: getattr(pair, field.name) for field in fields(PoseBatch)}
        return replace(PoseBatch(**known), image1=pair.image1[:, [1, 2, 0]], seeds=(seed,))


@pytest.mark.slow
def test_every_stage_beats_what_it_starts_from(posed_pair: Callable[..., PairBatch], tmp_path: Path) -> None:
    def train(stage: str, steps: int, start: Path | None) -> TrainResult:
        return train_stage(
            model=build(SETTINGS, stage, 0),
            train_pairs=PosedPlanes(posed_pair, first=100, count=60),
            validation_pairs=PosedPlanes(posed_pair, first=0, count=12),
            config=StageConfig(
                steps=steps,
                image_size=(128, 96),
                optimiser="adam",
                learning_rate=1e-3,
                weight_decay=0.0,
                schedule="cosine",
                workers=0,
                validate_every=steps,
                validation_pairs=12,
                checkpoint_every=1000,
            ),
            spec=METHODS.get("posfeat").stages[stage],
            out=tmp_path / stage,
            fingerprint=stage,
            seed=0,
            initial_weights=start,
        )

    described = train("desc", 100, None)
    assert described.metric_initial is not None and described.metric_best is not None
    assert described.metric_best > described.metric_initial + 0.2
    detected = train("kp", 60, tmp_path / "desc" / "last.safetensors")
    assert detected.metric_initial is not None and detected.metric_best is not None
    assert detected.metric_best > detected.metric_initial + 0.15
