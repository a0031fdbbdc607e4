from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from toy_training import ToyModel

from matchlib.completion import digest_file
from matchlib.errors import TrainingError
from matchlib.training.checkpoint import load_checkpoint, read_about, recover, save_checkpoint, save_weights
from matchlib.training.state import TrainState

IDENTITY = {"seed": 1, "config": {"learning_rate": 0.1, "betas": (0.9, 0.999)}, "train_pairs": "abc"}


def _save(folder: Path, step: int) -> Path:
    return save_checkpoint(
        folder,
        state=TrainState(step=step, best_metric=0.25, pending=[{"loss": 0.1, "figure/x": float("nan")}]),
        model=ToyModel(seed=step).state_dict(),
        stepper={"optimiser": {"momentum": torch.arange(3.0), "lr": 0.1}, "scaler": {}},
        identity=IDENTITY,
        environment={"threads": 1},
    )


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(_save(tmp_path, 7), identity=IDENTITY)
    assert checkpoint.state.step == 7
    assert repr(checkpoint.state) == repr(TrainState.from_json(checkpoint.state.to_json()))
    for name, tensor in ToyModel(seed=7).state_dict().items():
        assert torch.equal(checkpoint.model[name], tensor)
    assert torch.equal(checkpoint.stepper["optimiser"]["momentum"], torch.arange(3.0))
    assert checkpoint.environment == {"threads": 1}


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        _save(tmp_path, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty state", "no state"])
def test_a_torn_checkpoint_is_never_loaded_the_one_before_is(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 1)
    os.rename(tmp_path / "step-00000001", tmp_path / "aside")
    torn = _save(tmp_path, 2)
    os.rename(tmp_path / "aside", tmp_path / "step-00000001")
    weights = torn / "model.safetensors"
    data = weights.read_bytes()
    match damage:
        case "truncate":
            weights.write_bytes(data[:-10])
        case "flip":
            weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "remove":
            weights.unlink()
        case "empty state":
            (torn / "state.json").write_text("")
        case "no state":
            (torn / "state.json").unlink()
    (tmp_path / ".tmp-step-00000003").mkdir()
    assert recover(tmp_path) == tmp_path / "step-00000001"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert recover(tmp_path / "checkpoints") is None


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        ({**IDENTITY, "seed": 2}, r"seed: expected 2, got 1"),
        (
            {**IDENTITY, "config": {"learning_rate": 0.2, "betas": (0.9, 0.999)}},
            r"config\.learning_rate: expected 0\.2, got 0\.1",
        ),
        ({**IDENTITY, "train_pairs": "other"}, r"train_pairs: expected 'other', got 'abc'"),
        ({**IDENTITY, "more": 1}, r"more: expected 1, got nothing"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_differing_key(
    tmp_path: Path, identity: dict[str, object], key: str
) -> None:
    with pytest.raises(TrainingError, match=key):
        load_checkpoint(_save(tmp_path, 1), identity=identity)


def test_equal_weights_give_equal_bytes_and_carry_their_description(tmp_path: Path) -> None:
    about = {"z": 1, "manifest": {"method": "toy", "b": [1, 2]}, "step": 4}
    for name in ("a", "b"):
        save_weights(tmp_path / name, ToyModel().state_dict(), about=about)
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "b")
    assert read_about(tmp_path / "a") == about


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense", b"PK\x03\x04" * 10])
def test_a_file_that_is_no_safetensors_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="expected a safetensors file"):
        read_about(path)


def test_optimiser_state_is_never_unpickled(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    torch.save({"optimiser": Path("evil")}, path / "optimiser.pt")
    with pytest.raises(Exception, match="weights_only|Weights only|Unsupported"):
        load_checkpoint(path, identity=IDENTITY)
