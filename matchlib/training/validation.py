"""Figures of the model on pairs it does not learn from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from matchlib.errors import TrainingError
from matchlib.methods.spec import StageSpec
from matchlib.randomness import address_seed
from matchlib.training.distributed import gather_objects
from matchlib.training.loading import BatchStream
from matchlib.training.pictures import Picture
from matchlib.training.types import TrainableModel, as_module


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """One validation.

    figures:    means over all pairs by name (a NaN, for a pair that has no such figure, is left out), equal on
                all ranks
    pictures:   of this rank's first pair, empty unless asked for
    unreadable: messages about this rank's pairs that cannot be read
    drawing_s:  seconds that the drawing of the pictures took
    """

    figures: Mapping[str, float]
    pictures: Mapping[str, Picture]
    unreadable: tuple[str, ...]
    drawing_s: float


class Validation:
    """The same pairs every time, shared by the ranks, read ahead while the training goes on.

    stream:  this rank's `batches` batches, again and again
    """

    def __init__(
        self, stream: BatchStream, batches: int, *, spec: StageSpec, place: torch.device, seed: int
    ) -> None:
        self._stream, self._batches, self._spec = stream, batches, spec
        self._place, self._seed = place, seed

    def run(self, model: TrainableModel, *, autocast: torch.autocast, draw: bool) -> ValidationResult:
        """Validate once, in evaluation mode. Raises TrainingError if the stage's metric is not among the figures."""
        sums: dict[str, tuple[float, int]] = {}
        pictures: Mapping[str, Picture] = {}
        unreadable: list[str] = []
        drawing_s = 0.0
        torch.manual_seed(address_seed(self._seed, "validation", "torch"))
        as_module(model).eval()
        with torch.no_grad(), autocast:
            for number in range(self._batches):
                loaded = self._stream.next()
                unreadable += loaded.unreadable
                batch = loaded.batch.to(self._place, non_blocking=True)
                _add(sums, model.validation_step(batch), len(batch))
                if draw and number == 0:
                    started = time.monotonic()
                    pictures = model.pictures(batch)
                    drawing_s = time.monotonic() - started
        figures = _means(gather_objects(sums))
        if self._spec.metric not in figures:
            raise TrainingError(
                f"validation: the metric '{self._spec.metric}' is not among the figures with a value "
                f"({', '.join(sorted(figures)) or 'none'}); check validation pairs and the stage's `metric`"
            )
        return ValidationResult(
            figures=figures, pictures=pictures, unreadable=tuple(unreadable), drawing_s=drawing_s
        )


def _add(sums: dict[str, tuple[float, int]], figures: Mapping[str, float], pairs: int) -> None:
    for name, figure in figures.items():
        total, count = sums.get(name, (0.0, 0))
        is_defined = math.isfinite(figure)
        sums[name] = (total + pairs * float(figure), count + pairs) if is_defined else (total, count)


def _means(parts: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
    means = {}
    for name in sorted({name for part in parts for name in part}):
        values = [part[name] for part in parts if name in part]
        count = sum(pairs for _, pairs in values)
        if count:
            means[name] = math.fsum(total for total, _ in values) / count
    return means
