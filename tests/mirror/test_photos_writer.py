"""COCO-like photographs: upstream's layout, textured, varied, and of their own pool only."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

import matchlib.mirror.photos_writer as photos_writer
import matchlib.mirror.textures as textures
from matchlib.datasets.images import read_image
from matchlib.downloads.config import read_source
from matchlib.downloads.dataset import download_archive, unpack_dataset
from matchlib.mirror.config import CocoMirrorConfig
from matchlib.mirror.photos_writer import SPLIT_POOLS, draw_photograph, photograph_names, sharpness
from matchlib.mirror.textures import POOLS, load_photograph
from matchlib.mirror.tiny import tiny_photographs

CONFIG = CocoMirrorConfig(train_images=96, validation_images=16)
DESCRIPTIONS = Path(__file__).parents[2] / "config" / "datasets"


def test_archives_hold_what_upstream_calls_it(mirror, tiny_config):
    for split, count in (("train2017", 10), ("val2017", 2)):
        with zipfile.ZipFile(mirror.archives / f"{split}.zip") as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            assert names == [
                f"{split}/{name}" for name in photograph_names(split, tiny_config.coco, seed=tiny_config.seed)
            ]
            assert len(names) == count
            for name in names:
                assert re.fullmatch(rf"{split}/\d{{12}}\.jpg", name)
                pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
                assert 96 <= max(pixels.shape[:2]) <= 128


def test_the_demo_description_leads_from_the_mirror_to_readable_images(mirror, tmp_path):
    source = read_source(DESCRIPTIONS / "demo_coco.yaml")
    for archive in source.archives:
        download_archive(source, archive.name, tmp_path / archive.name, mirror_root=mirror.archives)
    unpack_dataset(source, tmp_path, tmp_path / "coco")
    paths = sorted((tmp_path / "coco").rglob("*.jpg"))
    assert [path.parent.name for path in paths] == ["train2017"] * 10 + ["val2017"] * 2
    assert all(max(read_image(path).shape) <= 128 for path in paths)


def test_the_descriptions_of_upstream_name_its_archives():
    """Their lengths are what cocodataset.org rounds to 18, 1 and 6 GB."""
    names = {"train2017": 18e9, "val2017": 1e9, "test2017": 6e9}
    archives = [
        *read_source(DESCRIPTIONS / "coco2017.yaml").archives,
        *read_source(DESCRIPTIONS / "coco2017_test.yaml").archives,
    ]
    assert [archive.name for archive in archives] == list(names)
    for archive in archives:
        assert archive.urls == (f"http://images.cocodataset.org/zips/{archive.name}.zip",)
        assert archive.facts(archive.file_names()[0]).digests()
        assert archive.total_bytes() == pytest.approx(names[archive.name], rel=0.2)
    assert read_source(DESCRIPTIONS / "photos.yaml").archives == ()


def test_names_are_sorted_and_no_number_is_in_both_splits():
    train, validation = (photograph_names(split, CONFIG, seed=0) for split in SPLIT_POOLS)
    assert (len(train), len(validation)) == (96, 16)
    assert list(train) == sorted(train)
    assert list(validation) == sorted(validation)
    assert len({*train, *validation}) == 112


def test_some_photographs_are_grey_and_the_others_are_not(tmp_path):
    tiny_photographs(tmp_path, train_images=10)
    channels = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ndim
        for path in sorted((tmp_path / "train2017").glob("*.jpg"))
    ]
    assert channels.count(2) == 1
    assert channels.count(3) == 9
    for path in tmp_path.rglob("*.jpg"):
        assert read_image(path).shape[2] == 3


def test_a_photograph_depends_on_its_address_alone():
    few = CocoMirrorConfig(train_images=3, validation_images=1)
    first = draw_photograph("train2017", 2, CONFIG, seed=5)
    np.testing.assert_array_equal(first, draw_photograph("train2017", 2, few, seed=5))
    for split, index, seed in (("train2017", 3, 5), ("train2017", 2, 6), ("val2017", 2, 5)):
        other = draw_photograph(split, index, CONFIG, seed=seed)
        assert other.shape != first.shape or (other != first).mean() > 0.5


def test_shapes_vary_as_in_coco():
    pictures = [draw_photograph("train2017", index, CONFIG, seed=0) for index in range(40)]
    longer = [max(picture.shape[:2]) for picture in pictures]
    assert min(longer) >= 320
    assert max(longer) <= 480
    assert len(set(longer)) > 20
    lying = sum(picture.shape[1] > picture.shape[0] for picture in pictures)
    assert 15 <= lying <= 35
    assert any(picture.shape[0] > picture.shape[1] for picture in pictures)


@pytest.mark.parametrize("split", list(SPLIT_POOLS))
def test_every_photograph_has_something_to_detect(split):
    """Corners by Shi and Tomasi's measure, which the writer does not use, and texture in most places."""
    for index in range(16):
        picture = draw_photograph(split, index, CONFIG, seed=0)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        corners = cv2.goodFeaturesToTrack(grey, 500, 0.02, 3)
        assert len(corners) > 100, index
        assert sharpness(picture) > 100, index


def test_flat_pictures_are_drawn_again(monkeypatch):
    """A pool of one flat photograph and one of noise: the flat one is hardly ever shown alone."""
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3)).astype(np.uint8)
    flat = np.full((600, 600, 3), 128, np.uint8)
    monkeypatch.setattr(photos_writer, "pool_names", lambda _pool: ("flat", "flat", "noise"))
    monkeypatch.setattr(photos_writer, "load_photograph", {"flat": flat, "noise": noise}.__getitem__)
    monkeypatch.setattr(photos_writer, "_WALL_SHARE", 0.0)
    shown = [draw_photograph("train2017", index, CONFIG, seed=0).std() > 5 for index in range(20)]
    assert sum(shown) >= 18  # (2/3)^8 = 4 % of pictures are flat in all eight tries


def test_sharpness_is_zero_where_there_is_nothing():
    assert sharpness(np.full((40, 50, 3), 77, np.uint8)) == 0
    board = np.indices((40, 50)).sum(axis=0) % 2 * 255
    assert sharpness(np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)) > 1e5


@pytest.mark.parametrize(("split", "pool"), SPLIT_POOLS.items())
def test_photographs_come_from_their_own_pool_only(monkeypatch, split, pool):
    opened: set[str] = set()

    def record(name):
        opened.add(name)
        return load_photograph(name)

    monkeypatch.setattr(textures, "load_photograph", record)
    monkeypatch.setattr(photos_writer, "load_photograph", record)
    for index in range(12):
        draw_photograph(split, index, CONFIG, seed=1)
    assert len(opened) >= 3
    assert opened <= set(POOLS[pool])
