"""The loss of stage `desc` against a transcription of its formulas, a world with exact descriptors, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from matchlib.errors import ConfigError, ShapeError
from matchlib.geometry.epipolar import epipolar_lines, fundamental_from_pose, symmetric_epipolar_distance
from matchlib.methods.posfeat import descriptor_loss as module
from matchlib.methods.posfeat import epipolar_search
from matchlib.methods.posfeat.config import DescriptorLossConfig
from matchlib.methods.posfeat.descriptor_loss import descriptor_loss
from matchlib.methods.posfeat.epipolar_search import (
    border_hits,
    draw_jitter,
    draw_queries,
    line_ends,
    line_position,
    window_offsets,
)
from matchlib.methods.posfeat.network import descriptors_at

SIZE = (96, 64)
CONFIG = DescriptorLossConfig(line_samples=20, window=0.3)
TINY = DescriptorLossConfig(
    cell_px=8, line_samples=5, window=0.5, temperature=5.0, max_distance=1.0, jitter=False
)


def pose(turn=0.1, shift=(0.4, 0.1, 0.1)) -> torch.Tensor:
    T = torch.eye(4, dtype=torch.float64)
    T[0, 0] = T[2, 2] = np.cos(turn)
    T[0, 2], T[2, 0] = np.sin(turn), -np.sin(turn)
    T[:3, 3] = torch.tensor(shift)
    return T


def intrinsics(size=SIZE) -> torch.Tensor:
    focal = 0.9 * size[0]
    return torch.tensor([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1]]).double()


def fundamentals(*poses, size=SIZE) -> torch.Tensor:
    K = intrinsics(size)
    return torch.stack([fundamental_from_pose(T, K, K) for T in poses])


def random_maps(batch=2, size=SIZE, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, dim, size[1] // 4, size[0] // 4)
    return tuple(torch.randn(shape, generator=generator) for _ in range(2))


def transcribed_direction(own, other, Fs, size, queries, jitter, config, sampling):
    """Section by section after the formulas, in normalised units, query by query where that is clearer."""
    width, height = size
    scale = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=own.dtype)

    def read(maps, points_px, padding):  # (B, N, K, 2) -> (B, N, K, D)
        if sampling == "legacy":
            grid = points_px / scale - 1
        else:
            grid = (2 * points_px + 1) / torch.tensor([width, height], dtype=own.dtype) - 1
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode=padding, align_corners=False)
        return sampled.permute(0, 2, 3, 1)

    f = F.normalize(read(own, queries[:, :, None], "zeros")[:, :, 0], dim=-1)
    warm = config.temperature * F.normalize(other, dim=1)
    homogeneous = torch.cat([queries, torch.ones_like(queries[..., :1])], dim=-1).double()
    lines = torch.einsum("bij,bnj->bni", Fs, homogeneous)
    ends = torch.zeros(*queries.shape[:2], 2, 2, dtype=own.dtype)
    valid = torch.zeros(queries.shape[:2], dtype=torch.bool)
    for b in range(lines.shape[0]):
        for n in range(lines.shape[1]):
            u, v, c = lines[b, n].tolist()
            hits = [(x, -(u * x + c) / v) for x in (0, width - 1)] + [
                (-(v * y + c) / u, y) for y in (0, height - 1)
            ]
            hits = [(x, y) for x, y in hits if 0 <= x <= width - 1 and 0 <= y <= height - 1]
            valid[b, n] = len(hits) == 2
            if len(hits) == 2:
                hits.sort(key=lambda p, u=u, v=v: u * p[1] - v * p[0])  # ties go to the first place
                ends[b, n] = torch.tensor(hits, dtype=own.dtype)
    along = torch.linspace(0, 1, config.line_samples, dtype=own.dtype)[:, None]
    p = ends[:, :, :1] * (1 - along) + ends[:, :, 1:] * along
    P = torch.einsum("bnd,bnkd->bnk", f, read(warm, p, "border")).softmax(-1)
    if config.line_position == "best":
        centre = torch.stack(
            [torch.stack([p[b, n, P[b, n].argmax()] for n in range(p.shape[1])]) for b in range(len(p))]
        )
    else:
        centre = (P[..., None] * p).sum(2)
    centre = (centre.detach() / scale) - 1
    if config.jitter:
        centre = centre + jitter / scale
        valid &= (centre.abs() <= 1).all(-1)
    counts = [int(config.window * other.shape[axis]) for axis in (3, 2)]
    dx, dy = (torch.linspace(-config.window, config.window, k, dtype=own.dtype) for k in counts)
    offsets = torch.stack([dx.repeat(counts[1]), dy.repeat_interleave(counts[0])], dim=-1)
    places = centre[:, :, None] + offsets
    q = torch.einsum("bnd,bnkd->bnk", f, read(warm, (places + 1) * scale, "zeros")).softmax(-1)
    mean = (q[..., None] * places).sum(2)
    variance = (q[..., None] * places**2).sum(2) - mean**2
    sigma = variance.clamp_min(1e-10).sqrt().sum(-1)
    x = torch.cat([(mean + 1) * scale, torch.ones_like(mean[..., :1])], dim=-1)
    lines = lines.to(own.dtype)
    d = (x * lines).sum(-1).abs() / lines[..., :2].norm(dim=-1).clamp_min(1e-8)
    m = (d < config.max_distance * min(size)) & valid
    over = (0, 1) if config.weights == "batch" else (1,)
    w = ((1 / sigma) / (1 / sigma).mean(over, keepdim=True)).detach() * m
    w = w / (w.mean(over, keepdim=True) + 1e-8)
    return (w * d).mean(), m


@pytest.mark.parametrize("sampling", ["exact", "legacy"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weights": "batch"},
        {"jitter": False},
        {"line_position": "expected", "temperature": 20.0},
        {"line_ends": "legacy", "max_distance": 0.05},
    ],
)
def test_agrees_with_a_transcription_of_the_formulas(sampling, changes):
    config, seeds = replace(CONFIG, **changes), (11, 12)
    Fs = fundamentals(pose(), pose(-0.2, (0.1, 0.5, -0.3)))
    maps = [m.double().requires_grad_() for m in random_maps(dim=128)]
    result = descriptor_loss(*(m.float() for m in maps), Fs, SIZE, seeds, config, sampling)
    gradients = torch.autograd.grad(result.loss, maps)
    expected, masks = [], []
    for i, direction in enumerate((Fs, Fs.mT)):
        queries = draw_queries(
            SIZE, config.cell_px, seeds, f"queries of image {i}", torch.device("cpu")
        ).double()
        jitter = draw_jitter(SIZE, queries.shape[1], config, seeds, f"jitter of image {i}").double()
        loss, mask = transcribed_direction(
            maps[i], maps[1 - i], direction, SIZE, queries, jitter, config, sampling
        )
        expected.append(loss)
        masks.append(mask)
    torch.testing.assert_close(result.loss_0to1, expected[0].detach().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss_1to0, expected[1].detach().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.used_share, torch.stack(masks).float().mean())
    assert 0.2 < result.used_share <= 1
    for ours, theirs in zip(gradients, torch.autograd.grad(sum(expected), maps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def world_maps(T, size, sampling, spread=0.2):
    """Descriptor maps of two views of the plane z = 4 + 0.3 x of camera 0; a softened one-hot code of the 3D point.

    Component (i, j) is a Gaussian about place (i, j) of a grid on the plane, so that the similarity of two points
    depends on their distance alone and has one maximum.
    """
    axes = [torch.arange(-extent, extent, spread, dtype=torch.float64) for extent in (3.2, 2.6)]
    places = torch.cartesian_prod(*axes)
    width, height = size
    y, x = torch.meshgrid(torch.arange(height // 4), torch.arange(width // 4), indexing="ij")
    cells = torch.stack([x, y], dim=-1).double()
    if sampling == "exact":
        pixels = 4 * cells + 1.5
    else:
        pixels = (cells + 0.5) * 4 * (torch.tensor([width, height]) - 1) / torch.tensor([width, height])
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    normal, maps = torch.tensor([-0.3, 0, 1]).double(), []
    for camera in (torch.eye(4).double(), T):
        rays = homogeneous @ torch.linalg.inv(intrinsics(size)).T @ camera[:3, :3]  # in the frame of camera 0
        origin = -camera[:3, :3].T @ camera[:3, 3]
        points = origin + rays * ((4 - normal @ origin) / (rays @ normal))[..., None]
        squared = (points[..., None, :2] - places).square().sum(-1)
        maps.append(torch.exp(-squared / (2 * spread**2)).permute(2, 0, 1)[None].float())
    return maps


def partners(queries, T, size):
    """Where the plane's points at pixels (N, 2) of image 0 are in image 1."""
    rays = (
        torch.cat([queries, torch.ones_like(queries[:, :1])], dim=-1) @ torch.linalg.inv(intrinsics(size)).T
    )
    points = rays * (4 / (rays @ torch.tensor([-0.3, 0, 1]).double()))[:, None]
    seen = (points @ T[:3, :3].T + T[:3, 3]) @ intrinsics(size).T
    return seen[:, :2] / seen[:, 2:]


@pytest.mark.parametrize("sampling", ["exact", "legacy"])
def test_perfect_descriptors_cost_less_than_a_pixel_and_random_ones_much_more(sampling):
    size, T = (320, 240), pose(0.02, (0.2, 0.1, -0.1))
    F_0to1, seeds, config = fundamentals(T, size=size), (5,), DescriptorLossConfig()
    perfect = descriptor_loss(*world_maps(T, size, sampling), F_0to1, size, seeds, config, sampling)
    assert 0 < perfect.loss_0to1 < 1 and 0 < perfect.loss_1to0 < 1
    assert perfect.used_share > 0.9
    random = descriptor_loss(*random_maps(1, size, 128), F_0to1, size, seeds, config, sampling)
    assert random.loss > 5 * perfect.loss
    assert random.distance_px > 4


@pytest.mark.parametrize("sampling", ["exact", "legacy"])
def test_perfect_descriptors_are_found_where_they_are(sampling):
    """What a perfect loss still has comes from queries without partner; the others are found within a pixel."""
    size, T, config = (320, 240), pose(0.1, (0.5, 0.2, 0.1)), DescriptorLossConfig()
    map0, map1 = world_maps(T, size, sampling)
    queries = draw_queries(size, 16, (5,), "q", torch.device("cpu"))
    lines = epipolar_lines(queries.double(), fundamentals(T, size=size)).float()
    descriptors = descriptors_at(map0, queries, size, sampling)
    jitter = draw_jitter(size, queries.shape[1], config, (5,), "j")
    unit1 = F.normalize(map1, dim=1)
    found = epipolar_search.search(descriptors, unit1, lines, jitter, size, config, sampling)
    expected = partners(queries[0].double(), T, size).float()
    margin = torch.minimum(expected, torch.tensor(size) - 1 - expected).amin(-1)
    seen = (margin > 16) & found.valid[0]
    assert seen.sum() > 150
    error = (found.points[0] - expected)[seen].norm(dim=-1)
    assert error.mean() < 0.3 and error.max() < 1.5


def test_the_loss_sees_a_wrong_pose():
    size, T = (320, 240), pose(0.02, (0.2, 0.1, -0.1))
    maps, config = world_maps(T, size, "exact"), DescriptorLossConfig()
    right, wrong = (
        descriptor_loss(*maps, fundamentals(other, size=size), size, (5,), config, "exact")
        for other in (T, pose(0.02, (0.2, -0.1, -0.1)))
    )
    assert wrong.loss > 5 * right.loss


def test_both_fundamentals_are_one_and_its_transpose():
    T = pose()
    ours, direct = fundamentals(T)[0].mT, fundamentals(torch.linalg.inv(T))[0]
    torch.testing.assert_close(ours / ours.norm(), direct / direct.norm() * torch.sign((ours * direct).sum()))
    points = torch.rand(20, 3, dtype=torch.float64) + torch.tensor([0.0, 0, 3])
    project = [
        (p[:, :2] / p[:, 2:]) * 86.4 + torch.tensor([47.5, 31.5])
        for p in (points, points @ T[:3, :3].T + T[:3, 3])
    ]
    assert symmetric_epipolar_distance(*project, fundamentals(T)[0]).max() < 1e-12


class Constant:
    """Values of the first evaluation, again in every later one, in the order of the calls."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.calls = 0

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        if self.calls == len(self.values):
            self.values.append(value.detach().clone())
        self.calls += 1
        return self.values[self.calls - 1]


@pytest.mark.parametrize("line_position", ["best", "expected"])
def test_gradients_are_exact(line_position, monkeypatch):
    """Window centres and spreads are constants of the gradient, so they are held for the finite differences."""
    size, config = (16, 16), replace(TINY, line_position=line_position)
    F_0to1 = fundamentals(pose(), size=size)
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    ]
    centres, spreads = Constant(), Constant()
    line, window = epipolar_search.line_position, epipolar_search.window_position
    monkeypatch.setattr(epipolar_search, "line_position", lambda *a: centres(line(*a)))

    def window_with_constant_spread(*arguments):
        points, spread = window(*arguments)
        return points, spreads(spread)

    monkeypatch.setattr(epipolar_search, "window_position", window_with_constant_spread)

    def loss(*fine):
        centres.calls = spreads.calls = 0
        return descriptor_loss(*fine, F_0to1, size, (1,), config, "exact").loss

    assert loss(*maps).item() > 0.1
    assert torch.autograd.gradcheck(loss, tuple(maps))


def test_the_published_number_of_queries_and_places():
    device = torch.device("cpu")
    queries = draw_queries((640, 480), 16, (1, 2), "q", device)
    assert queries.shape == (2, 1200, 2)
    cells = (queries // 16).long()
    assert torch.equal(cells[0, :, 1] * 40 + cells[0, :, 0], torch.arange(1200))
    assert torch.equal(queries, queries.round())
    assert not torch.equal(queries[0], queries[1])
    assert torch.equal(queries[1:], draw_queries((640, 480), 16, (2,), "q", device))
    assert not torch.equal(queries, draw_queries((640, 480), 16, (1, 2), "other", device))
    within = (queries - 16 * cells).flatten()
    assert torch.bincount(within.long(), minlength=16).min() > 200  # 300 expected of each
    offsets = window_offsets((640, 480), (160, 120), DescriptorLossConfig())
    assert offsets.shape == (192, 2)
    torch.testing.assert_close(offsets.amax(0), torch.tensor([31.95, 23.95]).double())
    torch.testing.assert_close(offsets.amin(0), -offsets.amax(0))


def test_jitter_stays_within_its_share_of_the_window():
    jitter = draw_jitter((640, 480), 5000, DescriptorLossConfig(), (1,), "j")[0]
    largest = jitter.abs().amax(0)
    assert (largest <= torch.tensor([22.59, 16.94])).all() and (largest > torch.tensor([22.4, 16.8])).all()
    assert jitter.mean(0).abs().max() < 1


@pytest.mark.parametrize(
    ("line", "hits", "legacy"),
    [((0.0, 1, -10), 2, True), ((1.0, -1, 0), 3, False), ((0.0, 1, 0), 2, True), ((63.0, -95, 0), 4, False)],
)
def test_lines_through_a_corner_are_lost_by_the_legacy_rule_only(line, hits, legacy):
    lines = torch.tensor([[line]], dtype=torch.float64)
    assert border_hits(lines, SIZE).item() == hits
    assert line_ends(lines, SIZE, CONFIG)[1].item()
    assert line_ends(lines, SIZE, replace(CONFIG, line_ends="legacy"))[1].item() == legacy


def test_equally_good_places_give_one_of_them():
    """The release adds all of them up, which leads out of the image."""
    ends = torch.tensor([[[[0.0, 10], [95, 30]]]])
    found = line_position(torch.ones(1, 1, 4), torch.ones(1, 4, 16, 24), ends, SIZE, CONFIG, "exact")
    assert found.tolist() == [[[0, 10]]]


@pytest.mark.parametrize(("weights", "share"), [("pair", 0.5), ("batch", 1.0)])
def test_a_pair_without_baseline_adds_nothing(weights, share):
    """Nothing but its place in the mean over pairs, where there is one."""
    config = replace(CONFIG, weights=weights)
    Fs = fundamentals(pose())
    both = torch.cat([Fs, torch.zeros_like(Fs)])
    maps = [m.requires_grad_() for m in random_maps()]
    result = descriptor_loss(*maps, both, SIZE, (1, 2), config, "exact")
    alone = descriptor_loss(maps[0][:1], maps[1][:1], Fs, SIZE, (1,), config, "exact")
    torch.testing.assert_close(result.loss, share * alone.loss)
    torch.testing.assert_close(result.used_share, alone.used_share / 2)
    torch.testing.assert_close(result.distance_px, alone.distance_px)
    result.loss.backward()
    for m in maps:
        assert torch.isfinite(m.grad).all()
        assert m.grad[0].abs().sum() > 0 and m.grad[1].abs().sum() == 0


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nothing_to_use_gives_a_zero_that_is_tied_to_the_graph(value):
    maps = [m.requires_grad_() for m in random_maps()]
    result = descriptor_loss(*maps, torch.full((2, 3, 3), value).double(), SIZE, (1, 2), CONFIG, "exact")
    for figure in (result.loss, result.loss_0to1, result.loss_1to0, result.used_share, result.distance_px):
        assert figure.item() == 0
    result.loss.backward()
    assert all(m.grad is not None and not m.grad.any() for m in maps)


def test_all_lines_outside_the_image_count_for_nothing():
    K_far = intrinsics()
    K_far[1, 2] += 10_000  # image 1 looks far above what image 0 sees
    F_0to1 = fundamental_from_pose(pose(0.0, (1.0, 0, 0)), intrinsics(), K_far)[None]
    result = descriptor_loss(*random_maps(1), F_0to1, SIZE, (1,), CONFIG, "exact")
    assert result.loss == 0 and result.used_share == 0


def test_maps_of_zeros_give_finite_gradients():
    maps = [torch.zeros(1, 8, 16, 24, requires_grad=True) for _ in range(2)]
    descriptor_loss(*maps, fundamentals(pose()), SIZE, (1,), CONFIG, "exact").loss.backward()
    assert all(torch.isfinite(m.grad).all() for m in maps)


def test_the_loss_does_not_depend_on_how_the_batch_is_divided(monkeypatch):
    """Two processes, one after the other: first each says what it would send, then each gets the sum of both."""
    Fs, maps, seeds = fundamentals(pose(), pose(0.3, (-0.2, 0.1, 0.4))), random_maps(), (1, 2)
    config = replace(CONFIG, weights="batch")
    whole = descriptor_loss(*maps, Fs, SIZE, seeds, config, "exact")
    sent = []

    def share(rank):
        own = slice(rank, rank + 1)
        return descriptor_loss(maps[0][own], maps[1][own], Fs[own], SIZE, seeds[own], config, "exact")

    monkeypatch.setattr(module, "all_reduce_sum", lambda tensor: sent.append(tensor) or tensor)
    alone = [share(rank).loss for rank in (0, 1)]
    monkeypatch.setattr(module, "all_reduce_sum", lambda tensor: sent[0] + sent[1])
    together = [share(rank).loss for rank in (0, 1)]
    torch.testing.assert_close((together[0] + together[1]) / 2, whole.loss)
    assert abs((alone[0] + alone[1]) / 2 - whole.loss) > 1e-4  # so that the exchange is what makes them equal


def test_weights_within_pairs_need_no_exchange(monkeypatch):
    Fs, maps, seeds = fundamentals(pose(), pose(0.3, (-0.2, 0.1, 0.4))), random_maps(), (1, 2)
    monkeypatch.setattr(module, "all_reduce_sum", lambda tensor: pytest.fail("processes were asked"))
    whole = descriptor_loss(*maps, Fs, SIZE, seeds, CONFIG, "exact").loss
    halves = [
        descriptor_loss(
            maps[0][i : i + 1], maps[1][i : i + 1], Fs[i : i + 1], SIZE, seeds[i : i + 1], CONFIG, "exact"
        ).loss
        for i in (0, 1)
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_half_precision_is_raised_before_anything_is_computed():
    Fs, maps = fundamentals(pose(), pose(0.2)), [m.bfloat16() for m in random_maps()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = descriptor_loss(*maps, Fs, SIZE, (1, 2), CONFIG, "exact")
    wide = descriptor_loss(*(m.float() for m in maps), Fs, SIZE, (1, 2), CONFIG, "exact")
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.loss, wide.loss)


def test_only_the_loss_has_a_gradient():
    maps = [m.requires_grad_() for m in random_maps()]
    result = descriptor_loss(*maps, fundamentals(pose(), pose(0.2)), SIZE, (1, 2), CONFIG, "exact")
    assert result.loss.requires_grad
    torch.testing.assert_close(result.loss.detach(), result.loss_0to1 + result.loss_1to0)
    figures = (result.loss_0to1, result.loss_1to0, result.used_share, result.distance_px)
    assert not any(figure.requires_grad for figure in figures)


def test_training_on_poses_alone_lowers_the_distance():
    """Gradient descent on two free maps: the loss is one that can be minimised."""
    Fs = fundamentals(pose(), pose(-0.2, (0.1, 0.5, -0.3)))
    maps = [m.requires_grad_() for m in random_maps()]
    optimiser = torch.optim.Adam(maps, lr=0.1)
    losses = []
    for _ in range(12):
        loss = descriptor_loss(*maps, Fs, SIZE, (1, 2), CONFIG, "exact").loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_window_of_too_few_cells_says_what_to_change():
    with pytest.raises(
        ConfigError, match=r"^posfeat\.descriptor_loss\.window: .* got 2 x 1 of a map of 24 x 16"
    ):
        descriptor_loss(*random_maps(1), fundamentals(pose()), SIZE, (1,), DescriptorLossConfig(), "exact")


def test_wrong_shapes_are_named():
    maps, Fs = random_maps(), fundamentals(pose(), pose())
    with pytest.raises(ShapeError, match="fine1"):
        descriptor_loss(maps[0], maps[1][:1], Fs, SIZE, (1, 2), CONFIG, "exact")
    with pytest.raises(ShapeError, match="F_0to1"):
        descriptor_loss(*maps, Fs[:1], SIZE, (1, 2), CONFIG, "exact")
    with pytest.raises(ShapeError, match="seeds"):
        descriptor_loss(*maps, Fs, SIZE, (1,), CONFIG, "exact")
    with pytest.raises(ShapeError, match="at least 16 x 16"):
        draw_queries((15, 40), 16, (1,), "q", torch.device("cpu"))
