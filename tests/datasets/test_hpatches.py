from __future__ import annotations

import numpy as np
import pytest

from matchlib.datasets.hpatches import (
    EXCLUDED_SEQUENCES,
    image_set,
    list_sequences,
    list_split,
    read_homography,
    read_sequence,
    write_homography,
)
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError


def make_sequence(root, name):
    folder = root / name
    folder.mkdir(parents=True)
    for k in range(1, 7):
        (folder / f"{k}.ppm").write_bytes(b"P6 1 1 255\n" + bytes(3))
    for k in range(2, 7):
        write_homography(folder / f"H_1_{k}", np.diag([k, 1.0, 1.0]))


def test_homographies_read_back_to_the_last_bit(tmp_path):
    H = np.random.default_rng(0).normal(size=(3, 3)) / 3
    write_homography(tmp_path / "H_1_2", H)
    np.testing.assert_array_equal(read_homography(tmp_path / "H_1_2"), H)


def test_sequences_in_order_and_a_sequence_is_whole(tmp_path):
    for name in ("v_b", "i_a", "i_dc"):
        make_sequence(tmp_path, name)
    (tmp_path / "notes").mkdir()
    assert list_sequences(tmp_path) == ("i_a", "i_dc", "v_b")
    assert list_split(tmp_path, "108") == ("i_a", "v_b")
    assert list_split(tmp_path, "viewpoint") == ("v_b",)
    sequence = read_sequence(tmp_path, "v_b")
    assert [path.name for path in sequence.image_paths] == [f"{k}.ppm" for k in range(1, 7)]
    assert [H[0, 0] for H in sequence.homographies] == [2, 3, 4, 5, 6]
    assert image_set(tmp_path)[:2] == ["i_a/1.ppm", "i_a/2.ppm"] and len(image_set(tmp_path)) == 18
    with pytest.raises(ConfigError, match="unknown split"):
        list_split(tmp_path, "117")


@pytest.mark.parametrize("name", ["H_1_4", "3.ppm"])
def test_a_missing_file_is_named(tmp_path, name):
    make_sequence(tmp_path, "v_b")
    (tmp_path / "v_b" / name).unlink()
    with pytest.raises(DataError, match=f"v_b/{name}: not found"):
        read_sequence(tmp_path, "v_b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 0\n0 1 0\n", "expected 3 lines of 3 numbers, got 2"),
        ("1 0 0\n0 1\n0 0 1\n", "H_1_2:2: expected 3 numbers, got 2"),
        ("1 0 0\n0 0 0\n0 0 1\n", "invertible"),
        ("1 0 0\n0 nan 0\n0 0 1\n", "invertible"),
    ],
)
def test_broken_homographies_are_named(tmp_path, text, message):
    (tmp_path / "H_1_2").write_text(text)
    with pytest.raises(DataError, match=message):
        read_homography(tmp_path / "H_1_2")


def test_no_sequences_at_all(tmp_path):
    with pytest.raises(DataError, match="found none"):
        list_sequences(tmp_path / "nowhere")


def test_the_exclusion_leaves_52_and_56_of_57_and_59():
    assert sum(name.startswith("i_") for name in EXCLUDED_SEQUENCES) == 57 - 52
    assert sum(name.startswith("v_") for name in EXCLUDED_SEQUENCES) == 59 - 56


def test_real_sequences(shared_data):
    root = shared_data("hpatches")
    assert set(list_sequences(root)) >= {"i_leuven", "v_bark", "v_boat", "v_wormhole"}
    boat = read_sequence(root, "v_boat")  # its .ppm files hold grey PGM
    assert read_image(boat.image_paths[0]).shape == (680, 850, 3)
    assert all(H[2, 2] == pytest.approx(1) for H in boat.homographies)
