from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter

from matchlib.errors import ConfigError
from matchlib.training.config import OPERATIONAL_KEYS, StageConfig, result_settings
from matchlib.training.schedule import learning_rate_at


def test_the_published_schedule_falls_tenfold_in_200_000_steps_continuously() -> None:
    config = StageConfig(steps=400_000)
    assert learning_rate_at(config, 0) == pytest.approx(0.1)
    assert learning_rate_at(config, 200_000) == pytest.approx(0.01)
    assert learning_rate_at(config, 400_000) == pytest.approx(0.001)
    assert learning_rate_at(config, 100_000) == pytest.approx(0.1 / math.sqrt(10))
    assert learning_rate_at(config, 1) < learning_rate_at(config, 0)


def test_cosine_and_constant_schedules() -> None:
    cosine = StageConfig(steps=100, schedule="cosine", learning_rate=2.0)
    assert [learning_rate_at(cosine, step) for step in (0, 50, 100)] == pytest.approx(
        [2.0, 1.0, 0.0], abs=1e-12
    )
    constant = StageConfig(steps=100, schedule="constant", learning_rate=2.0)
    assert {learning_rate_at(constant, step) for step in range(100)} == {2.0}


def test_the_step_schedule_is_torchs_step_lr() -> None:
    config = StageConfig(steps=100, schedule="step", learning_rate=2.0, gamma=0.3, decay_steps=7)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=2.0)
    oracle = torch.optim.lr_scheduler.StepLR(optimiser, step_size=7, gamma=0.3)
    for step in range(30):
        assert learning_rate_at(config, step) == pytest.approx(oracle.get_last_lr()[0])
        optimiser.step()
        oracle.step()


def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone() -> None:
    config = StageConfig(steps=100, schedule="constant", learning_rate=1.0, warmup_steps=4)
    assert [learning_rate_at(config, step) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"momentum": 1.0},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -1e-4},
        {"gamma": 0.0},
        {"warmup_steps": 11},
        {"gradient_clip_norm": 0.0},
        {"early_stop_after": 0},
        {"workers": -1},
        {"max_unreadable_share": 1.5},
    ],
)
def test_impossible_values_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: expected .*, got "):
        StageConfig(**{"steps": 10, **wrong})  # type: ignore[arg-type]


def test_a_config_survives_json_and_unknown_choices_do_not() -> None:
    adapter = TypeAdapter(StageConfig)
    config = StageConfig(steps=7, optimiser="adam", betas=(0.8, 0.9), gradient_clip_norm=1.0)
    assert adapter.validate_json(adapter.dump_json(config)) == config
    with pytest.raises(ValueError, match="precision"):
        adapter.validate_python({"steps": 7, "precision": "float8"})


def test_result_settings_leave_out_only_what_cannot_change_the_result() -> None:
    names = {field.name for field in dataclasses.fields(StageConfig)}
    assert set(result_settings(StageConfig(steps=1))) == names - OPERATIONAL_KEYS
    assert OPERATIONAL_KEYS <= names


def test_the_graph_can_read_the_settings_without_torch() -> None:
    code = (
        "import sys, matchlib.training.config, matchlib.training.schedule; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
