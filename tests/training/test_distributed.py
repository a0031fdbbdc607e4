from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_training import CONFIG, train_toy

from matchlib.errors import ConfigError
from matchlib.training import distributed
from matchlib.training.history import read_history
from matchlib.training.launch import torchrun_command
from matchlib.training.signals import EXIT_INTERRUPTED

SCRIPT = Path(__file__).with_name("toy_training.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def test_two_processes_follow_the_loss_curve_of_one_and_stop_together(tmp_path: Path) -> None:
    out = tmp_path / "two"
    command = torchrun_command([str(SCRIPT), "--out", str(out)], processes=2)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    train_toy(tmp_path / "one")
    one, two = (read_history(tmp_path / name / "history.jsonl") for name in ("one", "two"))
    assert [(x.step, x.split, list(x.values)) for x in two] == [
        (x.step, x.split, list(x.values)) for x in one
    ]
    for ours, theirs in zip(two, one, strict=True):
        expected = list(theirs.values.values())
        np.testing.assert_allclose(list(ours.values.values()), expected, rtol=1e-4, atol=1e-7)
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-6)


def test_run_processes_passes_sigterm_on_and_every_rank_leaves_a_resumable_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(SCRIPT), "--out", str(out), "--steps", "5000", "--delay", "0.02"]
    call = f"run_processes({arguments}, processes=2)"
    code = f"import sys; from matchlib.training.launch import run_processes; sys.exit({call})"
    with subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 60
        while not list((out / "work/checkpoints").glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == EXIT_INTERRUPTED
    assert len(list((out / "work/checkpoints").glob("step-*/state.json"))) == 1
    assert not (out / "lease.json").exists()


def test_a_batch_that_cannot_be_shared_equally_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matchlib.training.train.world_size", lambda: 3)
    with pytest.raises(
        ConfigError, match="batch_size: expected a multiple of the 3 processes that train, got 4"
    ):
        train_toy(tmp_path, replace(CONFIG, steps=1))


def test_one_process_is_its_own_world() -> None:
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.gather_objects("x") == ["x"]
    assert distributed.share_object({"a": 1}) == {"a": 1}
    distributed.barrier()
