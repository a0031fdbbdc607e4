"""Views made on the device: exact positions, masks, keypoints, and independence of the batch."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from matchlib.geometry.homography import warp_points
from matchlib.photo_pairs.config import PhotometricConfig, WarpConfig
from matchlib.photo_pairs.homographies import adaptation_homographies, view_homographies
from matchlib.photo_pairs.photo_batch import PhotoBatch, erode, read_view

PLAIN = PhotometricConfig(style="none")
SIZE = (100, 80)


def make(seed=0, *, sampler="superpoint", photo=None, labels=None, **settings) -> PhotoBatch:
    """A batch of one; the photograph is noise unless given."""
    random = np.random.default_rng(seed)
    config = WarpConfig(sampler=sampler, **{"photometric": PLAIN, **settings})
    H_0, H_1 = view_homographies(SIZE, random, config)
    if photo is None:
        photo = torch.from_numpy(random.integers(0, 256, (3, SIZE[1], SIZE[0]), dtype=np.uint8))
    return PhotoBatch(
        photos=photo[None],
        H_photo_to_0=torch.from_numpy(H_0)[None],
        H_photo_to_1=torch.from_numpy(H_1)[None],
        labels=None if labels is None else (labels,),
        warps=(config,),
        seeds=(seed,),
        names=(f"photo {seed}",),
    )


def ramp() -> torch.Tensor:
    """A photograph whose red level is x and whose green level is y."""
    y, x = torch.meshgrid(torch.arange(SIZE[1]), torch.arange(SIZE[0]), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 255)]).byte()


def grid() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE[1]), torch.arange(SIZE[0]), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).double()


@pytest.mark.parametrize("sampler", ["descriptor_space", "superpoint"])
@pytest.mark.parametrize("seed", range(5))
def test_a_view_of_a_ramp_reads_exact_positions(sampler, seed):
    batch = make(seed, sampler=sampler, photo=ramp(), border_px=0)
    views = batch.to("cpu")
    for image, valid, H in (
        (views.image0, views.valid0, batch.H_photo_to_0),
        (views.image1, views.valid1, batch.H_photo_to_1),
    ):
        source = warp_points(grid(), torch.linalg.inv(H[0]))
        seen = valid[0].flatten()
        read = (image[0, :2] * 255).flatten(1).T.double()
        assert seen.sum() > 2000
        assert (read[seen] - source[seen]).abs().max() < 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_points_of_view_0_show_the_same_spot_in_view_1(seed):
    """The chain that losses rely on: view 0, H_0to1, view 1, checked on the photograph's own coordinates."""
    views = make(seed, sampler="descriptor_space", photo=ramp()).to("cpu")
    points0 = grid().float()[None]
    points1, known = views.warp(points0)
    chosen = known[0].nonzero()[::97, 0]
    x1, y1 = points1[0, chosen].T
    normalised = torch.stack([x1 * 2 / (SIZE[0] - 1) - 1, y1 * 2 / (SIZE[1] - 1) - 1], dim=-1)[None, None]
    read1 = torch.nn.functional.grid_sample(views.image1, normalised, align_corners=True)[0, :2, 0]
    read0 = views.image0[0, :2].flatten(1)[:, chosen]
    assert len(chosen) > 30
    # Bilinear reading of a perspective view of a ramp is exact only to second order, so not to 1e-3.
    assert ((read1 - read0) * 255).abs().max() < 0.05


def test_the_homographies_agree():
    batch = make(3, sampler="descriptor_space")
    views = batch.to("cpu")
    by_hand = warp_points(warp_points(grid(), torch.linalg.inv(batch.H_photo_to_0[0])), batch.H_photo_to_1[0])
    torch.testing.assert_close(warp_points(grid(), views.H_0to1[0]), by_hand, rtol=0, atol=1e-8)
    assert views.H_0to1[0, 2, 2] == 1 and views.H_0to1.dtype == torch.float64


@pytest.mark.parametrize("border_px", [0, 1, 3])
def test_the_valid_mask_equals_brute_force(border_px):
    batch = make(1, border_px=border_px)
    views = batch.to("cpu")
    assert views.valid0.all()  # the photograph itself: nothing is brought in, so nothing is worn off
    inside = np.zeros((SIZE[1], SIZE[0]), bool)
    H = np.linalg.inv(batch.H_photo_to_1[0].numpy())
    for row in range(SIZE[1]):
        for column in range(SIZE[0]):
            x, y, w = H @ (column, row, 1)
            inside[row, column] = w > 0 and 0 <= x / w <= SIZE[0] - 1 and 0 <= y / w <= SIZE[1] - 1
    assert not inside.all()
    expected = inside & (distance_transform_edt(inside) > border_px)
    np.testing.assert_array_equal(views.valid1[0].numpy(), expected)


def test_descriptor_space_views_are_valid_everywhere():
    for seed in range(10):
        views = make(seed, sampler="descriptor_space").to("cpu")
        assert views.valid0.all() and views.valid1.all()


def test_erosion_takes_a_disc_and_nothing_at_the_images_edge():
    mask = torch.ones(9, 9, dtype=torch.bool)
    assert erode(mask, 3).all()
    mask[4, 4] = False
    y, x = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    torch.testing.assert_close(erode(mask, 2), (x - 4) ** 2 + (y - 4) ** 2 > 4)


def test_labels_move_with_the_photograph_and_leave_with_it():
    marks = torch.tensor([[20.0, 30.0], [50.5, 40.25], [99.0, 79.0], [70.0, 10.0], [-5.0, 3.0]])
    for seed in range(6):
        batch = make(seed, labels=marks)
        views = batch.to("cpu")
        assert views.keypoints0 is not None and views.keypoints1 is not None
        torch.testing.assert_close(views.keypoints0[0], marks[:4])
        expected = []
        for point in warp_points(marks.double(), batch.H_photo_to_1[0]):
            x, y = point.tolist()
            if 0 <= x <= SIZE[0] - 1 and 0 <= y <= SIZE[1] - 1 and views.valid1[0, round(y), round(x)]:
                expected.append([x, y])
        torch.testing.assert_close(views.keypoints1[0], torch.tensor(expected).reshape(-1, 2))
    empty = make(0, labels=torch.empty(0, 2)).to("cpu")
    assert empty.keypoints1 is not None and empty.keypoints1[0].shape == (0, 2)
    assert make(0).to("cpu").keypoints0 is None


@pytest.mark.parametrize("style", ["none", "descriptor_space", "superpoint"])
def test_views_do_not_depend_on_the_rest_of_the_batch(style):
    photometric = PhotometricConfig(style=style)
    labels = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)) * 80
    singles = [
        make(seed, sampler=sampler, photometric=photometric, labels=labels, border_px=seed)
        for seed, sampler in enumerate(["superpoint", "descriptor_space", "superpoint"])
    ]
    joined = PhotoBatch.stack(singles).to("cpu")
    assert len(joined) == 3 and joined.names == ("photo 0", "photo 1", "photo 2")
    for index, single in enumerate(singles):
        alone = single.to("cpu")
        for name in ("image0", "image1", "valid0", "valid1", "H_0to1"):
            assert torch.equal(getattr(joined, name)[index], getattr(alone, name)[0]), name
        assert torch.equal(joined.keypoints0[index], alone.keypoints0[0])
        assert torch.equal(joined.keypoints1[index], alone.keypoints1[0])
        assert torch.equal(single.to("cpu").image1, alone.image1)


def test_only_the_chosen_views_are_changed():
    plain = make(5).to("cpu")
    for views, changed in (("first", (True, False)), ("second", (False, True))):
        photometric = PhotometricConfig(style="superpoint", views=views)
        batch = make(5, photometric=photometric).to("cpu")
        assert torch.equal(batch.image0, plain.image0) != changed[0]
        assert torch.equal(batch.image1, plain.image1) != changed[1]


def test_a_batch_survives_pickling():
    batch = make(2, labels=torch.rand(4, 2))
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.to("cpu").image1, batch.to("cpu").image1)
    assert again.warps == batch.warps


def test_reading_a_view_beyond_the_horizon_is_black_and_not_valid():
    H = torch.eye(3, dtype=torch.float64)
    H[2, 0] = -1 / 50  # the inverse has its horizon at x = -50, the view's left part lies behind
    H_view_to_photo = torch.linalg.inv(H) @ torch.tensor([[1.0, 0, -200], [0, 1, 0], [0, 0, 1]]).double()
    image, shows = read_view(torch.ones(1, 3, 80, 100), H_view_to_photo[None])
    w = H_view_to_photo[2, 0] * torch.arange(100) + H_view_to_photo[2, 2]
    assert (w <= 0).any()
    assert not shows[..., w <= 0].any() and (image[..., w <= 0] == 0).all()
    assert torch.isfinite(image).all()


def test_a_batch_keeps_its_promises_about_shapes():
    from matchlib.errors import ShapeError

    with pytest.raises(ShapeError, match="H_photo_to_1"):
        dataclasses.replace(make(0), H_photo_to_1=torch.eye(3))


def test_adaptation_homographies_fit_read_view():
    """The use that homographic adaptation makes of both: warp, and warp back."""
    H = torch.from_numpy(adaptation_homographies(4, SIZE, np.random.default_rng(0), WarpConfig().superpoint))
    photo = ramp().float()[None].expand(4, -1, -1, -1) / 255
    views, shows = read_view(photo, torch.linalg.inv(H))
    back, seen = read_view(views, H)
    both = seen & (read_view(shows[:, None].float(), H)[0][:, 0] > 0.999)
    torch.testing.assert_close(views[0], photo[0], rtol=0, atol=1e-5)
    assert both.flatten(1).sum(1).min() > 1500
    assert ((back - photo).abs().amax(1)[both] * 255).max() < 0.2
