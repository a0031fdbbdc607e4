"""SuperPoint as the trainer sees it: stages, gradients, validation, pictures, and whether it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from matchlib.errors import ConfigError, DataError, TrainingError
from matchlib.methods.superpoint.config import NetworkConfig, SuperPointConfig
from matchlib.methods.superpoint.network import SuperPointMaps
from matchlib.methods.superpoint.shapes_pairs import ShapesBatch, build_pairs
from matchlib.methods.superpoint.targets import NO_POINT, cell_targets
from matchlib.methods.superpoint.training import TrainableSuperPoint, build
from matchlib.methods.superpoint.training_config import LossConfig, ShapesConfig, TrainingConfig
from matchlib.photo_pairs.batch import HomographyBatch

STAGES = ("shapes", "magicpoint", "superpoint")
SHAPES = ShapesConfig(draw_size=(160, 120), train_pictures=8, validation_pictures=4)


def config(**training) -> SuperPointConfig:
    network = NetworkConfig(variant="small", batch_norm_momentum=0.2)
    return SuperPointConfig(network=network, training=TrainingConfig(shapes=SHAPES, **training))


def shapes_batch(count: int = 4, *, kinds=("checkerboard", "cube"), size=(80, 56)) -> ShapesBatch:
    source = build_pairs(config(), "validation", size, 0)
    chosen = [index for index in range(len(source)) if source.address(index)[0] in kinds]
    return ShapesBatch.stack([source.load(index, index) for index in chosen[:count]])


def texture(count: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def pairs_batch(count: int = 2, *, shift: int = 8, height: int = 64, width: int = 80) -> HomographyBatch:
    """View 1 shows the same texture `shift` pixels to the right; what comes in at the left is not valid."""
    H = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    H[:, 0, 2] = shift
    image0 = texture(count, height, width)
    image1 = torch.zeros_like(image0)
    image1[..., shift:] = image0[..., : width - shift]
    valid1 = torch.ones(count, height, width, dtype=torch.bool)
    valid1[..., :shift] = False
    rows, columns = torch.meshgrid(torch.arange(10, 60, 12), torch.arange(10, 60, 12), indexing="ij")
    labels = torch.stack([columns.flatten(), rows.flatten()], dim=1).float()
    return HomographyBatch(
        image0=image0,
        image1=image1,
        H_0to1=H,
        valid0=torch.ones_like(valid1),
        valid1=valid1,
        seeds=tuple(range(count)),
        names=tuple(f"photo {index}" for index in range(count)),
        keypoints0=(labels,) * count,
        keypoints1=(labels + torch.tensor([shift, 0.0]),) * count,
    )


def batch_for(stage: str) -> ShapesBatch | HomographyBatch:
    return shapes_batch() if stage == "shapes" else pairs_batch()


def minimised(losses) -> torch.Tensor:
    return sum(loss for name, loss in losses.items() if not name.startswith("figure/"))


# ---------------------------------------------------------------- stages
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_what_the_stage_trains_and_nothing_else(stage):
    model = build(config(), stage, 0)
    losses = model.training_step(batch_for(stage))
    assert set(losses) - {name for name in losses if name.startswith("figure/")} == (
        {"detector", "descriptor"} if stage == "superpoint" else {"detector"}
    )
    minimised(losses).backward()
    for name, parameter in model.named_parameters():
        is_trained = stage == "superpoint" or not name.startswith("network.descriptor.")
        assert parameter.requires_grad == is_trained, name
        assert (parameter.grad is not None) == is_trained, name
    grouped = {id(parameter) for group in model.parameter_groups() for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_stages_without_descriptors_leave_the_descriptor_head_alone():
    model = build(config(), "magicpoint", 0)
    before = {name: value.clone() for name, value in model.state_dict().items() if ".descriptor." in name}
    optimiser = torch.optim.Adam(model.parameter_groups(), lr=1e-2)
    minimised(model.training_step(pairs_batch())).backward()
    optimiser.step()
    assert before
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_all_weights_are_the_networks():
    model = build(config(), "superpoint", 0)
    assert set(model.state_dict()) == {f"network.{name}" for name in model.network.state_dict()}


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(1)
    first = build(config(), "shapes", 7).state_dict()
    torch.manual_seed(2)
    again, other = (build(config(), "shapes", seed).state_dict() for seed in (7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["network.backbone.0.0.conv.weight"], other["network.backbone.0.0.conv.weight"]
    )


@pytest.mark.parametrize("layout", ["vgg", "vgg_bn"])
def test_a_fresh_detector_takes_most_cells_to_be_empty(layout):
    network = NetworkConfig(variant="small", layout=layout)
    shares = {}
    for share in (None, 0.9):
        training = TrainingConfig(empty_cells=share)
        model = build(SuperPointConfig(network=network, training=training), "shapes", 0).train()
        logits = model.network.detector_logits(shapes_batch().image)
        shares[share] = logits.softmax(dim=1)[:, NO_POINT].median().item()
    assert shares[None] < 0.1 and 0.6 < shares[0.9] < 0.99


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match="'shapes', 'magicpoint', 'superpoint', got 'dcn'"):
        build(config(), "dcn", 0)


@pytest.mark.parametrize("stage", ["magicpoint", "superpoint"])
def test_photographs_without_labels_are_refused(stage):
    unlabelled = dataclasses.replace(pairs_batch(), keypoints0=None, keypoints1=None)
    with pytest.raises(DataError, match=f"superpoint/{stage}: photo 0: .*labels_from"):
        build(config(), stage, 0).training_step(unlabelled)


# ---------------------------------------------------------------- initial weights
def test_a_stage_starts_where_the_one_before_ended():
    before, after = build(config(), "magicpoint", 0), build(config(), "superpoint", 1)
    before.train()
    before.training_step(pairs_batch())  # moves running statistics
    after.load_initial(before.state_dict())
    assert all(torch.equal(after.state_dict()[name], value) for name, value in before.state_dict().items())


def test_weights_of_another_network_are_refused_by_name():
    model = build(config(), "magicpoint", 0)
    bare = NetworkConfig(variant="small", layout="vgg")
    other = build(SuperPointConfig(network=bare), "shapes", 0).state_dict()
    with pytest.raises(TrainingError, match=r"network\.backbone\.0\.0\.bn\.weight missing.*network.layout"):
        model.load_initial(other)
    with pytest.raises(TrainingError, match="extra unknown"):
        model.load_initial(model.state_dict() | {"extra": torch.zeros(1)})
    wide = build(SuperPointConfig(), "shapes", 0).state_dict()
    with pytest.raises(
        TrainingError, match=r"0\.0\.conv\.weight: expected shape \(32, 1, 3, 3\), got \(64, 1, 3, 3\)"
    ):
        model.load_initial(wide)


# ---------------------------------------------------------------- losses
def test_the_joint_loss_is_the_sum_of_its_parts():
    model = build(config(loss=LossConfig(descriptor="paper", descriptor_weight=0.25)), "superpoint", 0)
    losses = {name: loss.detach() for name, loss in model.training_step(pairs_batch()).items()}
    hinge = losses["figure/positive"] + losses["figure/negative"]
    assert float(losses["descriptor"]) == pytest.approx(0.25 * float(hinge), rel=1e-5)
    alone = build(config(), "magicpoint", 0).training_step(pairs_batch())["detector"].detach()
    assert float(losses["detector"]) == pytest.approx(float(alone), rel=1e-5)


def test_each_view_is_normalised_by_itself():
    """Changing view 1 must not change what the network says about view 0."""
    model, batch = build(config(), "magicpoint", 0).train(), pairs_batch()
    darker = dataclasses.replace(batch, image1=batch.image1 * 0.1)
    logits = [model._views(given)[0].logits for given in (batch, darker)]
    assert torch.equal(*logits)


def test_the_order_of_pairs_does_not_matter_in_evaluation():
    model, batch = build(config(), "superpoint", 0).eval(), pairs_batch()
    halves = [model.validation_step(part) for part in (_part(batch, 0), _part(batch, 1))]
    whole = model.validation_step(batch)
    for name in ("loss", "detection_ap", "repeatability", "matching_accuracy", "points", "matches"):
        assert whole[name] == pytest.approx(np.mean([half[name] for half in halves]), rel=1e-4), name


def _part(batch: HomographyBatch, index: int) -> HomographyBatch:
    part = slice(index, index + 1)
    return HomographyBatch(**{name: getattr(batch, name)[part] for name in HomographyBatch.__slots__})


# ---------------------------------------------------------------- validation
class Oracle(nn.Module):
    """Answers with what it was given, one answer per call."""

    def __init__(self, answers: list[SuperPointMaps]) -> None:
        super().__init__()
        self.answers = answers
        self.calls = 0

    def forward(self, grey: torch.Tensor) -> SuperPointMaps:
        self.calls += 1
        return self.answers[(self.calls - 1) % len(self.answers)]

    def detector_logits(self, grey: torch.Tensor) -> torch.Tensor:
        return self(grey).logits


def oracle_maps(labels, valid, descriptors) -> SuperPointMaps:
    classes, _ = cell_targets(labels, valid, [0] * len(labels), purpose="oracle")
    return SuperPointMaps(12.0 * F.one_hot(classes, 65).permute(0, 3, 1, 2).float(), descriptors)


def with_oracle(stage: str, *answers: SuperPointMaps) -> TrainableSuperPoint:
    model = build(config(), stage, 0).eval()
    model.network = Oracle(list(answers))  # type: ignore[assignment]
    return model


def test_a_perfect_network_has_perfect_figures():
    batch = pairs_batch(shift=8)
    cells = torch.eye(80).reshape(1, 80, 8, 10).repeat(2, 1, 1, 1)  # each cell its own descriptor
    maps = (
        oracle_maps(batch.keypoints0, batch.valid0, cells),
        oracle_maps(batch.keypoints1, batch.valid1, cells.roll(1, 3)),  # the texture moved by one cell
    )
    figures = with_oracle("superpoint", *maps).validation_step(batch)
    assert figures["detection_ap"] == 1.0
    assert figures["repeatability"] == 1.0
    assert figures["matching_accuracy"] == 1.0
    assert figures["points"] == 25 and figures["matches"] == 25
    wrong = with_oracle("superpoint", maps[0], dataclasses.replace(maps[1], descriptors=cells.roll(3, 3)))
    assert wrong.validation_step(batch)["matching_accuracy"] < 0.2
    shifted = oracle_maps(tuple(p + 6.0 for p in batch.keypoints1), batch.valid1, cells)
    moved = with_oracle("superpoint", maps[0], shifted).validation_step(batch)
    assert moved["repeatability"] == 0.0
    assert 0.2 < moved["detection_ap"] < 0.8  # one of two views is right


def test_a_perfect_detector_of_shapes():
    batch = shapes_batch(2, kinds=("cube",), size=(160, 120))
    maps = oracle_maps(batch.keypoints, batch.valid, torch.empty(0))
    figures = with_oracle("shapes", maps).validation_step(batch)
    assert figures["detection_ap"] > 0.85  # corners nearer than the suppression's radius hide each other
    blind = SuperPointMaps(torch.zeros_like(maps.logits), torch.empty(0))
    assert with_oracle("shapes", blind).validation_step(batch)["detection_ap"] < 0.2


def test_shapes_without_labels_are_right_if_nothing_is_sure():
    batch = shapes_batch(1, kinds=("ellipses",))
    for confidence, expected in ((-9.0, 1.0), (9.0, 0.0)):
        logits = torch.zeros(1, 65, batch.image.shape[2] // 8, batch.image.shape[3] // 8)
        logits[:, 20] = confidence  # of one pixel in each cell
        logits[:, 64] = 9.0 if confidence < 0 else 0.0
        model = with_oracle("shapes", SuperPointMaps(logits, torch.empty(0)))
        assert model.validation_step(batch)["detection_ap"] == expected


@pytest.mark.parametrize("stage", STAGES)
def test_validation_repeats_itself_and_changes_nothing(stage):
    model, batch = build(config(), stage, 0).eval(), batch_for(stage)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.validation_step(batch) == model.validation_step(batch)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    metric = {"shapes": "detection_ap", "magicpoint": "repeatability", "superpoint": "matching_accuracy"}
    assert metric[stage] in model.validation_step(batch)


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize("stage", STAGES)
def test_pictures_are_images_and_leave_the_model_as_it_was(stage):
    model = build(config(), stage, 0).train()
    pictures = model.pictures(batch_for(stage))
    assert set(pictures) == {"samples", "detections"} | ({"matches"} if stage == "superpoint" else set())
    for picture in pictures.values():
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert picture.std() > 0
    assert model.training


def test_the_sheet_of_samples_shows_labels_where_they_are():
    batch = shapes_batch(1, kinds=("checkerboard",))
    sheet = build(config(), "shapes", 0).pictures(batch)["samples"]
    factor = sheet.shape[0] // 56
    assert sheet.shape == (56 * factor, 80 * factor, 3)
    is_green = (sheet[..., 1].astype(int) - sheet[..., 0]) > 80
    rows, columns = np.nonzero(is_green)
    marks = np.stack([columns, rows], axis=1)
    centres = (batch.keypoints[0].numpy() + 0.5) * factor - 0.5
    distance = np.linalg.norm(marks[:, None] - centres[None], axis=2)
    assert distance.min(axis=1).max() <= 6 and distance.min(axis=0).max() <= 6


# ---------------------------------------------------------------- learning
def trained(model: TrainableSuperPoint, batch, *, steps: int, learning_rate: float) -> list[dict[str, float]]:
    optimiser = torch.optim.Adam(model.parameter_groups(), lr=learning_rate)
    model.train()
    history = []
    for _ in range(steps):
        losses = model.training_step(batch)
        optimiser.zero_grad()
        minimised(losses).backward()
        optimiser.step()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    model.eval()
    return history


def test_the_detector_learns_the_corners_of_a_few_shapes():
    model, batch = build(config(), "shapes", 0).eval(), shapes_batch(8)
    before = model.validation_step(batch)
    history = trained(model, batch, steps=25, learning_rate=3e-3)
    after = model.validation_step(batch)
    assert history[-1]["detector"] < 0.25 * history[0]["detector"]
    assert history[0]["figure/point_accuracy"] < 0.3 and history[-1]["figure/point_accuracy"] > 0.9
    assert before["detection_ap"] < 0.2 and after["detection_ap"] > 0.7


@pytest.mark.parametrize("form", ["normalised", "paper"])
def test_the_descriptor_learns_one_pair(form):
    model = build(config(loss=LossConfig(descriptor=form, descriptor_weight=1.0)), "superpoint", 0)
    history = trained(model, pairs_batch(1), steps=15, learning_rate=3e-3)
    assert history[-1]["descriptor"] < 0.7 * history[0]["descriptor"]


def test_training_is_reproducible():
    weights = []
    for _ in range(2):
        model = build(config(), "superpoint", 3)
        trained(model, pairs_batch(1), steps=2, learning_rate=1e-3)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
