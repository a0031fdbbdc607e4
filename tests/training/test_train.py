from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from toy_training import CONFIG, SPEC, ToyModel, ToySource, train_toy

from matchlib.completion import read_marker, verify_folder
from matchlib.datasets.batch import PairBatch
from matchlib.errors import ConfigError, DataError, TrainingError
from matchlib.methods.spec import StageSpec
from matchlib.training.checkpoint import read_about
from matchlib.training.history import read_history
from matchlib.training.schedule import learning_rate_at


def _values(out: Path, split: str, name: str) -> dict[int, float]:
    lines = read_history(out / "history.jsonl")
    return {x.step: x.values[name] for x in lines if x.split == split and name in x.values}


def test_a_finished_stage_has_all_its_files_and_a_marker_that_holds(tmp_path: Path) -> None:
    result = train_toy(tmp_path)
    assert verify_folder(tmp_path) == []
    marker = read_marker(tmp_path)
    assert marker is not None
    assert set(marker.files) == {
        "weights.safetensors",
        "last.safetensors",
        "initial.safetensors",
        "history.jsonl",
        "summary.json",
        "pictures/first_image.png",
        "pictures/score_map.png",
    }
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "lease.json").exists()
    assert result.step == 24
    assert result.metric_best < result.metric_initial / 3  # type: ignore[operator]
    assert read_about(tmp_path / "weights.safetensors")["manifest"] == {"method": "toy"}
    ToyModel().load_state_dict(load_file(tmp_path / "weights.safetensors"))


def test_the_first_step_is_plain_sgd_with_the_groups_own_settings(tmp_path: Path) -> None:
    source = ToySource(count=4)
    config = replace(CONFIG, steps=1, momentum=0.0, weight_decay=0.5, learning_rate=0.2)
    train_toy(tmp_path, config, train_pairs=source, validation_pairs=None)
    model = ToyModel()
    names = _logged_seeds(source)
    batch = PairBatch.stack([source.load(index, seed) for index, seed in names])
    losses = model.training_step(batch)
    (losses["regression"] + losses["size"]).backward()
    expected_hidden = model.hidden.weight - 0.5 * 0.2 * model.hidden.weight.grad  # type: ignore[operator]
    expected_output = model.output.weight - 0.2 * (model.output.weight.grad + 0.5 * model.output.weight)  # type: ignore[operator]
    last = load_file(tmp_path / "last.safetensors")
    torch.testing.assert_close(last["hidden.weight"], expected_hidden)
    torch.testing.assert_close(last["output.weight"], expected_output)
    assert torch.equal(load_file(tmp_path / "initial.safetensors")["output.weight"], ToyModel().output.weight)


def _logged_seeds(source: ToySource) -> list[tuple[int, int]]:
    from matchlib.training.sampler import AddressedSampler

    sampler = AddressedSampler(count=len(source), seed=3)
    return [(sampler.at(position).index, sampler.at(position).seed) for position in range(4)]


def test_history_has_each_interval_each_validation_and_no_times(tmp_path: Path) -> None:
    train_toy(tmp_path)
    assert list(_values(tmp_path, "train", "loss")) == [5, 10, 15, 20, 24]
    assert list(_values(tmp_path, "validation", "error")) == [0, 8, 16, 24]
    for step, rate in _values(tmp_path, "train", "learning_rate").items():
        assert rate == learning_rate_at(CONFIG, step - 1)
    losses, parts = _values(tmp_path, "train", "loss"), _values(tmp_path, "train", "regression")
    sizes = _values(tmp_path, "train", "size")
    for step, loss in losses.items():
        assert loss == pytest.approx(parts[step] + sizes[step])  # figures are logged, not minimised
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10, 15, 20, 24]
    assert events.Scalars("validation/error")[-1].value == pytest.approx(
        _values(tmp_path, "validation", "error")[24]
    )
    assert set(events.Tags()["images"]) == {"first image", "score/map"}


def test_equal_runs_give_equal_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        config = replace(CONFIG, workers=workers, checkpoint_every=4 + workers, picture_every=workers)
        train_toy(tmp_path / name, config, model=ToyModel(dropout=0.3))
    assert (tmp_path / "a/.complete").read_bytes() == (tmp_path / "b/.complete").read_bytes()


def test_training_leaves_the_global_state_of_torch_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    train_toy(tmp_path, replace(CONFIG, steps=2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_pictures_of_the_result_are_those_of_the_last_validation(tmp_path: Path) -> None:
    train_toy(tmp_path, replace(CONFIG, picture_every=0))
    picture = cv2.imread(str(tmp_path / "pictures/first_image.png"))
    assert picture is not None
    assert picture.shape == (8, 8, 3)
    mirrored = cv2.imread(str(tmp_path / "pictures/score_map.png"))
    np.testing.assert_array_equal(picture[:, ::-1], mirrored)


def test_a_picture_that_cannot_be_written_is_a_warning_not_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Grey(ToyModel):
        def pictures(self, batch: PairBatch) -> Mapping[str, np.ndarray]:
            return {"grey": np.zeros((4, 4), np.uint8), **super().pictures(batch)}

    result = train_toy(tmp_path, model=Grey())
    assert result.step == CONFIG.steps
    warnings = [record.message for record in caplog.records if "grey.png" in record.message]
    assert len(warnings) == 4  # one per validation
    assert "not written (ValueError: expected a picture (H, W, 3) of uint8, got (4, 4)" in warnings[0]
    assert warnings[0] in (tmp_path / "train.log").read_text()
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"first_image.png", "score_map.png"}
    assert verify_folder(tmp_path) == []


class Scripted(ToyModel):
    """Validation figures from a list, whatever the weights."""

    def __init__(self, figures: list[float]) -> None:
        super().__init__()
        self._figures = iter(figures)

    def validation_step(self, batch: PairBatch) -> Mapping[str, float]:
        return {"error": next(self._figures)}


@pytest.mark.parametrize(("direction", "best"), [("lower", 8), ("higher", 16)])
def test_best_weights_follow_the_metric_and_last_weights_are_the_last(
    tmp_path: Path, direction: str, best: int
) -> None:
    spec = StageSpec(needs="depth_pose", metric="error", metric_is_better=direction)
    config = replace(CONFIG, validation_pairs=4)  # one batch, so one figure per validation
    result = train_toy(tmp_path / "a", config, model=Scripted([3.0, 1.0, 5.0, 2.0]), spec=spec)
    assert result.best_step == best
    train_toy(tmp_path / "b", replace(config, steps=best), validation_pairs=None)
    chosen = load_file(tmp_path / "a/weights.safetensors")
    truth = load_file(tmp_path / "b/last.safetensors")
    assert all(torch.equal(chosen[name], truth[name]) for name in truth)
    last = load_file(tmp_path / "a/last.safetensors")
    assert not torch.equal(last["output.weight"], chosen["output.weight"])


def test_without_validation_the_last_weights_are_the_result(tmp_path: Path) -> None:
    result = train_toy(tmp_path, validation_pairs=None)
    assert (result.best_step, result.metric_best) == (24, None)
    chosen, last = load_file(tmp_path / "weights.safetensors"), load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(chosen[name], last[name]) for name in last)


def test_a_nan_metric_is_never_best_and_patience_ends_the_run(tmp_path: Path) -> None:
    config = replace(CONFIG, validation_pairs=4, validate_every=2, early_stop_after=2)
    result = train_toy(tmp_path, config, model=Scripted([3.0, 1.0, 2.0, 2.0]))
    assert (result.step, result.best_step, result.metric_best) == (6, 2, 1.0)
    with pytest.raises(TrainingError, match="metric 'error' is not among the figures"):
        train_toy(tmp_path / "nan", config, model=Scripted([math.nan]))


def test_validation_is_a_mean_over_pairs_not_over_batches(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, batch_size=4, validation_pairs=5)  # batches of 4 and of 1
    train_toy(tmp_path, config, model=Scripted([1.0, 6.0, 1.0, 6.0]))
    assert _values(tmp_path, "validation", "error")[0] == pytest.approx((4 * 1.0 + 6.0) / 5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes_exactly(tmp_path: Path, precision: str) -> None:
    config = replace(CONFIG, precision=precision, max_nonfinite_in_a_row=30)
    result = train_toy(tmp_path / "whole", config)
    assert result.metric_best < 0.6 * result.metric_initial  # type: ignore[operator]
    assert load_file(tmp_path / "whole/last.safetensors")["output.weight"].dtype == torch.float32
    steps = iter(range(100))
    with pytest.raises(SystemExit):
        train_toy(tmp_path / "parts", config, stop=lambda: next(steps) == 9)
    train_toy(tmp_path / "parts", config)
    assert (tmp_path / "parts/.complete").read_bytes() == (tmp_path / "whole/.complete").read_bytes()


def test_gradient_clipping_bounds_the_step(tmp_path: Path) -> None:
    config = replace(
        CONFIG, steps=1, momentum=0.0, weight_decay=0.0, gradient_clip_norm=1e-3, learning_rate=1.0
    )
    train_toy(tmp_path, config)
    first, last = load_file(tmp_path / "initial.safetensors"), load_file(tmp_path / "last.safetensors")
    hidden = (last["hidden.weight"] - first["hidden.weight"]).norm() / 0.5  # its group's lr_scale
    output = [last[name] - first[name] for name in ("output.weight", "output.bias")]
    total = math.sqrt(float(hidden) ** 2 + sum(float(part.norm()) ** 2 for part in output))
    assert total == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_other_optimisers_learn(tmp_path: Path, optimiser: str) -> None:
    result = train_toy(tmp_path, replace(CONFIG, optimiser=optimiser, learning_rate=0.02))
    assert result.metric_best < 0.7 * result.metric_initial  # type: ignore[operator]


# ---------------------------------------------------------------- non-finite steps
def test_a_poisoned_pair_is_skipped_counted_and_named_and_leaves_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Watching(ToyModel):
        def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
            assert torch.isfinite(self.mean).all()
            assert torch.isfinite(self.output.weight).all()
            self.mean.add_(batch.image1.mean())  # a statistic that a poisoned pair would spoil
            return super().training_step(batch)

    source = ToySource(count=10, poison=frozenset({4}))
    config = replace(CONFIG, batch_size=2)
    with caplog.at_level(logging.WARNING):
        result = train_toy(tmp_path, config, model=Watching(), train_pairs=source)
    assert (
        result.nonfinite == 5
    )  # 24 steps of 2 are 4.8 epochs of 10, and the first four have the pair once each
    assert (
        len([r for r in caplog.records if "skipped" in r.message and "pair4" in r.message])
        == result.nonfinite
    )
    assert "pair4" in (tmp_path / "train.log").read_text()
    assert all(math.isfinite(x) for x in _values(tmp_path, "train", "loss").values())


def test_too_many_non_finite_steps_end_the_run_with_advice(tmp_path: Path) -> None:
    everything = ToySource(count=4, poison=frozenset(range(4)))
    config = replace(CONFIG, max_nonfinite_in_a_row=3)
    with pytest.raises(TrainingError, match=r"step 4: .*not finite.* 4 steps in a row.*lower learning_rate"):
        train_toy(tmp_path / "row", config, train_pairs=everything)
    some = ToySource(count=8, poison=frozenset({1}))
    with pytest.raises(TrainingError, match=r"2 steps so far, more than max_nonfinite \(1\)"):
        train_toy(tmp_path / "total", replace(CONFIG, batch_size=1, max_nonfinite=1), train_pairs=some)


def test_float16_finds_its_scale_without_spending_the_tolerance(tmp_path: Path) -> None:
    class Steep(ToyModel):
        def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
            return {"regression": 300 * super().training_step(batch)["regression"]}

    config = replace(
        CONFIG, precision="float16", learning_rate=1e-4, max_nonfinite=0, max_nonfinite_in_a_row=20
    )
    result = train_toy(tmp_path, config, model=Steep())
    assert result.nonfinite == 0
    assert "gradient overflow" in (tmp_path / "train.log").read_text()


# ---------------------------------------------------------------- unreadable pairs
def test_few_unreadable_pairs_are_replaced_and_many_end_the_run(tmp_path: Path) -> None:
    source = ToySource(count=10, broken=frozenset({3}))
    result = train_toy(tmp_path / "few", replace(CONFIG, max_unreadable_share=0.3), train_pairs=source)
    assert 9 <= result.unreadable <= 12
    assert result.drawn == 24 * 4 + result.unreadable
    assert "pair3.jpg: expected an image" in (tmp_path / "few/train.log").read_text()
    with pytest.raises(
        TrainingError, match=r"pairs cannot be read, more than max_unreadable_share \(0\.02\)"
    ):
        train_toy(tmp_path / "many", replace(CONFIG, max_unreadable_share=0.02), train_pairs=source)


# ---------------------------------------------------------------- wrong models, wrong calls
def test_faults_of_a_model_are_named(tmp_path: Path) -> None:
    class Constant(ToyModel):
        def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
            return {"regression": torch.zeros(())}

    class Vector(ToyModel):
        def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
            return {"regression": self.output.bias}

    class Forgetful(ToyModel):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return super().parameter_groups()[1:]

    class Unconnected(ToyModel):
        def __init__(self) -> None:
            super().__init__()
            self.spare = torch.nn.Linear(2, 2)

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [*super().parameter_groups(), {"params": list(self.spare.parameters())}]

    class Reserved(ToyModel):
        def training_step(self, batch: PairBatch) -> Mapping[str, Tensor]:
            return {"loss": self.output.bias.sum(), "other": self.output.bias.sum()}

    for model, message in (
        (Unconnected(), r"no gradient reaches 'spare.weight' \(2 such parameters\)"),
        (Constant(), "depend on no parameter for the pairs pair"),
        (Vector(), r"'regression': expected a scalar, got shape \(3,\)"),
        (Forgetful(), r"'hidden.weight' is trainable but in no group"),
        (Reserved(), "'loss' is a name of the trainer's own"),
    ):
        with pytest.raises(TrainingError, match=message):
            train_toy(tmp_path / type(model).__name__, model=model)


def test_initial_weights_are_taken_over_exactly_when_the_stage_has_a_parent(tmp_path: Path) -> None:
    train_toy(tmp_path / "base")
    parent = tmp_path / "base/weights.safetensors"
    child = replace(SPEC, init_from="base")
    with pytest.raises(ConfigError, match="starts from stage 'base', got no weights"):
        train_toy(tmp_path / "a", spec=child)
    with pytest.raises(ConfigError, match="starts from scratch, got "):
        train_toy(tmp_path / "b", initial_weights=parent)
    train_toy(tmp_path / "c", spec=child, initial_weights=parent, model=ToyModel(seed=9))
    initial = load_file(tmp_path / "c/initial.safetensors")
    assert torch.equal(initial["hidden.weight"], load_file(parent)["hidden.weight"])
    assert torch.equal(initial["output.weight"], ToyModel(seed=9).output.weight)


def test_a_finished_folder_is_returned_and_another_fingerprint_replaces_it(tmp_path: Path) -> None:
    result = train_toy(tmp_path)
    stamp = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    assert train_toy(tmp_path, train_pairs=ToySource(deadly=frozenset(range(10)))) == result
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == stamp
    train_toy(tmp_path, replace(CONFIG, steps=3), fingerprint="0" * 64)
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 3
    assert verify_folder(tmp_path) == []


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    from matchlib.completion import Lease

    with Lease(tmp_path), pytest.raises(DataError, match="is writing here"):
        train_toy(tmp_path)


def test_an_unknown_device_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device: expected cpu, cuda"):
        train_toy(tmp_path, device="abacus")
