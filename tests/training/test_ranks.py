"""What two ranks share and what they do not: one start of `rank_scenarios.py`, looked at from many sides."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_scenarios import QUIET, OwnStatistics
from safetensors.torch import load_file
from toy_training import CONFIG, ToySource, train_toy

from matchlib.errors import TrainingError
from matchlib.training.history import read_history
from matchlib.training.launch import available_cores, shared_environment, torchrun_command
from matchlib.training.message import SLOTS, pack, unpack
from matchlib.training.replicas import averaged_statistics, own_statistics, restore_statistics
from matchlib.training.sampler import AddressedSampler
from matchlib.training.signals import EXIT_INTERRUPTED
from matchlib.training.train import _crowding

SCRIPT = Path(__file__).with_name("rank_scenarios.py")


def _run(folder: Path, *options: str, processes: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = torchrun_command([str(SCRIPT), "--out", str(folder), *options], processes=processes)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    _run(folder, processes=2)
    return folder


@pytest.fixture(scope="module")
def ranks(out: Path) -> list[dict[str, Any]]:
    return [torch.load(out / f"rank{number}.pt", weights_only=False) for number in (0, 1)]


def test_a_step_exchanges_gradients_and_nothing_else(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        steps = found["count_collectives"]["steps"]
        assert len(steps) == QUIET.steps
        assert all(step["calls"] == Counter() for step in steps)
        assert steps[0]["backend"]["gloo:all_reduce"] == 2  # one pass before it, so that buckets settle
        for step in steps[1:]:
            assert step["backend"] == {"gloo:all_reduce": 1}  # the toy has one bucket of gradients


def test_the_pairs_are_divided_and_none_is_loaded_twice(ranks: list[dict[str, Any]]) -> None:
    share = QUIET.batch_size // 2
    sampler = AddressedSampler(count=len(ToySource()), seed=3)
    order = [sampler.at(position).index for position in range(QUIET.steps * QUIET.batch_size)]
    for number, found in enumerate(ranks):
        loaded = found["count_collectives"]["loaded"]
        assert len(loaded) == QUIET.steps * share
        expected = np.reshape(order, (QUIET.steps, 2, share))[:, number].ravel()
        assert loaded == expected.tolist()


def test_a_nan_on_one_rank_changes_nothing_on_both(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        seen = found["nan_on_rank_one"]["seen"]
        assert found["nan_on_rank_one"]["nonfinite"] == 1
        for name in seen[3]:
            assert torch.equal(seen[4][name], seen[3][name]), name
            assert torch.equal(seen[1][name], seen[0][name]), name  # nor does the pass that is forgotten
        assert not torch.equal(seen[5]["output.weight"], seen[4]["output.weight"])
    weights = [found["nan_on_rank_one"]["seen"][-1] for found in ranks]
    assert torch.equal(weights[0]["output.weight"], weights[1]["output.weight"])
    assert not torch.equal(weights[0]["norm.running_mean"], weights[1]["norm.running_mean"])


def test_a_wish_of_rank_one_stops_both_after_the_step_in_hand(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["stop_on_rank_one"]["code"] == EXIT_INTERRUPTED
        assert found["stop_on_rank_one"]["checkpoint"] == "step-00000005"


def test_statistics_of_each_rank_are_resumed_bit_for_bit(out: Path, ranks: list[dict[str, Any]]) -> None:
    first, second = ranks[0]["stop_on_rank_one"]["statistics"]
    assert not torch.equal(first["norm.running_var"], second["norm.running_var"])
    whole = (out / "whole/.complete").read_bytes()
    assert (out / "parts/.complete").read_bytes() == whole
    assert (out / "often/.complete").read_bytes() == whole  # nor does it matter how often one saves


def test_three_ranks_add_in_the_same_order_after_a_stop(tmp_path: Path) -> None:
    _run(tmp_path, "--only", "stop_and_resume_wide", processes=3)
    assert (tmp_path / "parts/.complete").read_bytes() == (tmp_path / "whole/.complete").read_bytes()


def test_two_ranks_give_what_one_process_gives(out: Path, tmp_path: Path) -> None:
    train_toy(tmp_path, CONFIG, model=OwnStatistics(frozen=True))
    one, two = read_history(tmp_path / "history.jsonl"), read_history(out / "frozen/history.jsonl")
    assert [(row.step, row.split, list(row.values)) for row in one] == [
        (row.step, row.split, list(row.values)) for row in two
    ]
    for theirs, ours in zip(one, two, strict=True):
        np.testing.assert_allclose(list(ours.values.values()), list(theirs.values.values()), rtol=2e-5)
    last = load_file(out / "frozen/last.safetensors")
    for name, tensor in load_file(tmp_path / "last.safetensors").items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-5, atol=1e-6)


def test_looked_at_a_model_has_the_mean_of_the_statistics(ranks: list[dict[str, Any]]) -> None:
    for found in (part["statistics"] for part in ranks):
        torch.testing.assert_close(found["mean"], torch.tensor([0.6, 0.7, 0.8, 1.2]))
        assert torch.equal(found["equal"], torch.ones(4))
        assert torch.equal(found["after"], found["own"])


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("unconnected", "no gradient reaches 'spare.weight' (2 such parameters)"),
        ("names", "the processes have different losses, this one regression, size"),
        ("drift", "'output.bias' differs between the training processes (1 parameters do)"),
        ("counter", "buffer 'norm.num_batches_tracked' (torch.int64) differs"),
    ],
)
def test_faults_are_named_on_both_ranks(ranks: list[dict[str, Any]], fault: str, text: str) -> None:
    for found in ranks:
        assert text in found["faults"][fault]


# ---------------------------------------------------------------- without processes
@pytest.mark.parametrize("ranks_count", [1, 2, 3, 7])
def test_a_message_is_read_as_it_was_written(ranks_count: int) -> None:
    parts = []
    for number in range(ranks_count):
        losses = {"a": torch.tensor(float(number)), "figure/b": torch.tensor(float("nan"))}
        parts.append(pack(losses, drawn=5 + number, unreadable=number, stop=number == 1))
    mean = (torch.stack(parts) / ranks_count).sum(dim=0)  # as the exchange of gradients does it
    assert mean.shape == (SLOTS,)
    report = unpack(mean.tolist(), ("a", "figure/b"), ranks=ranks_count)
    assert report.values["a"] == pytest.approx((ranks_count - 1) / 2)
    assert np.isnan(report.values["figure/b"])
    assert report.drawn == sum(5 + number for number in range(ranks_count))
    assert report.unreadable == sum(range(ranks_count))
    assert report.stop == (ranks_count > 1)
    with pytest.raises(TrainingError, match="different losses, this one a, b"):
        unpack(mean.tolist(), ("a", "b"), ranks=ranks_count)


def test_more_losses_than_a_message_holds_are_refused() -> None:
    losses = {str(number): torch.zeros(()) for number in range(SLOTS)}
    with pytest.raises(TrainingError, match="at most 60 losses and figures, got 64"):
        pack(losses, drawn=1, unreadable=0, stop=False)


def test_alone_a_process_has_nothing_to_average() -> None:
    model = OwnStatistics()
    before = model.norm.running_mean
    with averaged_statistics(model):
        assert model.norm.running_mean is before
    assert own_statistics(model) == []
    restore_statistics(model, [{"norm.running_mean": torch.ones(4)}] * 2)  # of a run of two: the means stay
    assert torch.equal(model.norm.running_mean, torch.zeros(4))


@pytest.mark.parametrize(
    ("before", "processes", "cores", "threads"),
    [(None, 2, 8, "4"), ("16", 2, 8, "4"), ("1", 2, 8, "1"), ("many", 3, 2, "1"), ("0", 1, 2, "2")],
)
def test_processes_share_the_cores(before: str | None, processes: int, cores: int, threads: str) -> None:
    environment = {"PATH": "x"} if before is None else {"PATH": "x", "OMP_NUM_THREADS": before}
    shared = shared_environment(environment, processes=processes, cores=cores)
    assert shared == {"PATH": "x", "OMP_NUM_THREADS": threads}
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_more_readers_than_cores_are_noted_with_the_numbers() -> None:
    assert _crowding(4, processes=2, cores=8) is None
    text = _crowding(6, processes=4, cores=8)
    assert text is not None
    assert "workers: 6 for each of 4 training processes make 24 reading processes on 8 cores" in text
    assert "try workers: 2" in text
