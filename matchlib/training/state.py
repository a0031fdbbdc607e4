"""Where a training stands: everything beside weights and optimiser that a resumed run must know."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matchlib.errors import TrainingError
from matchlib.training.config import StageConfig

_SMALL_SAMPLE = 100  # one bad file among the first few pairs is no share yet


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What one step gave, equal on all ranks.

    values:        losses and figures by name, means over the global batch; a figure may be NaN (undefined)
    loss:          the minimised sum
    gradient_norm: L2 norm before clipping
    is_overflow:   the loss is finite but its float16-scaled gradient is not: the loss scale was too large
    drawn, unreadable: pairs tried, and those of them that could not be read
    stop:          some process was asked to stop
    """

    values: Mapping[str, float]
    loss: float
    gradient_norm: float
    is_overflow: bool
    drawn: int
    unreadable: int
    stop: bool

    @property
    def is_finite(self) -> bool:
        """Whether the weights were updated."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Counters of a run; JSON in a checkpoint.

    step:      finished steps, skipped ones included
    best_*:    the best validation so far; metric_initial is that before the first step
    nonfinite: skipped steps, without the overflows by which float16 finds its scale
    pending:   values of the steps since the last line of history
    """

    step: int = 0
    metric_initial: float | None = None
    best_step: int | None = None
    best_metric: float | None = None
    validations_since_best: int = 0
    nonfinite: int = 0
    nonfinite_in_a_row: int = 0
    drawn: int = 0
    unreadable: int = 0
    pending: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> TrainState:
        """Back from `to_json`."""
        return TrainState(**value)

    def is_finished(self, config: StageConfig) -> bool:
        """Whether the last step is done, or validation has not improved for long enough."""
        patience = config.early_stop_after
        return self.step >= config.steps or (patience is not None and self.validations_since_best >= patience)

    def account(self, outcome: StepOutcome, config: StageConfig) -> None:
        """Count one finished step. Raises TrainingError when too many steps or pairs were lost."""
        self.step += 1
        self.drawn += outcome.drawn
        self.unreadable += outcome.unreadable
        if outcome.is_finite:
            self.nonfinite_in_a_row = 0
            norm = {"gradient_norm": outcome.gradient_norm}
            self.pending.append({**outcome.values, "loss": outcome.loss, **norm})
        else:
            self.nonfinite_in_a_row += 1
            self.nonfinite += not outcome.is_overflow
        self._check_nonfinite(outcome, config)
        self._check_unreadable(config)

    def _check_nonfinite(self, outcome: StepOutcome, config: StageConfig) -> None:
        if self.nonfinite_in_a_row > config.max_nonfinite_in_a_row:
            limit = f"{self.nonfinite_in_a_row} steps in a row, more than max_nonfinite_in_a_row"
            allowed = config.max_nonfinite_in_a_row
        elif self.nonfinite > config.max_nonfinite:
            limit, allowed = f"{self.nonfinite} steps so far, more than max_nonfinite", config.max_nonfinite
        else:
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in outcome.values.items())
        raise TrainingError(
            f"step {self.step}: loss or gradient is not finite (loss {outcome.loss:.4g} from {values}; "
            f"gradient norm {outcome.gradient_norm:.4g}), as in {limit} ({allowed}); lower learning_rate, "
            f"set gradient_clip_norm, or use precision float32; the log names the pairs of each such step"
        )

    def _check_unreadable(self, config: StageConfig) -> None:
        share = self.unreadable / max(self.drawn, _SMALL_SAMPLE)
        if self.unreadable and share > config.max_unreadable_share:
            raise TrainingError(
                f"step {self.step}: {self.unreadable} of {self.drawn} pairs cannot be read, more than "
                f"max_unreadable_share ({config.max_unreadable_share:g}); the log names them; repair the "
                f"dataset or raise the share"
            )

    def take_means(self) -> dict[str, float]:
        """Means since the last call, over the steps in which a value was finite; forgets these steps."""
        names = list(dict.fromkeys(name for values in self.pending for name in values))
        means = {}
        for name in names:
            finite = [values[name] for values in self.pending if math.isfinite(values.get(name, math.nan))]
            if finite:
                means[name] = math.fsum(finite) / len(finite)
        self.pending = []
        return means

    def note_metric(self, metric: float, *, higher_is_better: bool) -> bool:
        """Record a validation at the current step. True if the best so far; the first of equals stays."""
        if self.step == 0:
            self.metric_initial = metric
        best = self.best_metric
        is_better = best is None or (metric > best if higher_is_better else metric < best)
        if math.isfinite(metric) and is_better:
            self.best_step, self.best_metric, self.validations_since_best = self.step, metric, 0
            return True
        self.validations_since_best += 1
        return False
