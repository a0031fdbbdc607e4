"""Pictures of a training from one weights file: any method's, as the command draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from matchlib.cli import main
from matchlib.config import method_settings
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError
from matchlib.jobs import pictures
from matchlib.jobs.training import TrainingJob, write_training_job
from matchlib.methods.spec import METHODS
from matchlib.methods.superpoint.training import build
from matchlib.training.checkpoint import save_weights
from matchlib.training.config import StageConfig

SETTINGS: dict[str, Any] = {
    "network": {"variant": "small"},
    "training": {"shapes": {"draw_size": [80, 64]}},
}
JOB = TrainingJob(
    run="demo",
    method="superpoint",
    stage="shapes",
    seed=3,
    settings=SETTINGS,
    config=StageConfig(steps=1, image_size=(80, 64)),
)


def weights(path: Path, stage: str = "shapes", settings: dict[str, Any] = SETTINGS) -> Path:
    """Untrained weights as a finished stage leaves them."""
    model = build(method_settings(METHODS.get("superpoint"), settings, "settings"), stage, 0)
    about = {"stage": "demo/" + stage, "manifest": {"method": "superpoint", "stage": stage}}
    save_weights(path, model.state_dict(), about=about)
    return path


def test_the_command_draws_what_the_trainer_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_training_job(JOB, tmp_path / "shapes.job.json")
    file, out = weights(tmp_path / "weights.safetensors"), tmp_path / "out"
    command = ["training-pictures", str(tmp_path / "shapes.job.json"), "--weights", str(file)]
    assert main([*command, "--out", str(out), "--pairs", "2", "--device", "cpu"]) == 0
    assert "pictures of 2 pairs" in capsys.readouterr().out
    told = json.loads((out / "figures.json").read_text())
    assert len(told["pairs"]) == 2 and told["weights"] == str(file)
    for folder, figures in told["pairs"].items():
        assert 0 <= figures["detection_ap"] <= 1
        assert {path.name for path in (out / folder).iterdir()} == {"samples.png", "detections.png"}
        assert read_image(out / folder / "samples.png").shape[2] == 3
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([*command, "--out", str(out), "--pairs", "2", "--device", "cpu"]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first


def test_a_checkpoint_will_do(tmp_path: Path) -> None:
    model = build(method_settings(METHODS.get("superpoint"), SETTINGS, "settings"), "shapes", 1)
    file = tmp_path / "step-00000001" / "model.safetensors"
    save_weights(file, model.state_dict(), about={})
    assert pictures.draw_training_pictures(JOB, file, tmp_path / "out", pairs=1, device="cpu") == 1


def test_pairs_are_the_first_of_the_trainers_validation(tmp_path: Path) -> None:
    from matchlib.training.sampler import validation_batches

    two = list(pictures._validation_batches(JOB, 2))
    many = validation_batches(count=10**6, pairs=2, seed=JOB.seed, batch_size=2, rank=0, world_size=1)
    assert len(many) == 1 and len(two) == 2 and two[0].names != two[1].names
    three = list(pictures._validation_batches(JOB, 3))
    assert [batch.names for batch in three[:2]] == [batch.names for batch in two]


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    def draw(file: Path, job: TrainingJob = JOB, pairs: int = 1) -> None:
        pictures.draw_training_pictures(job, file, tmp_path / "out", pairs=pairs, device="cpu")

    other = weights(tmp_path / "other.safetensors", stage="magicpoint")
    with pytest.raises(
        DataError, match="expected weights of superpoint/shapes, got those of superpoint/magicpoint"
    ):
        draw(other)
    large = weights(tmp_path / "large.safetensors", settings={})
    with pytest.raises(DataError, match=r"expected weights of superpoint/shapes .*first difference: .*shape"):
        draw(large)
    with pytest.raises(DataError, match=r"missing.safetensors: expected a safetensors file"):
        draw(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(Exception, match=r"text.safetensors: expected a safetensors file"):
        draw(tmp_path / "text.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(DataError, match="is missing"):
        draw(tmp_path / "empty.safetensors")
    with pytest.raises(ConfigError, match="pairs: expected at least 1, got 0"):
        draw(weights(tmp_path / "good.safetensors"), pairs=0)
    assert not (tmp_path / "out").exists()


def test_jobs_that_cannot_be_drawn_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    file = weights(tmp_path / "weights.safetensors")
    for job, message in (
        (
            replace(JOB, stage="desc"),
            r"unknown stage 'desc' of superpoint \(known: shapes, magicpoint, superpoint\)",
        ),
        (replace(JOB, method="sift", settings={}), r"unknown stage 'shapes' of sift \(known: none\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            pictures.draw_training_pictures(job, file, tmp_path / "out", pairs=1, device="cpu")
    monkeypatch.setattr(pictures, "pairs_of", lambda *_: None)
    with pytest.raises(DataError, match=r"demo/shapes: expected a job with validation pairs, got none"):
        pictures.draw_training_pictures(JOB, file, tmp_path / "out", pairs=1, device="cpu")
