"""What the trainer costs per step, over a bare loop of forward, backward and update of the same model.

    python benchmarks/trainer_overhead.py [--steps 60] [--size 96] [--clock cpu]

Prints both times per step and their ratio. The trainer's time is the difference between a long and a short
run, so that start and end (imports, weights, marker) do not count; reading, non-finite check, copy of the
buffers, counting, logging and TensorBoard do. Both read the same pairs from memory. The two are timed in
turns, and the fastest of each counts, because other work on the machine only ever adds time. `--clock cpu`
counts processor seconds instead, for a machine that is busy with other things.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from random_pairs import PosedPairs
from torch import Tensor, nn

from matchlib.datasets.batch import PairBatch
from matchlib.methods.spec import StageSpec
from matchlib.training.config import StageConfig
from matchlib.training.train import train_stage

BATCH = 2
Clock = Callable[[], float]


class ConvNet(nn.Module):
    """A plain network of the size of a small feature network: eight convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 32, 32, 64, 64, 64, 64, 64, 64]
        blocks = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=1 + (i == 2), padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
            )
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        ]
        self.layers = nn.Sequential(*blocks)

    def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
        descriptors0, descriptors1 = self.layers(batch.image0), self.layers(batch.image1)
        return {"difference": (descriptors0 - descriptors1).square().mean()}

    def validation_step(self, batch: PairBatch) -> Mapping[str, float]:
        return {"difference": float(self.training_step(batch)["difference"])}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]

    def pictures(self, batch: PairBatch) -> Mapping[str, npt.NDArray[np.uint8]]:
        return {}

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(state))


def time_bare(pairs: PosedPairs, steps: int, clock: Clock) -> float:
    """Seconds for so many steps without a trainer."""
    model = ConvNet().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    started = clock()
    for step in range(steps):
        batch = PairBatch.stack([pairs.load((BATCH * step + i) % len(pairs), step) for i in range(BATCH)])
        torch.autograd.backward([model.training_step(batch)["difference"]])
        optimiser.step()
        optimiser.zero_grad()
    return clock() - started


def time_trainer(pairs: PosedPairs, steps: int, clock: Clock) -> float:
    """Seconds for so many steps with the trainer, start and end included."""
    config = StageConfig(
        steps=steps, batch_size=BATCH, image_size=pairs.size, learning_rate=1e-3, workers=0, log_every=20
    )
    with tempfile.TemporaryDirectory() as folder:
        started = clock()
        train_stage(
            model=ConvNet(),
            train_pairs=pairs,
            validation_pairs=None,
            config=config,
            spec=StageSpec(needs="depth_pose", metric="difference"),
            out=Path(folder),
            fingerprint="benchmark",
            seed=0,
        )
        return clock() - started


def main() -> None:
    """Time both in turns and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    pairs, short = PosedPairs(arguments.size), 5
    time_trainer(pairs, short, clock)  # imports
    bare, trainer = [], []
    for _ in range(arguments.rounds):
        bare.append(
            (time_bare(pairs, arguments.steps + short, clock) - time_bare(pairs, short, clock))
            / arguments.steps
        )
        whole = time_trainer(pairs, arguments.steps + short, clock) - time_trainer(pairs, short, clock)
        trainer.append(whole / arguments.steps)
    print(f"bare loop {1e3 * min(bare):.1f} ms/step, trainer {1e3 * min(trainer):.1f} ms/step")
    print(f"ratio {min(trainer) / min(bare):.3f} ({arguments.clock} time, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
