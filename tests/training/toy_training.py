"""A model and pairs small enough to train in a second; also a script, for tests that kill or multiply
processes.

The model regresses the mean colour of image 1 from image 0 through a normalisation whose statistics span the
global batch, as in a real method. Run as a script it trains once (under torchrun: in all ranks) or, with
`--kills N`, forks a child per attempt and kills it at a random moment N times before letting one finish.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matchlib.datasets.batch import PairBatch
from matchlib.errors import DataError
from matchlib.methods.spec import StageSpec
from matchlib.randomness import torch_generator_for
from matchlib.training.config import StageConfig
from matchlib.training.distributed import all_reduce_max, all_reduce_sum, world_size
from matchlib.training.outputs import TrainResult
from matchlib.training.train import train_stage

SPEC = StageSpec(needs="depth_pose", metric="error", metric_is_better="lower")
CONFIG = StageConfig(
    steps=24,
    batch_size=4,
    image_size=8,
    learning_rate=0.1,
    schedule="exponential",
    decay_steps=40,
    log_every=5,
    validate_every=8,
    validation_pairs=6,
    checkpoint_every=4,
    workers=0,
)


@dataclass(frozen=True)
class ToySource:
    """`count` random pairs of 8 x 8 pixels; the pairs in `broken` cannot be read, loading takes `delay_s`."""

    count: int = 10
    broken: frozenset[int] = frozenset()
    delay_s: float = 0.0
    poison: frozenset[int] = frozenset()
    deadly: frozenset[int] = frozenset()
    digest: str = "toy"

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, seed: int) -> PairBatch:
        if index in self.broken:
            raise DataError(f"pair{index}.jpg: expected an image, got nothing")
        if index in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.delay_s)
        generator = torch_generator_for(7, index)
        image0 = torch.rand(1, 3, 8, 8, generator=generator)
        noise = 0.01 * torch.rand(1, 3, 8, 8, generator=torch_generator_for(seed, "noise"))
        image1 = 1 - image0 + noise
        if index in self.poison:
            image1 = image1 * float("nan")
        eye3, eye4 = torch.eye(3)[None], torch.eye(4)[None]
        depth = torch.ones(1, 8, 8)
        return PairBatch(
            image0=image0,
            image1=image1,
            depth0=depth,
            depth1=depth,
            K0=eye3,
            K1=eye3,
            T_0to1=eye4,
            seeds=(seed,),
            names=(f"pair{index}",),
        )


class ToyModel(nn.Module):
    """One hidden layer with batch statistics and a running maximum over all ranks, optional dropout."""

    def __init__(self, *, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden = nn.Conv2d(3, 4, 3, bias=False)
            self.output = nn.Linear(4, 3)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("maximum", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.hidden(image)
        if self.training:
            mean = all_reduce_sum(hidden.mean(dim=(0, 2, 3))) / world_size()
            self.mean.lerp_(mean.detach().float(), 0.1)
            self.maximum.lerp_(all_reduce_max(hidden.detach().float().amax()), 0.1)
        else:
            mean = self.mean
        hidden = torch.tanh(hidden - mean[:, None, None]) + hidden
        return self.output(self.dropout(hidden.mean(dim=(2, 3))))

    def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
        error = (self(batch.image0) - batch.image1.mean(dim=(2, 3))).square().mean()
        size = 0.01 * self.output.weight.square().mean()
        return {"regression": error, "size": size, "figure/hidden": self.mean.mean()}

    def validation_step(self, batch: PairBatch) -> Mapping[str, float]:
        error = (self(batch.image0) - batch.image1.mean(dim=(2, 3))).abs().mean()
        return {"error": float(error), "sometimes": float("nan") if "pair1" in batch.names else 1.0}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.hidden.parameters()), "weight_decay": 0.0, "lr_scale": 0.5},
            {"params": list(self.output.parameters())},
        ]

    def pictures(self, batch: PairBatch) -> Mapping[str, np.ndarray]:
        image = (255 * batch.image0[0]).byte().permute(1, 2, 0).cpu().numpy()
        return {"first image": image, "score/map": image[:, ::-1].copy()}

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        self.hidden.load_state_dict({"weight": state["hidden.weight"]})


def train_toy(out: Path, config: StageConfig = CONFIG, **changes: Any) -> TrainResult:
    """`train_stage` with the toy's defaults; keyword arguments replace them."""
    arguments: dict[str, Any] = {
        "model": ToyModel(),
        "train_pairs": ToySource(),
        "validation_pairs": ToySource(count=7),
        "spec": SPEC,
        "fingerprint": "f" * 64,
        "seed": 3,
        "device": "cpu",
        "manifest": {"method": "toy"},
    }
    return train_stage(out=out, config=config, **{**arguments, **changes})


def kill_and_train(out: Path, kills: int, seed: int, config: StageConfig, source: ToySource) -> None:
    """Train in forked children, the first `kills` of which are killed at a random moment.

    Every other one is killed from its very start on, the rest once they have begun to train or resumed. Exits
    with an error if a child fails by itself, or if hardly any was killed after its first checkpoint.
    """
    train_toy(out.with_name("warm"), replace(config, steps=1))  # else the children are killed while importing
    draw = random.Random(seed)
    log, checkpoints = out / "train.log", out / "work/checkpoints"
    resumable = 0
    for attempt in range(kills):
        seen = log.stat().st_size if log.exists() else 0
        child = os.fork()
        if child == 0:
            train_toy(out, config, train_pairs=source, model=ToyModel(dropout=0.2))
            os._exit(0)
        if attempt % 2:
            _wait_until(lambda: log.exists() and log.stat().st_size > seen)  # noqa: B023  used in this turn only
        time.sleep(draw.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"attempt {attempt} ended by itself with status {status}")
        resumable += status != 0 and any(checkpoints.glob("step-*"))
    if resumable < kills // 3:
        sys.exit(f"only {resumable} of {kills} kills hit a run with a checkpoint: the test proves nothing")
    train_toy(out, config, train_pairs=source, model=ToyModel(dropout=0.2))
    sys.stdout.write(f"{resumable} of {kills} kills hit a run with a checkpoint\n")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = replace(CONFIG, workers=arguments.workers, steps=arguments.steps)
    source = ToySource(delay_s=arguments.delay)
    if arguments.kills is None:
        train_toy(arguments.out, config, train_pairs=source)
    else:
        kill_and_train(arguments.out, arguments.kills, arguments.seed, config, source)


if __name__ == "__main__":
    main()
