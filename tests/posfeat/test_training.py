"""The two stages as the trainer sees them: what is trained, what stays, where draws come from, what is reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch

from matchlib.datasets.batch import PairBatch, PoseBatch
from matchlib.errors import ConfigError, TrainingError
from matchlib.methods.posfeat.config import (
    DescriptorLossConfig,
    NetworkConfig,
    PoSFeatConfig,
    ValidationConfig,
)
from matchlib.methods.posfeat.training import TrainablePoSFeat, build
from matchlib.training.config import StageConfig
from matchlib.training.stepping import build_optimiser

MakePair = Callable[..., PairBatch]
CONFIG = PoSFeatConfig(
    network=NetworkConfig(encoder="resnet18", decoder_channels=(16, 8), head_channels=(4, 8)),
    descriptor_loss=DescriptorLossConfig(window=0.2),
    validation=ValidationConfig(max_keypoints=64),
)
STAGES = ("desc", "kp")


@pytest.fixture
def posed_pair(posed_pair: MakePair) -> MakePair:
    """Smaller pairs than elsewhere: nothing here depends on the size."""
    return partial(posed_pair, size=(96, 64))


def pose_only(batch: PairBatch) -> PoseBatch:
    return PoseBatch(**{field.name: getattr(batch, field.name) for field in fields(PoseBatch)})


def minimised(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([loss for name, loss in losses.items() if not name.startswith("figure/")]).sum()


def train(model: TrainablePoSFeat, batch: PoseBatch, steps: int) -> None:
    optimiser = build_optimiser(model, StageConfig(steps=steps, optimiser="adam", learning_rate=1e-3))
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        minimised(model.training_step(batch)).backward()
        optimiser.step()


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_reaches_exactly_the_trained_parameters(posed_pair: MakePair, stage: str) -> None:
    model = build(CONFIG, stage, seed=0)
    minimised(model.training_step(posed_pair())).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == trained
    parts = {".".join(name.split(".")[:2]) for name in trained}
    if stage == "desc":
        assert "backbone.conv_fine" in parts and "backbone.firstconv" in parts
        assert "backbone.conv_coarse" not in parts and model.head is None
    else:
        assert parts == {"head.conv1", "head.conv2", "head.conv3", "head.convimg", "head.relu"}
    grouped = {id(parameter) for group in model.parameter_groups() for parameter in group["params"]}
    assert grouped == {id(model.get_parameter(name)) for name in trained}


def test_stage_kp_leaves_the_description_net_bit_for_bit_as_it_was(posed_pair: MakePair) -> None:
    desc = build(CONFIG, "desc", seed=1)
    train(desc, posed_pair(), 2)
    model = build(CONFIG, "kp", seed=2)
    model.load_initial(desc.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, posed_pair(seed=3), 3)
    model.eval()
    model.validation_step(posed_pair())
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed and all(name.startswith("head.") for name in changed)
    assert {name for name in changed if name.endswith("weight")} == {
        f"head.{layer}.weight" for layer in ("conv1", "conv2", "conv3", "convimg", "relu")
    }
    for name, tensor in desc.state_dict().items():
        assert torch.equal(after[name], tensor)


def test_stage_kp_keeps_its_description_net_in_eval_mode() -> None:
    model = build(CONFIG, "kp", seed=0)
    assert not model.backbone.training and model.training
    model.train()
    assert not any(part.training for part in model.backbone.modules())
    assert model.head is not None and model.head.training
    model.eval()
    assert not model.head.training
    assert all(part.training for part in build(CONFIG, "desc", seed=0).train().modules())


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_losses_are_functions_of_the_seeds(posed_pair: MakePair, stage: str) -> None:
    def losses(seed: int, batch: PoseBatch, junk: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(junk)
        return build(CONFIG, stage, seed).training_step(batch)

    batch = posed_pair()
    first, again = losses(0, batch, 1), losses(0, batch, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert minimised(losses(1, batch, 1)) != minimised(first)
    assert minimised(losses(0, replace(batch, seeds=(999,)), 1)) != minimised(first)


@pytest.mark.parametrize("stage", STAGES)
def test_a_pair_without_depth_trains_and_validates_too(posed_pair: MakePair, stage: str) -> None:
    model, batch = build(CONFIG, stage, seed=0), posed_pair()
    assert torch.equal(
        minimised(model.training_step(batch)),
        minimised(build(CONFIG, stage, seed=0).training_step(pose_only(batch))),
    )
    model = build(CONFIG, stage, seed=0).eval()
    by_pose, by_depth = model.validation_step(pose_only(batch)), model.validation_step(batch)
    assert set(by_depth) - set(by_pose) == {"matching_accuracy", "repeatability"}
    assert {name: by_depth[name] for name in by_pose} == by_pose
    assert all(0 <= by_depth[name] <= 1 for name in by_depth if name not in ("keypoints", "matches"))
    assert by_pose["precision_1px"] <= by_pose["epipolar_precision"] <= by_pose["precision_5px"]
    assert 0 < by_pose["matches"] <= by_pose["keypoints"] <= 64


@pytest.mark.parametrize("stage", STAGES)
def test_validation_figures_are_means_over_pairs(posed_pair: MakePair, stage: str) -> None:
    model = build(CONFIG, stage, seed=0).eval()
    pairs = [posed_pair(seed=seed) for seed in (0, 1, 2)]
    alone = [model.validation_step(pair) for pair in pairs]
    together = model.validation_step(PairBatch.stack(pairs))
    for name, value in together.items():
        assert value == pytest.approx(np.mean([figures[name] for figures in alone]), abs=0.02)


def test_images_are_jittered_in_training_only_and_only_if_asked(posed_pair: MakePair) -> None:
    plain = replace(CONFIG, descriptor_loss=replace(CONFIG.descriptor_loss, colour_jitter=False))
    batch = posed_pair()
    for stage in STAGES:
        jittered = minimised(build(CONFIG, stage, 0).training_step(batch))
        assert jittered != minimised(build(plain, stage, 0).training_step(batch))
        with_setting = build(CONFIG, stage, 0).eval().validation_step(batch)
        assert with_setting == build(plain, stage, 0).eval().validation_step(batch)


def test_both_images_have_statistics_of_their_own_unless_shared(posed_pair: MakePair) -> None:
    plain = replace(CONFIG.descriptor_loss, colour_jitter=False)
    batch = posed_pair()
    bright = replace(batch, image1=0.5 + 0.5 * batch.image1)

    def running_mean(statistics: str) -> torch.Tensor:
        network = replace(CONFIG.network, batch_statistics=statistics)
        model = build(replace(CONFIG, network=network, descriptor_loss=plain), "desc", 0)
        model.training_step(bright)
        return model.state_dict()["backbone.firstbn.running_mean"]

    # Two updates by 0.1 move farther than one by 0.1.
    assert running_mean("per_image").norm() > 1.7 * running_mean("shared").norm()


@pytest.mark.parametrize("stage", STAGES)
def test_a_pair_without_baseline_gives_a_zero_that_is_tied_to_the_network(
    posed_pair: MakePair, stage: str
) -> None:
    batch = replace(posed_pair(), T_0to1=torch.eye(4)[None])
    model = build(CONFIG, stage, seed=0)
    losses = model.training_step(batch)
    minimised(losses).backward()
    assert minimised(losses) == 0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)
    figures = model.eval().validation_step(pose_only(batch))
    assert figures["epipolar_precision"] == figures["chance_precision"] == 0.0
    assert figures["matches"] > 0
    assert set(model.pictures(batch)) >= {"keypoints", "matches_all", "line_search"}


@pytest.mark.parametrize("stage", STAGES)
def test_textureless_images_have_defined_figures(posed_pair: MakePair, stage: str) -> None:
    batch = posed_pair()
    flat = replace(
        batch, image0=torch.full_like(batch.image0, 0.5), image1=torch.full_like(batch.image1, 0.5)
    )
    model = build(CONFIG, stage, seed=0)
    losses = model.training_step(flat)
    minimised(losses).backward()
    assert all(loss.isfinite() for loss in losses.values())
    model.eval()
    figures = model.validation_step(pose_only(flat))
    assert all(math.isfinite(value) for value in figures.values())
    if stage == "desc":  # SIFT finds nothing
        assert figures["keypoints"] == figures["epipolar_precision"] == 0.0
    assert all(picture.dtype == np.uint8 for picture in model.pictures(flat).values())


def test_image_sizes_that_do_not_fit_are_refused(posed_pair: MakePair) -> None:
    batch = posed_pair(size=(120, 96))
    with pytest.raises(ConfigError, match=r"^image_size: posfeat/desc: .*multiples of 16, got 120 x 96"):
        build(CONFIG, "desc", 0).training_step(batch)


def test_stages_and_initial_weights_are_checked(posed_pair: MakePair) -> None:
    with pytest.raises(ConfigError, match="expected stage 'desc' or 'kp', got 'detector'"):
        build(CONFIG, "detector", 0)
    state = build(CONFIG, "desc", 0).state_dict()
    model = build(CONFIG, "kp", 1)
    head = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("head.")}
    model.load_initial(state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in head.items())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    with pytest.raises(TrainingError, match=r"posfeat/desc: initial weights: this stage starts afresh"):
        build(CONFIG, "desc", 0).load_initial(state)
    with pytest.raises(TrainingError, match=r"backbone\.firstconv\.weight missing"):
        model.load_initial({n: t for n, t in state.items() if n != "backbone.firstconv.weight"})
    with pytest.raises(TrainingError, match=r"head\.conv3\.bias unknown"):
        model.load_initial(state | {"head.conv3.bias": torch.zeros(1)})
    wide = replace(CONFIG, network=replace(CONFIG.network, decoder_channels=(16, 12)))
    with pytest.raises(TrainingError, match=r"backbone\.upconv2\.conv\.conv\.weight: expected shape"):
        build(wide, "kp", 0).load_initial(state)


@pytest.mark.parametrize("stage", STAGES)
def test_mixed_precision_is_for_the_networks_only(posed_pair: MakePair, stage: str) -> None:
    model, batch = build(CONFIG, stage, seed=0), posed_pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.training_step(batch)
        figures = model.eval().validation_step(batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert math.isfinite(figures["epipolar_precision"])
