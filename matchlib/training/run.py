"""A training under way: the parts that the main loop calls, and the state they share."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from matchlib.methods.spec import StageSpec
from matchlib.training.checkpoint import Checkpoint, save_checkpoint, save_weights
from matchlib.training.config import StageConfig
from matchlib.training.distributed import barrier
from matchlib.training.loading import BatchStream, LoadedBatch
from matchlib.training.progress import Progress
from matchlib.training.replicas import (
    averaged_statistics,
    check_equal_weights,
    own_statistics,
    restore_statistics,
)
from matchlib.training.schedule import learning_rate_at
from matchlib.training.state import StepOutcome, TrainState
from matchlib.training.stepping import Stepper
from matchlib.training.types import TrainableModel, as_module
from matchlib.training.validation import Validation

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Run:
    """One process's view of a training.

    identity, environment: what a checkpoint says about the run (see `checkpoint.Checkpoint`)
    progress: None in all processes but the first, which alone writes files
    """

    model: TrainableModel
    config: StageConfig
    spec: StageSpec
    state: TrainState
    stepper: Stepper
    pairs: BatchStream
    validation: Validation | None
    progress: Progress | None
    work: Path
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """The model's state as it is now."""
        return as_module(self.model).state_dict()

    def tell_losses(self, loaded: LoadedBatch, outcome: StepOutcome) -> None:
        """Name pairs that could not be read, and those of a step that was skipped."""
        for message in loaded.unreadable:
            self._notice(f"unreadable, another pair takes its place: {message}")
        if not outcome.is_finite:
            what = (
                "gradient overflow under float16" if outcome.is_overflow else "loss or gradient is not finite"
            )
            self._notice(
                f"step {self.state.step + 1} skipped: {what}; pairs: {', '.join(loaded.batch.names)}"
            )

    def log(self) -> None:
        """Write the means since the last line."""
        rate = learning_rate_at(self.config, self.state.step - 1)
        values = {**self.state.take_means(), "learning_rate": rate}
        if self.progress is not None:
            self.progress.train_line(self.state.step, values)

    def validate(self) -> None:
        """Validate, draw, and keep the weights if they are the best so far."""
        if self.validation is None:
            return
        started = time.monotonic()
        draw = self.progress is not None and self._draws_pictures()
        with averaged_statistics(as_module(self.model)):
            found = self.validation.run(self.model, autocast=self.stepper.autocast(), draw=draw)
            metric = found.figures[self.spec.metric]
            is_best = self.state.note_metric(metric, higher_is_better=self.spec.metric_is_better == "higher")
            if is_best and self.progress is not None:
                save_weights(best_path(self.work, self.state.step), self.weights(), about={})
        for message in found.unreadable:
            self._notice(f"unreadable, another validation pair takes its place: {message}")
        if self.progress is None:
            return
        took_s = time.monotonic() - started
        self.progress.validation_line(
            self.state.step, found.figures, is_best=is_best, took_s=took_s, drawing_s=found.drawing_s
        )
        if draw:
            self.progress.pictures(self.state.step, found.pictures)
        self.progress.pause(started)

    def save(self) -> None:
        """Write a checkpoint of everything up to this step; the others wait until it is safe.

        Raises TrainingError if the processes no longer hold the same weights.
        """
        module, started = as_module(self.model), time.monotonic()
        check_equal_weights(module)
        statistics = own_statistics(module)
        with averaged_statistics(module):
            if self.progress is not None:
                self.progress.flush()
                save_checkpoint(
                    self.work / "checkpoints",
                    state=self.state,
                    model=self.weights(),
                    stepper={**self.stepper.state_dict(), "statistics": statistics},
                    identity=self.identity,
                    environment=self.environment,
                )
                self._forget_older_best()
                self.progress.pause(started)
            barrier()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; says so where the machine differs, because then the bits may."""
        as_module(self.model).load_state_dict(checkpoint.model)
        self.stepper.load_state_dict(checkpoint.stepper)
        restore_statistics(as_module(self.model), checkpoint.stepper.get("statistics", []))
        self._tell(f"resumed at step {self.state.step} from {checkpoint.path}")
        for key, ours in self.environment.items():
            theirs = checkpoint.environment.get(key)
            if theirs != ours:
                self._notice(
                    f"{key} was {theirs}, is {ours}: the run goes on, but no longer bit for bit as before"
                )

    def _forget_older_best(self) -> None:
        for path in self.work.glob("best-*.safetensors"):
            if self.state.best_step is None or path != best_path(self.work, self.state.best_step):
                path.unlink()

    def _draws_pictures(self) -> bool:
        state, patience = self.state, self.config.early_stop_after
        may_be_last = state.step >= self.config.steps or (
            patience is not None and state.validations_since_best + 1 >= patience
        )
        every = self.config.picture_every
        return may_be_last or (every > 0 and (state.step // self.config.validate_every) % every == 0)

    def _notice(self, text: str) -> None:
        if self.progress is not None:
            self.progress.notice(text)
        else:
            _LOG.warning(text)

    def _tell(self, text: str) -> None:
        if self.progress is not None:
            self.progress.line(text)


def best_path(work: Path, step: int) -> Path:
    """Where the best weights are kept; named by step, so that a resumed run never takes others for them."""
    return work / f"best-{step:08d}.safetensors"
