from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy_training import CONFIG, ToyModel, ToySource, train_toy

from matchlib.errors import TrainingError
from matchlib.training.history import append_line, read_history, truncate_after
from matchlib.training.signals import EXIT_INTERRUPTED, StopRequest

SCRIPT = Path(__file__).with_name("toy_training.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize(("workers", "kills"), [(0, 10), (2, 6)])
def test_killed_at_random_moments_a_run_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, workers: int, kills: int
) -> None:
    options = ["--workers", str(workers), "--delay", "0.004", "--steps", "100", "--kills", str(kills)]
    command = [sys.executable, SCRIPT, *options, "--out", tmp_path / "killed"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    train_toy(tmp_path / "whole", replace(CONFIG, workers=workers, steps=100), model=ToyModel(dropout=0.2))
    assert (tmp_path / "killed/.complete").read_bytes() == (tmp_path / "whole/.complete").read_bytes()
    assert not (tmp_path / "killed/work").exists()


@pytest.mark.parametrize("culprit", ["save_weights", "atomic_write_json", "write_marker", "close_work"])
def test_killed_while_the_result_is_put_together_it_is_put_together_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(f"matchlib.training.outputs.{culprit}", die)
        train_toy(tmp_path / "killed")
    assert (tmp_path / "killed/work").exists()
    assert (tmp_path / "killed/.complete").exists() == (culprit == "close_work")
    train_toy(tmp_path / "killed")
    assert not (tmp_path / "killed/work").exists()
    train_toy(tmp_path / "whole")
    assert (tmp_path / "killed/.complete").read_bytes() == (tmp_path / "whole/.complete").read_bytes()


@pytest.mark.parametrize("moment", range(1, 24, 5))
def test_stopped_after_any_step_a_run_continues_bit_for_bit(tmp_path: Path, moment: int) -> None:
    config = replace(CONFIG, checkpoint_every=1000)
    calls = iter(range(1000))
    with pytest.raises(SystemExit) as stopped:
        train_toy(
            tmp_path / "parts", config, stop=lambda: next(calls) == moment - 1, model=ToyModel(dropout=0.2)
        )
    assert stopped.value.code == EXIT_INTERRUPTED
    assert not (tmp_path / "parts/.complete").exists()
    assert not (tmp_path / "parts/lease.json").exists()
    checkpoints = [path.name for path in (tmp_path / "parts/work/checkpoints").iterdir()]
    assert checkpoints == [f"step-{moment:08d}"]
    train_toy(tmp_path / "parts", config, model=ToyModel(dropout=0.2, seed=8))  # other new weights
    train_toy(tmp_path / "whole", config, model=ToyModel(dropout=0.2))
    for name in json.loads((tmp_path / "whole/.complete").read_text())["files"]:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_sigterm_finishes_the_step_saves_and_exits_75(tmp_path: Path) -> None:
    def signal_once(calls: list[int] = []) -> bool:  # noqa: B006  counts its calls
        calls.append(0)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    with pytest.raises(SystemExit) as stopped:
        train_toy(tmp_path, stop=signal_once)
    assert stopped.value.code == EXIT_INTERRUPTED
    assert [path.name for path in (tmp_path / "work/checkpoints").iterdir()] == ["step-00000008"]
    assert not (tmp_path / "lease.json").exists()


def test_ctrl_c_reaches_the_workers_too_and_still_the_step_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, SCRIPT, "--out", out, "--steps", "4000", "--workers", "1", "--delay", "0.01"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not list((out / "work/checkpoints").glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == EXIT_INTERRUPTED, process.stderr.read().decode()  # type: ignore[union-attr]
    state = json.loads(next((out / "work/checkpoints").glob("step-*/state.json")).read_text())["state"]
    assert 0 < state["step"] < 4000
    assert not (out / "lease.json").exists()
    assert max(line.step for line in read_history(out / "work/history.jsonl")) <= state["step"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(CONFIG, learning_rate=0.05)}, r"config\.learning_rate: expected 0\.05, got 0\.1"),
        ({"train_pairs": ToySource(digest="other")}, r"train_pairs: expected 'other', got 'toy'"),
        ({"seed": 4}, r"seed: expected 4, got 3"),
        ({"manifest": {"method": "x"}}, r"manifest\.method: expected 'x', got 'toy'"),
    ],
)
def test_a_run_does_not_continue_another_one(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(SystemExit):
        train_toy(tmp_path, stop=lambda: True)
    with pytest.raises(TrainingError, match=message):
        train_toy(tmp_path, **change)  # type: ignore[arg-type]


def test_operational_settings_may_change_on_resuming_and_another_fingerprint_starts_anew(
    tmp_path: Path,
) -> None:
    with pytest.raises(SystemExit):
        train_toy(tmp_path / "a", stop=lambda: True)
    train_toy(tmp_path / "a", replace(CONFIG, workers=1, checkpoint_every=3))
    assert "resumed at step 1" in (tmp_path / "a/train.log").read_text()
    with pytest.raises(SystemExit):
        train_toy(tmp_path / "b", stop=lambda: True)
    train_toy(tmp_path / "b", replace(CONFIG, learning_rate=0.05), fingerprint="1" * 64)
    assert "resumed" not in (tmp_path / "b/train.log").read_text()


def test_another_environment_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train_toy(tmp_path, stop=lambda: True)
    path = next((tmp_path / "work/checkpoints").glob("step-*/state.json"))
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 64'))
    train_toy(tmp_path)
    assert "threads was 64, is 1: the run goes on, but no longer bit for bit" in caplog.text


def test_a_checkpoint_torn_by_a_power_cut_costs_steps_not_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train_toy(tmp_path / "torn", stop=lambda: True)
    weights = next((tmp_path / "torn/work/checkpoints").glob("step-*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    train_toy(tmp_path / "torn")
    train_toy(tmp_path / "whole")
    assert (tmp_path / "torn/.complete").read_bytes() == (tmp_path / "whole/.complete").read_bytes()


def test_history_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for step in (0, 5, 10):
        append_line(path, step=step, split="train", values={"loss": 1.0 / (step + 1)})
    with open(path, "a") as stream:
        stream.write('{"step": 12, "spl')
    truncate_after(path, 7)
    assert [line.step for line in read_history(path)] == [0, 5]
    truncate_after(path, -1)
    assert read_history(path) == ()
    truncate_after(tmp_path / "none", 3)


def test_handlers_come_back_and_a_second_interrupt_is_immediate() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as request:
        assert not request.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert request.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before
