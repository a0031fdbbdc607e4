from __future__ import annotations

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.datasets.batch import PairBatch
from matchlib.datasets.pfm import write_pfm
from matchlib.errors import DataError
from matchlib.geometry.depth_warp import warp_points_by_depth
from matchlib.geometry.sampling import legacy_resize, pixel_grid, sample_bilinear
from matchlib.match_sets.config import DepthSourceConfig
from matchlib.match_sets.pairs import DepthPosePairs, MatchSetSource
from matchlib.match_sets.resize import resize_depth, resize_image

SIDE = 160


@pytest.fixture
def source(build_plane, plane_scene):
    folder = build_plane(depth=DepthSourceConfig(candidates="overlap"))
    return MatchSetSource(dataset_format="blendedmvs", root=plane_scene, scene="plane", folder=folder)


def test_a_pair_is_what_its_batch_says(source):
    pairs = DepthPosePairs([source], size=(SIDE, SIDE))
    assert len(pairs) == 3
    batch = pairs.load(1, seed=77)
    assert batch.image0.shape == (1, 3, SIDE, SIDE) and batch.image0.dtype == torch.float32
    assert 0 <= batch.image0.min() < 0.2 and 0.8 < batch.image0.max() <= 1
    assert batch.depth1.shape == (1, SIDE, SIDE) and batch.seeds == (77,)
    assert batch.names == ("plane/00000000-00000002",)
    np.testing.assert_allclose(batch.K0[0, 0], [220 * SIDE / 240, 0, 119.5 * SIDE / 240], rtol=1e-6)
    assert len(PairBatch.stack([batch, pairs.load(0, seed=1)])) == 2


@pytest.mark.parametrize("index", [0, 1, 2])
def test_depth_and_pose_of_a_batch_carry_pixels_onto_equal_pixels(source, index):
    """The strongest check of all conventions at once: grey values agree after the warp, and only after it."""
    batch = DepthPosePairs([source], size=(SIDE, SIDE)).load(index, seed=0)
    points = pixel_grid(SIDE, SIDE)[None]
    warped, valid = warp_points_by_depth(points, batch.depth0, batch.depth1, batch.K0, batch.K1, batch.T_0to1)
    assert valid.float().mean() > 0.4
    grey0, grey1 = batch.image0.mean(dim=1, keepdim=True), batch.image1.mean(dim=1, keepdim=True)
    here = grey0.flatten()[valid[0]]
    there = sample_bilinear(grey1, warped)[0, 0, valid[0]]
    assert np.corrcoef(here, there)[0, 1] > 0.99
    half_a_pixel_off = sample_bilinear(grey1, warped + 0.5)[0, 0, valid[0]]
    assert (here - there).abs().mean() < 0.6 * (here - half_a_pixel_off).abs().mean()


def test_pairs_are_filtered_when_they_are_opened(source):
    assert len(DepthPosePairs([replace(source, min_rotation_deg=9)], size=(32, 32))) == 2
    assert len(DepthPosePairs([replace(source, max_rot_diff_deg=9)], size=(32, 32))) == 1
    with pytest.raises(DataError, match="no pair in 1 match sets"):
        DepthPosePairs([replace(source, min_rotation_deg=99)], size=(32, 32))
    with pytest.raises(DataError, match="no pair in 0 match sets"):
        DepthPosePairs([], size=(32, 32))


def test_several_sources_follow_each_other_and_the_digest_tells_them_apart(source, tmp_path):
    one = DepthPosePairs([source], size=(32, 32))
    two = DepthPosePairs([source, source], size=(32, 32))
    assert len(two) == 6 and torch.equal(two.load(4, 0).image1, one.load(1, 0).image1)
    assert one.digest == DepthPosePairs([source], size=(64, 64)).digest != two.digest
    assert one.digest != DepthPosePairs([replace(source, min_rotation_deg=4)], size=(32, 32)).digest
    with pytest.raises(IndexError):
        one.load(3, 0)


def test_workers_get_a_copy(source):
    pairs = DepthPosePairs([source], size=(32, 32))
    copy = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(copy.load(2, 5).image0, pairs.load(2, 5).image0)
    assert len(pickle.dumps(pairs)) < 20_000


def test_unreadable_files_name_themselves(source, plane_scene):
    pairs = DepthPosePairs([source], size=(32, 32))
    depth = plane_scene / "plane" / "rendered_depth_maps" / "00000001.pfm"
    write_pfm(depth, np.zeros((9, 9), np.float32))
    with pytest.raises(DataError, match="00000001.pfm: no depth above 0"):
        pairs.load(0, 0)
    (plane_scene / "plane" / "blended_images" / "00000002.jpg").unlink()
    with pytest.raises(DataError, match=r"00000002.jpg: cannot be read"):
        pairs.load(1, 0)


def test_unfinished_sets_are_refused_and_the_dataset_may_move(source, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(source.root, moved)
    there = MatchSetSource(dataset_format="blendedmvs", root=moved, scene="plane", folder=source.folder)
    assert DepthPosePairs([there], size=(32, 32)).load(0, 0).image0.isfinite().all()
    (source.folder / ".complete").unlink()
    with pytest.raises(DataError, match="not finished"):
        DepthPosePairs([there], size=(32, 32))


def test_resized_images_follow_the_rule_of_the_intrinsics():
    """Output pixel p shows source position p * in / out: a ramp keeps its values."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
    for width in (50, 80, 400):
        resized = resize_image(ramp, width, 100)
        expected = np.arange(width) * 200 / width
        inner = slice(10 * width // 200, width - 10 * width // 200)
        np.testing.assert_allclose(resized[50, inner, 0], expected[inner], atol=1.01)
    assert resize_image(ramp, 200, 100) is ramp


def test_shrinking_does_not_alias():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_image(stripes, 16, 64)
    assert small[:, 2:-2].std() < 25 and abs(small[:, 2:-2].mean() - 127) < 10


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 24), st.integers(1, 24), st.integers(0, 999))
def test_resized_depth_holds_only_depths_that_were_there_or_lie_between(height, width, out_h, out_w, seed):
    """Two surfaces at 1 m and 5 m with holes: no depth in between, none below 1."""
    rng = np.random.default_rng(seed)
    depth = rng.choice([0, 1, 1.02, 5, 5.1], (height, width)).astype(np.float32)
    resized = resize_depth(depth, out_w, out_h)
    assert resized.shape == (out_h, out_w) and resized.dtype == np.float32
    near, far = (resized >= 1) & (resized <= 1.0201), (resized >= 4.999) & (resized <= 5.1001)
    assert ((resized == 0) | near | far).all()


def test_resized_depth_of_a_smooth_surface_is_the_legacy_bilinear_one():
    depth = np.fromfunction(lambda y, x: 2 + 0.01 * x + 0.02 * y, (20, 30)).astype(np.float32)
    expected = legacy_resize(torch.from_numpy(depth)[None], (33, 47))[0].numpy()
    np.testing.assert_allclose(resize_depth(depth, 47, 33), expected, rtol=1e-6)
