"""Training: true correspondences, the two stages, what is trained, and that it learns."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed

from matchlib.datasets.batch import PairBatch
from matchlib.errors import ConfigError, TrainingError
from matchlib.methods.aslfeat.augmentation import augment
from matchlib.methods.aslfeat.config import ASLFeatConfig, DcnConfig, LossConfig, NetworkConfig
from matchlib.methods.aslfeat.correspondences import draw_correspondences
from matchlib.methods.aslfeat.network import grey_from_rgb, standardise
from matchlib.methods.aslfeat.training import build

SMALL = ASLFeatConfig(network=NetworkConfig(variant="small", batch_norm_momentum=0.2))


def trained_base(batch: PairBatch, steps: int = 2):
    model = build(SMALL, "base", seed=1).train()
    optimiser = torch.optim.SGD(model.parameter_groups(), lr=0.02, momentum=0.9)
    for _ in range(steps):
        optimiser.zero_grad()
        model.training_step(batch)["descriptor"].backward()
        optimiser.step()
    return model


def test_correspondences_show_the_same_place(planar_pair):
    batch = planar_pair(96)
    found = draw_correspondences(batch, 0, LossConfig())
    assert len(found) == 512
    assert torch.equal(found.points0, found.points0.round())
    from matchlib.geometry.sampling import sample_bilinear

    colour0 = sample_bilinear(batch.image0[0], found.points0)
    colour1 = sample_bilinear(batch.image1[0], found.points1)
    assert (colour0 - colour1).abs().mean() < 0.02
    rolled = sample_bilinear(batch.image1[0], found.points1.roll(1, 0))
    assert (colour0 - rolled).abs().mean() > 0.1


def test_correspondences_depend_on_the_seed_of_the_pair_only(planar_pair):
    pair, other = planar_pair(64, seed=0), planar_pair(64, seed=1)
    alone = draw_correspondences(pair, 0, LossConfig())
    together = draw_correspondences(PairBatch.stack([other, pair]), 1, LossConfig())
    assert torch.equal(alone.points0, together.points0) and torch.equal(alone.points1, together.points1)


def test_wrong_depth_leaves_no_correspondences_and_no_loss(planar_pair):
    good = planar_pair(64)
    bad = replace(good, depth1=torch.zeros_like(good.depth1))
    assert len(draw_correspondences(bad, 0, LossConfig())) == 0
    model = build(SMALL, "base", seed=0).train()
    losses = model.training_step(bad)
    losses["descriptor"].backward()
    assert losses["descriptor"].item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_depth_check_is_relative_or_in_scene_units(planar_pair):
    good = planar_pair(64)
    off = replace(good, depth1=good.depth1 * 1.04)
    assert len(draw_correspondences(off, 0, LossConfig())) > 0
    assert len(draw_correspondences(off, 0, LossConfig(depth_check="absolute"))) == 0
    assert len(draw_correspondences(off, 0, LossConfig(depth_threshold=0.03))) == 0


def test_thirty_steps_reduce_the_loss(planar_pair):
    batch = PairBatch.stack([planar_pair(48, seed=0), planar_pair(48, seed=1)])
    config = ASLFeatConfig(network=SMALL.network, loss=LossConfig(photometric_augmentation=False))
    model = build(config, "base", seed=0).train()
    optimiser = torch.optim.SGD(model.parameter_groups(), lr=0.05, momentum=0.9)
    history, accuracy = [], []
    for _ in range(30):
        optimiser.zero_grad()
        losses = model.training_step(batch)
        losses["descriptor"].backward()
        optimiser.step()
        history.append(losses["descriptor"].item())
        accuracy.append(losses["figure/retrieval_accuracy"].item())
    assert np.mean(history[-5:]) < 0.7 * np.mean(history[:3])
    assert np.mean(accuracy[-5:]) > np.mean(accuracy[:3]) + 0.1


@pytest.mark.parametrize("stage", ["base", "dcn"])
@pytest.mark.parametrize("descriptor", ["circle", "hard_contrastive"])
def test_gradient_reaches_exactly_the_trained_parameters(planar_pair, stage, descriptor):
    config = ASLFeatConfig(network=SMALL.network, loss=LossConfig(descriptor=descriptor))
    model = build(config, stage, seed=0).train()
    losses = model.training_step(planar_pair(48))
    sum(v for k, v in losses.items() if not k.startswith("figure/")).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained
    assert all(model.get_parameter(n).grad.isfinite().all() for n in trained)
    layers = {name.split(".")[1] for name in trained}
    frozen = {"conv0", "conv1", "conv2", "conv3", "conv4", "conv5"}
    assert layers & frozen == (frozen if stage == "base" else set())
    assert {"conv6_0", "conv6_1", "conv6"} <= layers
    in_groups = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert in_groups == {id(model.get_parameter(n)) for n in trained}


def test_dcn_starts_as_the_function_that_base_ended_as(planar_pair):
    batch = planar_pair(48)
    base = trained_base(batch).eval()
    dcn = build(SMALL, "dcn", seed=2)
    dcn.load_initial(base.state_dict())
    grey = standardise(grey_from_rgb(batch.image0))
    points = torch.tensor([[10.0, 20.0], [30.5, 11.25]])
    with torch.no_grad():
        expected, found = base(grey), dcn.eval()(grey)
    torch.testing.assert_close(found.score_map(), expected.score_map(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        found.descriptors_at(0, points), expected.descriptors_at(0, points), rtol=0, atol=2e-3
    )


def test_without_rescaling_the_statistics_are_taken_as_they_are(planar_pair):
    base = trained_base(planar_pair(48))
    config = ASLFeatConfig(network=SMALL.network, dcn=DcnConfig(rescale_statistics=False))
    dcn = build(config, "dcn", seed=2)
    dcn.load_initial(base.state_dict())
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, dcn.state_dict()[name]), name


def test_statistics_of_dcn_move_unless_frozen(planar_pair):
    for update in (True, False):
        config = ASLFeatConfig(network=SMALL.network, dcn=DcnConfig(update_bn_statistics=update))
        model = build(config, "dcn", seed=0).train()
        before = model.state_dict()["network.conv6_0_bn.running_var"].clone()
        model.training_step(planar_pair(48))
        assert torch.equal(before, model.state_dict()["network.conv6_0_bn.running_var"]) is not update


def test_weight_decay_of_dcn_is_the_trainers_unless_switched_off():
    assert "weight_decay" not in build(SMALL, "dcn", seed=0).parameter_groups()[0]
    off = ASLFeatConfig(network=SMALL.network, dcn=DcnConfig(weight_decay=False))
    assert build(off, "dcn", seed=0).parameter_groups()[0]["weight_decay"] == 0.0
    assert "weight_decay" not in build(off, "base", seed=0).parameter_groups()[0]


def test_foreign_weights_are_refused():
    model = build(SMALL, "dcn", seed=0)
    state = build(SMALL, "base", seed=0).state_dict()
    with pytest.raises(TrainingError, match="unknown extra"):
        model.load_initial({**state, "extra": torch.zeros(1)})
    with pytest.raises(TrainingError, match="missing network.conv0.weight"):
        model.load_initial({k: v for k, v in state.items() if k != "network.conv0.weight"})
    with pytest.raises(TrainingError, match="network.variant"):
        model.load_initial(build(ASLFeatConfig(), "base", seed=0).state_dict())
    with pytest.raises(ConfigError, match="'base' or 'dcn', got 'final'"):
        build(SMALL, "final", seed=0)


def test_validation_figures_are_means_over_pairs(planar_pair):
    pairs = [planar_pair(64, seed=s) for s in (0, 1)]
    model = build(SMALL, "base", seed=0).eval()
    single = [model.validation_step(pair) for pair in pairs]
    both = model.validation_step(PairBatch.stack(pairs))
    assert set(both) == {"matching_accuracy", "matches", "keypoints", "loss", "retrieval_accuracy"}
    for name, value in both.items():
        assert value == pytest.approx(np.mean([s[name] for s in single]), rel=1e-4), name


def test_matching_accuracy_of_an_unmoved_camera_is_one(planar_pair):
    pair = planar_pair(64, motion=0.0)
    figures = build(SMALL, "base", seed=0).eval().validation_step(pair)
    assert figures["matching_accuracy"] == 1.0 and figures["matches"] > 5


def test_matching_accuracy_counts_wrong_matches(planar_pair):
    pair, wrong = planar_pair(64, motion=0.0), planar_pair(64, motion=0.0)
    shifted = replace(wrong, image1=pair.image1.roll(8, dims=3))
    assert build(SMALL, "base", seed=0).eval().validation_step(shifted)["matching_accuracy"] < 0.2


def test_training_is_a_function_of_its_inputs(planar_pair):
    batch = planar_pair(48)
    first, second = (
        build(SMALL, "base", seed=3).train().training_step(batch)["descriptor"] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_pictures_are_images_and_leave_the_model_as_it_was(planar_pair):
    model = build(SMALL, "base", seed=0).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pictures = model.pictures(planar_pair(48))
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert {name: p.shape for name, p in pictures.items()} == {
        "score_map": (48, 48, 3),
        "keypoints": (48, 48, 3),
        "matches": (48, 96, 3),
    }
    assert all(p.dtype == np.uint8 and p.std() > 0 for p in pictures.values())


def test_augmentation_is_addressed_and_differs_between_the_images():
    grey = 255 * torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    first = augment(grey, (5, 6), "image0")
    assert torch.equal(first, augment(grey, (5, 6), "image0"))
    assert torch.equal(first[1], augment(grey[1:], (6,), "image0")[0])
    assert not torch.equal(first, augment(grey, (5, 6), "image1"))
    assert first.min() >= 0 and first.max() <= 255


def test_augmentation_covers_its_ranges():
    flat = torch.full((300, 1, 4, 4), 128.0)
    means = augment(flat, tuple(range(300)), "image0").mean((1, 2, 3)) - 128
    assert -50 <= means.min() < -40 and 40 < means.max() <= 50
    checker = 128 + 20 * (-1.0) ** torch.arange(64.0).view(8, 8).remainder(2).expand(300, 1, 8, 8)
    spread = augment(checker, tuple(range(300)), "image0").std((1, 2, 3))
    widest = spread.max() / checker[0].std()
    assert 1.4 < widest <= 1.5 + 1e-3
    assert math.isclose(0.3, (spread / checker[0].std()).topk(200).values.min().item(), abs_tol=0.15)


def test_mixed_precision_is_for_the_network_only(planar_pair):
    batch = planar_pair(48)
    exact, mixed = (build(SMALL, "dcn", seed=0).train() for _ in range(2))
    expected = exact.training_step(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixed.training_step(batch)
    found["descriptor"].backward()
    assert found["descriptor"].dtype == torch.float32
    assert found["figure/correspondences"] == expected["figure/correspondences"]
    torch.testing.assert_close(found["descriptor"], expected["descriptor"], rtol=0.05, atol=0.02)


def _worker(rank: int, folder: str) -> None:
    from conftest import make_planar_pair  # found beside this file when it runs as a script

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = build(SMALL, "base", seed=0).train()
    loss = model.training_step(make_planar_pair(48, seed=rank))["descriptor"]
    loss.backward()
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= 2
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.save((loss.detach(), gradients, model.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_computes(tmp_path, planar_pair, two_processes):
    model = build(SMALL, "base", seed=0).train()
    loss = model.training_step(PairBatch.stack([planar_pair(48, seed=0), planar_pair(48, seed=1)]))[
        "descriptor"
    ]
    loss.backward()
    parts = two_processes(__file__, tmp_path)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss.detach(), rtol=1e-4, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parts[0][1][name], parameter.grad, rtol=1e-2, atol=1e-4, msg=name)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(parts[1][2][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


if __name__ == "__main__":
    _worker(int(sys.argv[1]), sys.argv[2])
