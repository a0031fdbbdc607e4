"""Figures of the model on pairs it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from matchlib.errors import TrainingError
from matchlib.methods.spec import StageSpec
from matchlib.randomness import address_seed
from matchlib.training.distributed import gather_objects
from matchlib.training.loading import BatchStream
from matchlib.training.types import TrainableModel, as_module

Picture = npt.NDArray[np.uint8]


class Validation:
    """The same pairs every time, shared by the ranks, read ahead while the training goes on.

    stream:  this rank's `batches` batches, again and again
    """

    def __init__(
        self, stream: BatchStream, batches: int, *, spec: StageSpec, place: torch.device, seed: int
    ) -> None:
        self._stream, self._batches, self._spec = stream, batches, spec
        self._place, self._seed = place, seed

    def run(
        self, model: TrainableModel, *, autocast: torch.autocast, draw: bool
    ) -> tuple[dict[str, float], Mapping[str, Picture], tuple[str, ...]]:
        """Validate once, in evaluation mode.

        Returns the means over all pairs by name (a NaN, for a pair that has no such figure, is left out), the
        pictures of this rank's first pair if `draw`, and messages about pairs that cannot be read.
        Raises TrainingError if the stage's metric is not among the figures.
        """
        sums: dict[str, tuple[float, int]] = {}
        pictures: Mapping[str, Picture] = {}
        unreadable: list[str] = []
        torch.manual_seed(address_seed(self._seed, "validation", "torch"))
        as_module(model).eval()
        with torch.no_grad(), autocast:
            for number in range(self._batches):
                loaded = self._stream.next()
                unreadable += loaded.unreadable
                batch = loaded.batch.to(self._place, non_blocking=True)
                _add(sums, model.validation_step(batch), len(batch))
                if draw and number == 0:
                    pictures = model.pictures(batch)
        figures = _means(gather_objects(sums))
        if self._spec.metric not in figures:
            raise TrainingError(
                f"validation: the metric '{self._spec.metric}' is not among the figures with a value "
                f"({', '.join(sorted(figures)) or 'none'}); check validation pairs and the stage's `metric`"
            )
        return figures, pictures, tuple(unreadable)


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
