"""The learning rate as a closed form of the step: nothing to save, nothing to replay."""

from __future__ import annotations

import math

from matchlib.training.config import StageConfig


def learning_rate_at(config: StageConfig, step: int) -> float:
    """Learning rate of the update that follows `step` finished updates (0 for the first).

    exponential: lr * gamma^(step / decay_steps), continuous, not in stairs
    step:        lr * gamma^floor(step / decay_steps), in stairs (torch's StepLR, counted in steps)
    cosine:      lr * (1 + cos(pi * step / steps)) / 2
    constant:    lr
    The first `warmup_steps` updates are further scaled by 1/warmup, 2/warmup, ... 1.
    """
    factor: float
    if config.schedule == "exponential":
        factor = config.gamma ** (step / config.decay_steps)
    elif config.schedule == "step":
        factor = config.gamma ** (step // config.decay_steps)
    elif config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0)))
    else:
        factor = 1.0
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * factor * warmup
