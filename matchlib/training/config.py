"""Settings of one training stage. No torch here: the graph reads this module."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from matchlib.errors import ConfigError

OPERATIONAL_KEYS = frozenset({"workers", "checkpoint_every", "picture_every"})
"""Settings that change how a run proceeds but not what it ends with: free to differ when a run is resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """How one stage is trained. Counts of pairs are global: they do not change with the number of GPUs.

    Raises ConfigError for values that cannot work.
    """

    steps: int
    """Optimiser updates (skipped non-finite steps count as steps)."""

    batch_size: int = 2
    """Pairs per step over all GPUs together; a multiple of their number."""

    image_size: int | tuple[int, int] = 480
    """Training images are resized to this size in pixels: one number for a square, or [width, height]."""

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    """Update rule; sgd uses `momentum`, adam and adamw use `betas`."""

    learning_rate: float = 0.1
    """Learning rate before the schedule and before the `lr_scale` of a parameter group."""

    momentum: float = 0.9
    """Momentum of sgd, 0 for none."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment of adam and adamw."""

    weight_decay: float = 1e-4
    """L2 penalty (sgd, adam) or decoupled decay (adamw), unless a parameter group has its own."""

    schedule: Literal["exponential", "step", "cosine", "constant"] = "exponential"
    """Factor on the learning rate at step s: exponential gamma^(s/decay_steps), step gamma^floor(s/decay_steps),
    cosine (1 + cos(pi s/steps))/2, constant 1."""

    gamma: float = 0.1
    """Schedules exponential and step: the factor reached after `decay_steps`."""

    decay_steps: int = 200_000
    """Steps in which the learning rate falls by `gamma`: exponential continuously, step at once at their end."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to the schedule, 0 for none."""

    gradient_clip_norm: float | None = None
    """Largest L2 norm of the whole gradient, null for no clipping."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of forward and backward; weights and optimiser stay float32. float16 scales the loss."""

    deterministic: bool = True
    """Prefer deterministic kernels, so that equal runs give equal bits; false may be faster on a GPU."""

    workers: int = 2
    """Processes that read pairs ahead, per GPU; 0 reads in the training process."""

    log_every: int = 20
    """Steps between two lines of progress; a line gives means over these steps."""

    validate_every: int = 1_000
    """Steps between two validations; there is one before the first step and one after the last."""

    validation_pairs: int = 64
    """Pairs per validation, drawn once and the same every time (all, if there are fewer)."""

    picture_every: int = 1
    """Pictures are drawn at every n-th validation, and at the last; 0 for the last only."""

    checkpoint_every: int = 1_000
    """Steps between two checkpoints, the work lost by a crash."""

    early_stop_after: int | None = None
    """Stop after this many validations without a better metric, null to never stop early."""

    max_nonfinite: int = 100
    """Steps with a NaN or infinite loss or gradient that are skipped before the run gives up."""

    max_nonfinite_in_a_row: int = 10
    """The same, in a row; the overflows by which float16 finds its loss scale count only here."""

    max_unreadable_share: float = 0.01
    """Share of unreadable pairs, 0 to 1, above which the run gives up; below, others take their place."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "decay_steps", "log_every", "validate_every"):
            _check(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        _check("image_size", self.image_size, "at least 1", min(self.image_width_height) >= 1)
        for name in ("validation_pairs", "checkpoint_every", "max_nonfinite_in_a_row"):
            _check(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("workers", "warmup_steps", "picture_every", "max_nonfinite", "weight_decay"):
            _check(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)
        for name in ("learning_rate", "gamma"):
            value = getattr(self, name)
            _check(name, value, "a finite value above 0", value > 0 and math.isfinite(value))
        for name, value in (("momentum", self.momentum), ("betas", self.betas[0]), ("betas", self.betas[1])):
            _check(name, value, "at least 0 and below 1", 0 <= value < 1)
        _check(
            "max_unreadable_share", self.max_unreadable_share, "0 to 1", 0 <= self.max_unreadable_share <= 1
        )
        _check(
            "warmup_steps",
            self.warmup_steps,
            f"at most steps ({self.steps})",
            self.warmup_steps <= self.steps,
        )
        if self.gradient_clip_norm is not None:
            _check(
                "gradient_clip_norm", self.gradient_clip_norm, "above 0 or null", self.gradient_clip_norm > 0
            )
        if self.early_stop_after is not None:
            _check(
                "early_stop_after", self.early_stop_after, "at least 1 or null", self.early_stop_after >= 1
            )

    @property
    def image_width_height(self) -> tuple[int, int]:
        """`image_size` as (width, height)."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


def result_settings(config: StageConfig) -> dict[str, Any]:
    """The settings that the result depends on, as a JSON value, for fingerprints and on resuming."""
    settings = dataclasses.asdict(config)
    settings["betas"] = list(config.betas)
    if not isinstance(config.image_size, int):
        settings["image_size"] = list(config.image_size)
    return {name: value for name, value in settings.items() if name not in OPERATIONAL_KEYS}


def _check(name: str, value: Any, expected: str, is_met: bool) -> None:
    if not is_met:
        raise ConfigError(f"{name}: expected {expected}, got {value}")
