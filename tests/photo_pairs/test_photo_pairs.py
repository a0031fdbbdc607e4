"""Pairs from files: what is read, refused and reproducible, and that the trainer can use them."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError, DataError
from matchlib.photo_pairs.config import AdaptationWarpConfig, PhotometricConfig, WarpConfig
from matchlib.photo_pairs.frame import fit_photo
from matchlib.photo_pairs.labels import write_labels
from matchlib.photo_pairs.pairs import HomographyPairs, PhotoSource
from matchlib.photo_pairs.photo_batch import PhotoBatch
from matchlib.training.loading import BatchStream
from matchlib.training.sampler import SampleAddress

PLAIN = WarpConfig(photometric=PhotometricConfig(style="none"))


def make_pairs(folder: Path, names, *, size=(64, 48), labels=None, warps=PLAIN) -> HomographyPairs:
    source = PhotoSource(dataset="toy", root=folder, names=tuple(names), warps=warps, labels=labels)
    return HomographyPairs([source], size=size)


def write(folder: Path, name: str, image: np.ndarray, *flags: int) -> str:
    assert cv2.imwrite(str(folder / name), image, list(flags))
    return name


# ---------------------------------------------------------------- the frame
@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(16, 400), st.integers(16, 400)),
    st.tuples(st.integers(16, 200), st.integers(16, 200)),
    st.sampled_from(["crop", "squash"]),
)
def test_the_frame_is_filled_and_points_follow_the_resize(original, size, resize):
    config = dataclasses.replace(PLAIN, resize=resize, small_images="upsample")
    fit = fit_photo(original, size, config, "photo")
    image = fit.image(np.zeros((original[1], original[0], 3), np.uint8))
    assert image.shape == (size[1], size[0], 3)
    corners = np.array([[-0.5, -0.5], [original[0] - 0.5, original[1] - 0.5]], np.float32)
    moved = fit.points(corners)
    assert (moved[0] <= -0.5 + 1e-3).all() and (moved[1] >= np.array(size) - 0.5 - 1e-3).all()
    np.testing.assert_allclose(moved.sum(axis=0), np.array(size) - 1, atol=1 + 1e-3)  # the centre stays
    if resize == "squash":
        np.testing.assert_allclose(moved, [[-0.5, -0.5], np.array(size) - 0.5], atol=1e-3)
    else:
        factor = np.array(fit.resized) / original
        assert abs(factor[0] / factor[1] - 1) <= 1 / min(size)


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("original", [(200, 120), (120, 160)])
def test_points_stay_on_what_they_mark(resize, original):
    """A soft blob is resized with its photograph; its centre of mass must be where the point goes."""
    y, x = np.mgrid[0 : original[1], 0 : original[0]]
    mark = np.array([[70.0, 66.0]], np.float32)
    blob = 255 * np.exp(-((x - mark[0, 0]) ** 2 + (y - mark[0, 1]) ** 2) / (2 * 6.0**2))
    fit = fit_photo(original, (64, 48), dataclasses.replace(PLAIN, resize=resize), "photo")
    frame = fit.image(np.repeat(blob.round().astype(np.uint8)[:, :, None], 3, axis=2))[..., 0].astype(float)
    v, u = np.mgrid[0:48, 0:64]
    centre = np.array([(u * frame).sum(), (v * frame).sum()]) / frame.sum()
    np.testing.assert_allclose(fit.points(mark)[0], centre, atol=0.1)


# ---------------------------------------------------------------- loading
def test_a_pair_depends_on_its_index_and_seed_only(photo_folder):
    folder, names = photo_folder(3)
    pairs = make_pairs(folder, names, warps=WarpConfig())
    assert len(pairs) == 3
    first = pairs.load(1, 77)
    assert len(first) == 1 and first.names == ("toy/001.png",) and first.seeds == (77,)
    assert first.photos.shape == (1, 3, 48, 64) and first.photos.dtype == torch.uint8
    pairs.load(2, 5)
    again, other = pairs.load(1, 77).to("cpu"), pairs.load(1, 78).to("cpu")
    assert torch.equal(first.to("cpu").image1, again.image1)
    assert not torch.equal(other.image1, again.image1)
    with pytest.raises(IndexError):
        pairs.load(3, 0)


def test_stacked_pairs_equal_single_ones(photo_folder):
    folder, names = photo_folder(3)
    pairs = make_pairs(folder, names, warps=WarpConfig(sampler="superpoint"))
    joined = PhotoBatch.stack([pairs.load(i, 10 + i) for i in range(3)]).to("cpu")
    for index in range(3):
        alone = pairs.load(index, 10 + index).to("cpu")
        for name in ("image0", "image1", "valid1", "H_0to1"):
            assert torch.equal(getattr(joined, name)[index], getattr(alone, name)[0])


def test_sources_are_joined_in_order_with_their_own_warps(photo_folder, tmp_path):
    folder, names = photo_folder(2)
    sources = [
        PhotoSource(dataset="a", root=folder, names=names, warps=PLAIN),
        PhotoSource(dataset="b", root=folder, names=names[:1], warps=WarpConfig(sampler="superpoint")),
    ]
    pairs = HomographyPairs(sources, size=(64, 48))
    assert [pairs.load(i, 0).names[0] for i in range(3)] == ["a/000.png", "a/001.png", "b/000.png"]
    torch.testing.assert_close(pairs.load(2, 0).H_photo_to_0[0], torch.eye(3, dtype=torch.float64))


def test_training_reads_them_in_other_processes_and_replaces_bad_ones(photo_folder):
    folder, names = photo_folder(4)
    (folder / names[2]).write_bytes(b"no image at all")
    pairs = make_pairs(folder, names)
    addresses = [tuple(SampleAddress(epoch=0, index=i, seed=i) for i in (0, 2, 3))]
    results = []
    for workers in (0, 2):
        with BatchStream(pairs, addresses, seed=1, workers=workers) as stream:
            results.append(stream.next())
    assert results[0].drawn > 3 and names[2] in results[0].unreadable[0]
    batches = [result.batch.to("cpu") for result in results]
    assert len(batches[0]) == 3 and torch.equal(batches[0].image1, batches[1].image1)


def test_pairs_survive_pickling(photo_folder):
    folder, names = photo_folder(2)
    pairs = make_pairs(folder, names)
    again = pickle.loads(pickle.dumps(pairs))
    assert again.digest == pairs.digest
    assert torch.equal(again.load(0, 3).to("cpu").image0, pairs.load(0, 3).to("cpu").image0)


def test_the_digest_follows_names_sizes_settings_and_nothing_else(photo_folder, tmp_path):
    folder, names = photo_folder(2)
    digest = make_pairs(folder, names).digest
    moved = tmp_path / "elsewhere"
    os.rename(folder, moved)
    assert make_pairs(moved, names).digest == digest
    assert make_pairs(moved, names[:1]).digest != digest
    assert make_pairs(moved, names, size=(48, 64)).digest != digest
    assert make_pairs(moved, names, warps=dataclasses.replace(PLAIN, border_px=1)).digest != digest
    with open(moved / names[0], "ab") as stream:
        stream.write(b"longer")
    assert make_pairs(moved, names).digest != digest


# ---------------------------------------------------------------- labels
def test_labels_move_into_the_frame(photo_folder, tmp_path):
    folder, names = photo_folder(2, size=(128, 96))
    points = [np.array([[0.5, 0.5, 1], [127, 95, 0.5]], np.float32), np.empty((0, 3), np.float32)]
    write_labels(tmp_path / "labels" / "00", names, points, fingerprint="f")
    pairs = make_pairs(folder, names, labels=tmp_path / "labels", warps=WarpConfig(sampler="superpoint"))
    batch = PhotoBatch.stack([pairs.load(0, 0), pairs.load(1, 0)])
    assert batch.labels is not None
    torch.testing.assert_close(batch.labels[0], torch.tensor([[0.0, 0.0], [63.25, 47.25]]))
    assert batch.labels[1].shape == (0, 2)
    views = batch.to("cpu")
    assert views.keypoints0 is not None  # 63.25 lies beyond the centre of the last pixel
    torch.testing.assert_close(views.keypoints0[0], torch.zeros(1, 2))
    assert pairs.digest != make_pairs(folder, names, warps=WarpConfig(sampler="superpoint")).digest


def test_photographs_without_labels_are_named(photo_folder, tmp_path):
    folder, names = photo_folder(3)
    with pytest.raises(DataError, match="found none; label the photographs"):
        make_pairs(folder, names, labels=tmp_path / "labels")
    write_labels(tmp_path / "labels" / "0", names[:1], [np.zeros((1, 3), np.float32)], fingerprint="f")
    with pytest.raises(DataError, match=r"no labels for 2 of 3 photographs of toy, the first is 001\.png"):
        make_pairs(folder, names, labels=tmp_path / "labels")


def test_labels_for_some_datasets_only_are_refused(photo_folder, tmp_path):
    folder, names = photo_folder(1)
    write_labels(tmp_path / "labels" / "0", names, [np.zeros((1, 3), np.float32)], fingerprint="f")
    plain = PhotoSource(dataset="a", root=folder, names=names, warps=PLAIN)
    with pytest.raises(ConfigError, match="labels for all datasets or for none"):
        HomographyPairs([plain, dataclasses.replace(plain, labels=tmp_path / "labels")], size=(64, 48))


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("size", [(63, 200), (200, 47)])
def test_too_small_photographs_are_refused_or_enlarged(photo_folder, resize, size):
    folder, names = photo_folder(1, size=size)
    warps = dataclasses.replace(PLAIN, resize=resize)
    with pytest.raises(
        DataError, match=rf"000\.png: {size[0]} x {size[1]} pixels.*64 x 48.*small_images: upsample"
    ):
        make_pairs(folder, names, warps=warps).load(0, 0)
    enlarged = dataclasses.replace(warps, small_images="upsample")
    assert make_pairs(folder, names, warps=enlarged).load(0, 0).photos.shape == (1, 3, 48, 64)


def test_grey_deep_transparent_and_cmyk_photographs_become_rgb(tmp_path):
    from PIL import Image

    level = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    rgb = np.stack([level, level // 2, 255 - level], axis=2)
    names = [
        write(tmp_path, "grey.png", level),
        write(tmp_path, "deep.png", rgb[..., ::-1].astype(np.uint16) * 257),
        write(tmp_path, "alpha.png", np.dstack([rgb[..., ::-1], np.full_like(level, 9)])),
    ]
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    names.append("cmyk.jpg")
    pairs = make_pairs(tmp_path, names)
    frames = [pairs.load(index, 0).photos[0].permute(1, 2, 0).numpy().astype(int) for index in range(4)]
    np.testing.assert_array_equal(frames[0], np.repeat(level[..., None], 3, axis=2))
    np.testing.assert_array_equal(frames[1], rgb)
    np.testing.assert_array_equal(frames[2], rgb)
    assert np.abs(frames[3] - rgb).mean() < 4


def test_unreadable_photographs_are_named(photo_folder):
    folder, names = photo_folder(1)
    data = (folder / names[0]).read_bytes()
    pairs = make_pairs(folder, names)
    (folder / names[0]).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"000\.png: truncated PNG"):
        pairs.load(0, 0)
    (folder / names[0]).unlink()
    with pytest.raises(DataError, match=r"000\.png: cannot be read"):
        pairs.load(0, 0)
    with pytest.raises(DataError, match=r"000\.png: cannot be read"):
        make_pairs(folder, names)


def test_no_photograph_and_tiny_views_are_refused(tmp_path, photo_folder):
    folder, names = photo_folder(1)
    with pytest.raises(DataError, match="no photograph in 1 datasets"):
        make_pairs(folder, ())
    with pytest.raises(ConfigError, match="image_size"):
        make_pairs(folder, names, size=(8, 64))


def test_views_without_overlap_are_given_up_with_a_reason(photo_folder):
    folder, names = photo_folder(1)
    far = AdaptationWarpConfig(patch_ratio=0.5, translation_overflow=1.0)
    warps = WarpConfig(sampler="superpoint", superpoint=far, min_valid_share=0.99, attempts=3)
    with pytest.raises(DataError, match=r"000\.png: no valid overlap: in 3 draws.*min_valid_share"):
        make_pairs(folder, names, warps=warps).load(0, 0)


def test_views_that_overlap_too_little_are_drawn_again(photo_folder):
    folder, names = photo_folder(1)
    far = AdaptationWarpConfig(patch_ratio=0.5, translation_overflow=0.3)
    shares = {}
    for least in (0.0, 0.3):
        warps = WarpConfig(
            sampler="superpoint", superpoint=far, min_valid_share=least, attempts=50, border_px=0
        )
        pairs = make_pairs(folder, names, warps=dataclasses.replace(warps, photometric=PLAIN.photometric))
        shares[least] = []
        for seed in range(25):
            views = pairs.load(0, seed).to("cpu")
            y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
            known = views.warp(torch.stack([x, y], dim=-1).reshape(1, -1, 2))[1]
            shares[least].append(known.float().mean().item())
    assert min(shares[0.0]) < 0.25 and min(shares[0.3]) > 0.27  # counted on every fourth pixel
