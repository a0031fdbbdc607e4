"""Folders of photographs and COCO's layout: what is listed, in which order, and what is said when it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from matchlib.datasets.photos import list_coco, list_folder, list_scenes
from matchlib.datasets.types import FORMATS
from matchlib.errors import ConfigError, DataError
from matchlib.registry import load_symbol


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_are_found_at_any_depth_sorted_without_hidden_files(tmp_path):
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/c.tiff", "notes.txt", ".thumbs/x.jpg", "a/.y.jpg", "A.webp")
    assert list_folder(tmp_path, "all") == ("A.webp", "a/b/c.tiff", "a/z.png", "b.JPG")


@pytest.mark.parametrize("prefix", ["", "images/"])
def test_coco_splits_are_folders_below_the_root_or_below_images(tmp_path, prefix):
    touch(tmp_path, f"{prefix}train2017/000000000030.jpg", f"{prefix}train2017/000000000009.jpg")
    touch(tmp_path, f"{prefix}val2017/000000000139.jpg", "annotations/instances_val2017.json")
    expected = tuple(f"{prefix}train2017/{number:012d}.jpg" for number in (9, 30))
    assert list_coco(tmp_path, "train2017") == expected
    assert list_coco(tmp_path, "val2017") == (f"{prefix}val2017/000000000139.jpg",)


def test_a_missing_split_names_the_archive_to_fetch(tmp_path):
    with pytest.raises(DataError, match=r"expected a folder test2017.*zips/test2017\.zip"):
        list_coco(tmp_path, "test2017")
    touch(tmp_path, "test2017/readme.txt")
    with pytest.raises(DataError, match=r"found none; unpack test2017\.zip"):
        list_coco(tmp_path, "test2017")


def test_unknown_splits_name_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="unknown split 'train2014'.*train2017, val2017"):
        list_coco(tmp_path, "train2014")
    with pytest.raises(ConfigError, match="unknown split 'train'"):
        list_folder(tmp_path, "train")


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected images"):
        list_folder(tmp_path, "all")
    with pytest.raises(DataError, match="no such folder"):
        list_folder(tmp_path / "nowhere", "all")


@pytest.mark.parametrize("name", ["photos", "coco"])
def test_the_formats_are_registered_as_photographs_without_scenes(name, tmp_path):
    spec = FORMATS.get(name)
    assert spec.gives == {"homography"} and spec.read_scene is None
    assert load_symbol(spec.list_scenes) is list_scenes and list_scenes(tmp_path, "all") == ()
    assert spec.list_images is not None and callable(load_symbol(spec.list_images))
