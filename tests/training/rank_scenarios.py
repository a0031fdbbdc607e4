"""A script for torchrun: several trainings in one process group, each rank's findings in `<out>/rank<k>.pt`.

One start of two processes serves all tests of `test_ranks.py`, because importing torch is most of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from toy_training import CONFIG, ToyModel, ToySource, train_toy

from matchlib.datasets.batch import PairBatch
from matchlib.errors import TrainingError
from matchlib.training.distributed import process_group, rank, world_size
from matchlib.training.replicas import averaged_statistics, check_equal_weights
from matchlib.training.stepping import Stepper

QUIET = replace(CONFIG, steps=8, log_every=3, validate_every=8, checkpoint_every=8)
COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_object", "barrier", "broadcast", "broadcast_object_list"),
    *("gather", "gather_object", "reduce", "reduce_scatter", "scatter", "send", "recv"),
)


class OwnStatistics(ToyModel):
    """Batch norm over each process's own share, as torch's own layer does it, and dropout."""

    def __init__(self, *, seed: int = 0, frozen: bool = False) -> None:
        super().__init__(seed=seed, dropout=0.0 if frozen else 0.2)
        self.norm, self.frozen = nn.BatchNorm2d(4), frozen

    def forward(self, image: Tensor) -> Tensor:
        self.norm.train(self.training and not self.frozen)
        hidden = torch.tanh(self.norm(self.hidden(image)))
        return self.output(self.dropout(hidden.mean(dim=(2, 3))))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*super().parameter_groups(), {"params": list(self.norm.parameters())}]


class Watched(OwnStatistics):
    """Keeps what weights and statistics each forward pass starts from; `spoil` changes the losses of one.

    Pass 0 is the one that the trainer forgets, pass k + 1 belongs to step k.
    """

    def __init__(self, spoil: Callable[[int, dict[str, Tensor]], None]) -> None:
        super().__init__()
        self.spoil, self.seen = spoil, []

    def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
        self.seen.append({name: value.clone() for name, value in self.state_dict().items()})
        losses = dict(super().training_step(batch))
        self.spoil(len(self.seen) - 1, losses)
        return losses


class Counting(ToySource):
    """Keeps the indices of the pairs that this process loads."""

    loaded: list[int]

    def load(self, index: int, seed: int) -> PairBatch:
        self.loaded.append(index)
        return super().load(index, seed)


def counting_source() -> Counting:
    source = Counting()
    object.__setattr__(source, "loaded", [])
    return source


@contextlib.contextmanager
def counted_steps() -> Iterator[list[dict[str, Counter[str]]]]:
    """Count, for each `Stepper.step`, calls from Python and what the back end was made to do."""
    steps: list[dict[str, Counter[str]]] = []
    calls: Counter[str] = Counter()
    before, functions = Stepper.step, {name: getattr(dist, name) for name in COLLECTIVES}

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return functions[name](*arguments, **options)

        return call

    def step(self: Stepper, *arguments: Any, **options: Any) -> Any:
        calls.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            outcome = before(self, *arguments, **options)
        names = Counter(event.name for event in profile.events() if event.name.startswith("gloo:"))
        steps.append({"calls": Counter(calls), "backend": names})
        return outcome

    try:
        Stepper.step = step  # type: ignore[method-assign]
        for name in COLLECTIVES:
            setattr(dist, name, counted(name))
        yield steps
    finally:
        Stepper.step = before  # type: ignore[method-assign]
        for name, function in functions.items():
            setattr(dist, name, function)


def count_collectives(out: Path) -> dict[str, Any]:
    source = counting_source()
    with counted_steps() as steps:
        train_toy(out / "counted", QUIET, model=OwnStatistics(), train_pairs=source)
    return {"steps": steps, "loaded": source.loaded}


def nan_on_rank_one(out: Path) -> dict[str, Any]:
    def spoil(number: int, losses: dict[str, Tensor]) -> None:
        if number == 3 and rank() == 1:  # the gradient stays finite: only the loss shows it
            losses["regression"] = losses["regression"] + torch.tensor(float("nan"))

    model = Watched(spoil)
    result = train_toy(out / "nan", QUIET, model=model)
    return {"seen": model.seen, "nonfinite": result.nonfinite}


def stop_on_rank_one(out: Path) -> dict[str, Any]:
    calls = itertools.count()
    try:
        train_toy(out / "parts", QUIET, model=OwnStatistics(), stop=lambda: rank() == 1 and next(calls) == 4)
        code = None
    except SystemExit as stopped:
        code = stopped.code
    dist.barrier()
    checkpoint = next((out / "parts/work/checkpoints").glob("step-*"))
    stepper = torch.load(checkpoint / "optimiser.pt", weights_only=True)
    dist.barrier()
    train_toy(out / "parts", QUIET, model=OwnStatistics(seed=8))
    train_toy(out / "whole", QUIET, model=OwnStatistics())
    train_toy(out / "often", replace(QUIET, checkpoint_every=1), model=OwnStatistics())
    return {"code": code, "checkpoint": checkpoint.name, "statistics": stepper["statistics"]}


def same_as_one(out: Path) -> dict[str, Any]:
    train_toy(out / "frozen", CONFIG, model=OwnStatistics(frozen=True))
    return {}


def faults(out: Path) -> dict[str, Any]:
    class Unconnected(OwnStatistics):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [*super().parameter_groups(), {"params": list(self.spare.parameters())}]

    def rename(number: int, losses: dict[str, Tensor]) -> None:
        losses[f"figure/of_rank_{rank()}"] = torch.zeros(())

    def drift(number: int, losses: dict[str, Tensor]) -> None:
        if number == 5 and rank() == 1:
            with torch.no_grad():
                drifting.output.bias.add_(1e-3)

    drifting = Watched(drift)
    counter = OwnStatistics()
    counter.norm.num_batches_tracked.add_(rank())
    return {
        "unconnected": message(lambda: train_toy(out / "unconnected", QUIET, model=Unconnected())),
        "names": message(lambda: train_toy(out / "names", QUIET, model=Watched(rename))),
        "drift": message(lambda: train_toy(out / "drift", QUIET, model=drifting)),
        "counter": message(lambda: averaged_statistics(counter).__enter__()),
    }


def message(action: Callable[[], Any]) -> str | None:
    try:
        action()
    except TrainingError as error:
        dist.barrier()
        return str(error)
    return None


def statistics(out: Path) -> dict[str, Any]:
    model = OwnStatistics()
    model.norm.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.7]) + rank())
    own = model.norm.running_mean.clone()
    with averaged_statistics(model):
        mean, equal = model.norm.running_mean.clone(), model.norm.running_var.clone()
        check_equal_weights(model)
    return {"mean": mean, "equal": equal, "own": own, "after": model.norm.running_mean.clone()}


class Wide(ToyModel):
    """A hidden layer of so many numbers that their exchange is done in pieces."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.wide = nn.Sequential(nn.Linear(4, 600), nn.Tanh(), nn.Linear(600, 700), nn.Linear(700, 4))

    def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
        hidden = self.wide(self.hidden(batch.image0).mean(dim=(2, 3)))
        return {**super().training_step(batch), "wide": (hidden - batch.image1.mean()).square().mean()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*super().parameter_groups(), {"params": list(self.wide.parameters())}]


def stop_and_resume_wide(out: Path) -> dict[str, Any]:
    config, calls = replace(QUIET, batch_size=2 * world_size()), itertools.count()
    with contextlib.suppress(SystemExit):
        train_toy(out / "parts", config, model=Wide(), stop=lambda: next(calls) == 3)
    train_toy(out / "parts", config, model=Wide())
    train_toy(out / "whole", config, model=Wide())
    return {}


SCENARIOS = (count_collectives, nan_on_rank_one, stop_on_rank_one, same_as_one, statistics, faults)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["stop_and_resume_wide"])
    arguments = parser.parse_args()
    out, chosen = arguments.out, [stop_and_resume_wide] if arguments.only else SCENARIOS
    torch.set_num_threads(1)
    with process_group("cpu"):
        found: dict[str, Any] = {scenario.__name__: scenario(out) for scenario in chosen}
        torch.save({"world_size": world_size(), **found}, out / f"rank{rank()}.pt")


if __name__ == "__main__":
    main()
