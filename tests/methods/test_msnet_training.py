"""Training: correspondences, mining, the loss of a step, figures, and that it learns."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from matchlib.errors import ConfigError, TrainingError
from matchlib.geometry.homography import warp_points
from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.msnet.config import LossConfig, MSNetConfig, ValidationConfig
from matchlib.methods.msnet.examples import draw_correspondences, mine_negatives
from matchlib.methods.msnet.inference import build_dense
from matchlib.methods.msnet.pictures import draw_descriptors, draw_negatives
from matchlib.methods.msnet.training import TrainableMSNet, build
from matchlib.methods.spec import METHODS
from matchlib.photo_pairs.batch import HomographyBatch
from matchlib.training.config import StageConfig
from matchlib.training.train import train_stage

SMALL = LossConfig(correspondences=200, min_correspondences=16, mining_radius_cells=2.0, mining_interval=1)
MILD = [[1.02, 0.08, 2.3], [-0.06, 0.97, 1.4], [3e-4, -2e-4, 1.0]]
HALF = [[0.5, 0.0, 12.0], [0.0, 0.5, 9.0], [0.0, 0.0, 1.0]]
EYE = np.eye(3).tolist()


def config(**settings) -> MSNetConfig:
    return MSNetConfig(loss=SMALL, validation=ValidationConfig(points=150), **settings)


def make_pair(homography=MILD, size=(64, 48), seed: int = 0) -> HomographyBatch:
    """Two exact views of a texture of smooth random waves; view 1 is valid where view 0 shows the same."""
    width, height = size
    H_0to1 = torch.tensor(homography, dtype=torch.float64)
    pixels = pixel_grid(height, width).double()
    generator = torch.Generator().manual_seed(seed)
    waves = 0.6 * torch.randn(2, 40, generator=generator)
    phase, mixing = 6.28 * torch.rand(40, generator=generator), torch.randn(40, 3, generator=generator)

    def colours(points: torch.Tensor) -> torch.Tensor:
        values = 0.5 + 0.05 * torch.sin(points.float() @ waves + phase) @ mixing
        return values.clamp(0, 1).T.reshape(1, 3, height, width)

    in0 = warp_points(pixels, torch.linalg.inv(H_0to1))
    shown = ((in0 >= 0) & (in0 <= torch.tensor([width - 1, height - 1]))).all(1).reshape(1, height, width)
    return HomographyBatch(
        image0=colours(pixels),
        image1=colours(in0) * shown,
        H_0to1=H_0to1[None],
        valid0=torch.ones(1, height, width, dtype=torch.bool),
        valid1=shown,
        seeds=(seed + 40,),
        names=(f"waves-{seed}",),
    )


def total(losses) -> torch.Tensor:
    return sum(value for name, value in losses.items() if not name.startswith("figure/"))


# ---------------------------------------------------------------- correspondences and mining
def test_correspondences_are_distinct_pixels_with_their_true_positions():
    pair = make_pair()
    (found,) = draw_correspondences(pair, most=300, purpose="test")
    assert len(found) == 300
    assert torch.equal(found.points0, found.points0.round())
    assert len(found.points0.unique(dim=0)) == 300
    expected = warp_points(found.points0.double(), pair.H_0to1[0])
    torch.testing.assert_close(found.points1.double(), expected, rtol=0, atol=1e-4)
    assert (found.points1 != found.points1.round()).any(), "positions are not cut to integers"


def test_correspondences_lie_in_all_of_the_overlap_and_only_there():
    pair = make_pair(HALF)
    valid1 = pair.valid1.clone()
    valid1[:, :, 28:] = False
    (found,) = draw_correspondences(dataclasses.replace(pair, valid1=valid1), most=10**6, purpose="test")
    # x1 = x0 / 2 + 12, and the nearest pixel of view 1 is at most 27
    assert found.points0[:, 0].max() == 30 and found.points0[:, 0].min() == 0
    assert len(found) == 31 * 48


def test_draws_depend_on_the_seed_of_the_pair_and_the_purpose_only():
    pairs = [make_pair(seed=s) for s in (0, 1)]
    alone = draw_correspondences(pairs[1], most=50, purpose="a")[0]
    together = draw_correspondences(HomographyBatch.stack(pairs), most=50, purpose="a")[1]
    assert torch.equal(alone.points0, together.points0) and torch.equal(alone.points1, together.points1)
    other = draw_correspondences(pairs[1], most=50, purpose="b")[0]
    assert not torch.equal(alone.points0, other.points0)


def test_mined_cells_are_the_most_similar_ones_allowed():
    generator = torch.Generator().manual_seed(0)
    map1 = torch.randn(16, 9, 11, generator=generator)
    descriptors = torch.nn.functional.normalize(torch.randn(30, 16, generator=generator), dim=1)
    points1 = 32 * torch.rand(30, 2, generator=generator)
    valid1 = torch.rand(36, 44, generator=generator) < 0.7
    cells, is_mined = mine_negatives(descriptors, map1, points1, valid1, SMALL, seed=1)
    assert is_mined.all()
    unit = map1 / map1.norm(dim=0)
    for descriptor, point, cell in zip(descriptors, points1, cells, strict=True):
        best, where = -2.0, None
        for y in range(9):
            for x in range(11):
                distance = math.hypot(x - point[0] / 4, y - point[1] / 4)
                if distance >= 2 and valid1[4 * y, 4 * x] and (unit[:, y, x] @ descriptor) > best:
                    best, where = float(unit[:, y, x] @ descriptor), (x, y)
        assert tuple(cell.int().tolist()) == where


def test_the_phase_of_the_search_grid_comes_from_the_seed():
    map1 = torch.randn(8, 12, 16, generator=torch.Generator().manual_seed(0))
    descriptors = torch.nn.functional.normalize(map1.reshape(8, -1).T, dim=1)
    points1 = torch.full((192, 2), -100.0)  # nothing is excluded
    valid1 = torch.ones(48, 64, dtype=torch.bool)
    coarse = dataclasses.replace(SMALL, mining_interval=4)
    phases = set()
    for seed in range(120):
        cells, _ = mine_negatives(descriptors, map1, points1, valid1, coarse, seed=seed)
        again, _ = mine_negatives(descriptors, map1, points1, valid1, coarse, seed=seed)
        assert torch.equal(cells, again)
        assert len(cells.remainder(4).unique(dim=0)) == 1
        phases.add(tuple(cells[0].remainder(4).tolist()))
    assert len(phases) == 16


def test_where_the_radius_leaves_no_candidate_nothing_is_mined():
    map1 = torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(0))
    descriptors = torch.nn.functional.normalize(torch.ones(2, 8), dim=1)
    points1 = torch.tensor([[4.0, 4.0], [4.0, 4.0]])
    everywhere = dataclasses.replace(SMALL, mining_radius_cells=9.0)
    valid1 = torch.ones(12, 12, dtype=torch.bool)
    _, is_mined = mine_negatives(descriptors, map1, points1, valid1, everywhere, seed=0)
    assert not is_mined.any()
    model = build(MSNetConfig(loss=dataclasses.replace(SMALL, mining_radius_cells=99.0)), "descriptor", 0)
    losses = model.training_step(make_pair())
    assert losses["similarity"].item() == 0.0 and losses["distance"].item() > 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- steps
VARIANTS = [
    {"variant": "v0"},
    {"variant": "v1"},
    {"variant": "v2"},
    {"variant": "v2", "scale": "predicted"},
    {"variant": "attention"},
    {"variant": "sum"},
]


def train(model: TrainableMSNet, batch: HomographyBatch, steps: int) -> list[dict[str, float]]:
    optimiser = torch.optim.Adam(model.parameter_groups(), lr=1e-3)
    history = []
    for _ in range(steps):
        optimiser.zero_grad()
        losses = model.training_step(batch)
        total(losses).backward()
        optimiser.step()
        history.append({name: value.item() for name, value in losses.items()})
    return history


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_a_step_reaches_every_parameter(settings):
    model = build(config(**settings), "descriptor", 0).train()
    losses = model.training_step(make_pair())
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    assert 0 < losses["distance"] < 2 and losses["figure/correspondences"] == 200
    expected = {"distance", "similarity", "figure/correspondences", "figure/active_negatives"}
    if settings.get("scale") == "predicted":
        expected |= {"scale", "figure/scale_error_octaves"}
    assert losses.keys() == expected
    grouped = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters()}


def test_fifteen_steps_lower_the_loss():
    model = build(config(), "descriptor", 0).train()
    history = [row["distance"] + row["similarity"] for row in train(model, make_pair(), 15)]
    assert np.mean(history[-3:]) < 0.85 * np.mean(history[:2])


def test_v1_is_trained_exactly_as_v0():
    v0, v1 = (build(config(variant=variant), "descriptor", 0).train() for variant in ("v0", "v1"))
    for model in (v0, v1):
        train(model, make_pair(), 2)
    assert all(torch.equal(v1.state_dict()[name], tensor) for name, tensor in v0.state_dict().items())


def test_the_scale_head_learns_the_relative_scale():
    """Two pairs whose views differ by an octave, one in each direction, shown to the head alone."""
    larger = torch.linalg.inv(torch.tensor(HALF, dtype=torch.float64)).tolist()
    batch = HomographyBatch.stack([make_pair(HALF, seed=3), make_pair(larger, seed=4)])
    model = build(config(variant="v2", scale="predicted"), "descriptor", 0).train()
    for parameter in model.network.parameters():
        parameter.requires_grad_(False)
    optimiser = torch.optim.Adam(model.scale_head.parameters(), lr=3e-3)
    errors = []
    for _ in range(25):
        optimiser.zero_grad()
        losses = model.training_step(batch)
        losses["scale"].backward()
        optimiser.step()
        errors.append(float(losses["figure/scale_error_octaves"]))
    assert errors[0] == pytest.approx(
        1.0, abs=1e-3
    )  # the head starts with no opinion, the truth is one octave
    assert errors[-1] < 0.5


def test_equal_seeds_give_equal_bits():
    states = []
    for _ in range(2):
        model = build(config(variant="v2", scale="predicted"), "descriptor", 7).train()
        train(model, make_pair(), 2)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = build(config(variant="v2", scale="predicted"), "descriptor", 8).state_dict()
    assert not torch.equal(other["network.head.0.weight"], states[0]["network.head.0.weight"])


def test_losses_are_means_over_the_pairs():
    model = build(config(), "descriptor", 0).eval()  # running statistics: pairs do not see each other
    pairs = [make_pair(seed=0), make_pair(HALF, seed=1)]
    single = [model.training_step(pair) for pair in pairs]
    both = model.training_step(HomographyBatch.stack(pairs))
    for name, value in both.items():
        assert value.item() == pytest.approx(np.mean([row[name].item() for row in single]), rel=1e-4), name


def test_a_pair_without_overlap_costs_nothing_and_keeps_its_gradient():
    good = make_pair()
    apart = dataclasses.replace(good, valid1=torch.zeros_like(good.valid1))
    for settings in ({}, {"variant": "v2", "scale": "predicted"}):
        model = build(config(**settings), "descriptor", 0).train()
        losses = model.training_step(apart)
        assert total(losses).item() == 0.0 and losses["figure/correspondences"] == 0
        total(losses).backward()
        used = [p for name, p in model.named_parameters() if p.grad is not None]
        assert len(used) == len(list(model.parameters())) and not any(p.grad.any() for p in used)
        assert list(losses) == list(model.training_step(good)), "processes add them up in this order"
        mixed = model.training_step(HomographyBatch.stack([good, apart]))
        assert mixed["distance"] > 0 and mixed["figure/correspondences"] == 100
        assert math.isnan(model.eval().validation_step(apart)["pck"])


def test_values_that_are_not_finite_show_in_the_loss_for_the_trainer_to_skip():
    pair = make_pair()
    spoilt = dataclasses.replace(pair, image1=pair.image1.index_fill(3, torch.tensor([30]), torch.nan))
    losses = build(config(), "descriptor", 0).train().training_step(spoilt)
    assert not total(losses).isfinite()


def test_each_view_is_normalised_by_its_own_statistics():
    """Changing view 1 must not change the descriptors of view 0."""
    pair = make_pair()
    other = dataclasses.replace(pair, image1=1 - pair.image1)
    model = build(config(), "descriptor", 0).train()
    first, second = (model._describe(batch, "fine")[0].members[0] for batch in (pair, other))
    assert torch.equal(first, second)


def test_mixed_precision_is_for_the_network_only():
    exact, mixed = (build(config(), "descriptor", 0).train() for _ in range(2))
    expected = exact.training_step(make_pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixed.training_step(make_pair())
    total(found).backward()
    assert found["distance"].dtype == torch.float32
    torch.testing.assert_close(found["distance"], expected["distance"], rtol=0.1, atol=0.02)


class WavePairs:
    """`count` pairs of different textures and motions, all different from those of another `first`."""

    def __init__(self, *, first: int, count: int) -> None:
        self._first, self._count = first, count
        self.digest = f"waves {first} {count}"

    def __len__(self) -> int:
        return self._count

    def load(self, index: int, seed: int) -> HomographyBatch:
        generator = np.random.default_rng(self._first + index)
        angle, scale = generator.uniform(-0.5, 0.5), 2 ** generator.uniform(-0.5, 0.5)
        turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        H = np.eye(3)
        H[:2, :2] = turn
        H[:2, 2] = (np.eye(2) - turn) @ [47.5, 35.5] + generator.uniform(-6, 6, 2)
        return make_pair(H.tolist(), size=(96, 72), seed=self._first + index)


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS[:1] + VARIANTS[3:4], ids=lambda s: "-".join(s.values()))
def test_the_trainer_improves_pairs_that_it_does_not_learn_from(settings, tmp_path):
    result = train_stage(
        model=build(config(**settings), "descriptor", 0),
        train_pairs=WavePairs(first=1000, count=60),
        validation_pairs=WavePairs(first=0, count=8),
        config=StageConfig(
            steps=60,
            optimiser="adam",
            learning_rate=1e-3,
            schedule="cosine",
            workers=0,
            validate_every=60,
            validation_pairs=8,
            checkpoint_every=1000,
        ),
        spec=METHODS.get("msnet").stages["descriptor"],
        out=tmp_path,
        fingerprint="waves",
        seed=0,
    )
    assert result.metric_best > result.metric_initial + 0.1
    describer = build_dense(config(**settings), tmp_path / "weights.safetensors", "cpu")
    assert describer.describe(np.zeros((20, 30, 3), np.uint8)).at(torch.zeros(1, 2)).shape == (1, 1, 128)


# ---------------------------------------------------------------- validation and pictures
@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_equal_views_are_matched_without_error(settings):
    figures = build(config(**settings), "descriptor", 0).eval().validation_step(make_pair(EYE))
    assert figures["pck"] == 1.0
    assert figures["matching_accuracy"] > 0.8
    assert ("scale_error_octaves" in figures) == (settings.get("scale") == "predicted")


def test_wrong_truth_is_noticed():
    pair = make_pair(EYE)
    shifted = dataclasses.replace(pair, image1=pair.image1.roll(12, dims=3))
    figures = build(config(), "descriptor", 0).eval().validation_step(shifted)
    assert figures["matching_accuracy"] < 0.4  # against more than 0.8 above


@pytest.mark.parametrize("members", ["fine", "coarse", "set2", "set2_3pairs", "oracle_blend", "sum"])
def test_one_network_is_validated_under_any_reading(members):
    model = build(config(variant="v0", members=members), "descriptor", 0).eval()
    pairs = [make_pair(seed=0), make_pair(HALF, seed=1)]
    single = [model.validation_step(pair) for pair in pairs]
    both = model.validation_step(HomographyBatch.stack(pairs))
    assert set(both) == {"pck", "matching_accuracy", "loss"}
    for name, value in both.items():
        assert value == pytest.approx(np.mean([row[name] for row in single]), rel=1e-4), name


def test_few_validation_points_have_a_loss_all_the_same():
    """Training leaves out pairs with few correspondences; a figure of 0 would say that they are perfect."""
    few = MSNetConfig(variant="v2", scale="predicted", validation=ValidationConfig(points=10))
    assert few.loss.min_correspondences > 10
    figures = build(few, "descriptor", 0).eval().validation_step(make_pair(HALF))
    assert figures["loss"] > 0.1
    assert figures["scale_error_octaves"] == pytest.approx(1.0, abs=1e-3)


def test_pictures_are_images_and_leave_the_model_as_it_was():
    model = build(config(variant="v2", scale="predicted"), "descriptor", 0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pictures = model.pictures(make_pair())
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert set(pictures) == {"samples", "descriptors", "hard_negatives"}
    assert pictures["descriptors"].shape == (48, 128, 3) == pictures["hard_negatives"].shape
    assert all(p.dtype == np.uint8 and p.std() > 0 for p in pictures.values())


def test_equal_descriptors_have_equal_colours_in_both_views():
    maps = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0))
    picture = draw_descriptors(maps, maps.flip(2))
    left, right = picture[::4, :28:4], picture[::4, 28::4]
    assert np.array_equal(left, right[:, ::-1])
    assert left.reshape(-1, 3).std(axis=0).min() > 20


def test_negatives_are_drawn_where_they_are():
    black = torch.zeros(3, 40, 50)
    points = [torch.tensor([[10.0, 20.0]]), torch.tensor([[30.0, 8.0]]), torch.tensor([[35.0, 33.0]])]
    picture = draw_negatives(black, black, *points).astype(int)
    assert picture.shape == (40, 100, 3)
    green, red = picture[8, 50 + 30], picture[33, 50 + 35]
    assert green[1] > 2 * green[0] and red[0] > red[1] > 0
    assert picture[20, 10].min() < picture[20, 10].max() == 240
    assert not draw_negatives(black, black, *(torch.zeros(0, 2) for _ in range(3))).any()


# ---------------------------------------------------------------- states
def test_only_one_stage_is_known():
    with pytest.raises(ConfigError, match="expected stage 'descriptor', got 'base'"):
        build(config(), "base", 0)


def test_initial_weights_are_taken_whole_or_refused():
    model, other = build(config(), "descriptor", 0), build(config(), "descriptor", 1)
    model.load_initial(other.state_dict())
    assert all(torch.equal(model.state_dict()[name], t) for name, t in other.state_dict().items())
    predicted = build(config(variant="v2", scale="predicted"), "descriptor", 0)
    with pytest.raises(TrainingError, match=r"scale_head\.layers\.0\.weight: expected nothing"):
        model.load_initial(predicted.state_dict())


def test_weight_decay_is_upstreams_unless_left_to_the_stage():
    assert build(config(), "descriptor", 0).parameter_groups()[0]["weight_decay"] == 5e-4
    assert "weight_decay" not in build(config(weight_decay=None), "descriptor", 0).parameter_groups()[0]
