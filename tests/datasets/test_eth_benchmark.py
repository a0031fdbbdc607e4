"""The layout of the ETH local-feature benchmark: scenes, binaries byte by byte, true poses against another file."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from matchlib.datasets.aachen import write_pose_list
from matchlib.datasets.eth_benchmark import (
    list_matches,
    list_scenes,
    matches_path,
    read_descriptors,
    read_keypoints,
    read_matches,
    read_scene,
    read_truth,
    write_descriptors,
    write_keypoints,
    write_matches,
)
from matchlib.datasets.images import write_image
from matchlib.datasets.types import FORMATS
from matchlib.downloads.config import Archive, read_source
from matchlib.errors import DataError, ShapeError

DESCRIPTIONS = Path(__file__).parents[2] / "config" / "datasets"
FLOATS = st.floats(width=32, allow_nan=False)


def make_scene(root: Path, name: str, images: tuple[str, ...] = ("0000.png", "0001.png")) -> Path:
    for image in images:
        write_image(root / name / "images" / image, np.zeros((4, 6, 3), np.uint8))
    return root / name


def list_in_database(folder: Path, names: list[str]) -> None:
    (folder / "database.db").unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / "database.db")) as connection, connection:
        connection.execute("create table images (image_id integer primary key, name text)")
        connection.executemany("insert into images (name) values (?)", [(name,) for name in names])


# ---------------------------------------------------------------- scenes
def test_scenes_are_the_folders_with_images(tmp_path: Path) -> None:
    make_scene(tmp_path, "Herzjesu")
    make_scene(tmp_path, "Fountain")
    (tmp_path / "Alamo").mkdir()  # of the databases' archive: no images, so no scene
    (tmp_path / "Alamo" / "database.db").touch()
    assert list_scenes(tmp_path) == ("Fountain", "Herzjesu")
    assert list_scenes(tmp_path, "Herzjesu") == ("Herzjesu",)
    assert list_scenes(tmp_path / "Fountain") == ("Fountain",)  # the root may be the scene itself
    assert read_scene(tmp_path / "Fountain", "Fountain").names == read_scene(tmp_path, "Fountain").names


def test_a_scene_says_what_it_has(tmp_path: Path) -> None:
    folder = make_scene(tmp_path, "Fountain", ("b.png", "a/1.png"))
    scene = read_scene(tmp_path, "Fountain")
    assert scene.names == ("a/1.png", "b.png")
    assert scene.database is scene.pairs is scene.truth is None
    assert read_truth(scene) is None
    list_in_database(folder, ["b.png", "a/1.png"])
    (folder / "image-pairs.txt").write_text("a/1.png b.png\n")
    scene = read_scene(tmp_path, "Fountain")
    assert scene.database == folder / "database.db"
    assert scene.pairs == folder / "image-pairs.txt"


def test_a_database_says_which_images_a_scene_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_scene(tmp_path, "Fountain", ("0.png", "1.png", "2.png"))
    list_in_database(folder, ["2.png", "0.png", "gone.png"])
    assert read_scene(tmp_path, "Fountain").names == ("0.png", "2.png")
    assert "lists 3 images, 2 of them are there; 1 other images are left out" in caplog.text
    list_in_database(folder, ["elsewhere.png"])
    with pytest.raises(DataError, match="lists none of the 3 images .* it is of another scene"):
        read_scene(tmp_path, "Fountain")
    (folder / "database.db").write_bytes(b"no database")
    with pytest.raises(DataError, match="database.db: not a COLMAP database"):
        read_scene(tmp_path, "Fountain")


def test_absent_scenes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        list_scenes(tmp_path / "absent")
    with pytest.raises(DataError, match="expected folders <scene>/images, found none"):
        list_scenes(tmp_path)
    make_scene(tmp_path, "Fountain")
    with pytest.raises(DataError, match=r"no scene 'Herzjesu' \(there are: Fountain\)"):
        read_scene(tmp_path, "Herzjesu")
    (tmp_path / "Empty" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="expected image files"):
        read_scene(tmp_path, "Empty")


def test_the_format_is_registered_for_no_training() -> None:
    assert FORMATS.get("eth_benchmark").gives == frozenset()


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("eth_strecha_fountain", "Fountain"),
        ("eth_strecha_herzjesu", "Herzjesu"),
        ("eth_south_building", "South-Building"),
        ("eth_madrid", "Madrid_Metropolis"),
        ("eth_gendarmenmarkt", "Gendarmenmarkt"),
        ("eth_tower_of_london", "Tower_of_London"),
    ],
)
def test_descriptions_name_the_published_archives(name: str, scene: str) -> None:
    source = read_source(DESCRIPTIONS / f"{name}.yaml")
    assert (source.name, source.format, source.scenes) == (name, "eth_benchmark", (scene,))
    photographs, databases = source.archives
    assert isinstance(photographs, Archive) and isinstance(databases, Archive)
    assert scene in photographs.file_names()[0]
    assert databases.file_names() == ("Databases.tar.gz",)


# ---------------------------------------------------------------- binaries
def test_the_bytes_are_as_the_benchmark_says(tmp_path: Path) -> None:
    keypoints = np.array([[1.5, 2.5, 3, -0.5], [0, 479, 1, 0]], np.float32)
    write_keypoints(tmp_path / "k.bin", keypoints)
    assert (tmp_path / "k.bin").read_bytes() == struct.pack("<2i8f", 2, 4, *keypoints.ravel())
    write_matches(tmp_path / "m.bin", np.array([[0, 7], [70_000, 2**32 - 1]]))
    assert (tmp_path / "m.bin").read_bytes() == struct.pack("<2i4I", 2, 2, 0, 7, 70_000, 2**32 - 1)
    (tmp_path / "d.bin").write_bytes(struct.pack("<2i3f", 1, 3, 0.25, -8, 1e-3))
    np.testing.assert_array_equal(read_descriptors(tmp_path / "d.bin"), np.float32([[0.25, -8, 1e-3]]))


@settings(max_examples=30, deadline=None)
@given(
    keypoints=hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=FLOATS),
    descriptors=hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(0, 7)), elements=FLOATS),
    matches=hnp.arrays(np.uint32, st.tuples(st.integers(0, 5), st.just(2))),
)
def test_binaries_read_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory,
    keypoints: np.ndarray,
    descriptors: np.ndarray,
    matches: np.ndarray,
) -> None:
    folder = tmp_path_factory.mktemp("binaries")
    for name, values, write, read in (
        ("keypoints", keypoints, write_keypoints, read_keypoints),
        ("descriptors", descriptors, write_descriptors, read_descriptors),
        ("matches", matches, write_matches, read_matches),
    ):
        write(folder / name, values)
        found = read(folder / name)
        assert (found.shape, found.dtype) == (values.shape, values.dtype)
        assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a header of 8 bytes, got 0"),
        (struct.pack("<2i", 3, 4), "expected 56 bytes for 3 x 4 values, got 8"),
        (struct.pack("<2i5f", 1, 4, *[0.0] * 5), "expected 24 bytes for 1 x 4 values, got 28"),
        (struct.pack("<2i2f", 1, 2, 0, 0), "expected N x 4 values, got a header of 1 x 2"),
        (struct.pack("<2i", -1, 4), "got a header of -1 x 4"),
    ],
)
def test_broken_binaries_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "k.bin").write_bytes(data)
    with pytest.raises(DataError, match=f"k.bin: .*{message}"):
        read_keypoints(tmp_path / "k.bin")


def test_absent_binaries_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="k.bin: not found"):
        read_keypoints(tmp_path / "k.bin")
    with pytest.raises(ShapeError, match=r"expected shape \(N, 4\), got \(3, 2\)"):
        write_keypoints(tmp_path / "k.bin", np.zeros((3, 2), np.float32))
    assert not list(tmp_path.iterdir())


def test_pairs_are_read_from_the_names_of_match_files(tmp_path: Path) -> None:
    names = ("a.png", "b---c.png", "d/e.png")
    for pair in (("b---c.png", "a.png"), ("a.png", "d/e.png"), ("d/e.png", "b---c.png")):
        write_matches(matches_path(tmp_path, *pair), np.zeros((1, 2), int))
    found = {(name0, name1): path for name0, name1, path in list_matches(tmp_path, names)}
    assert set(found) == {("b---c.png", "a.png"), ("a.png", "d/e.png"), ("d/e.png", "b---c.png")}
    assert all(path == matches_path(tmp_path, *pair) for pair, path in found.items())
    with pytest.raises(DataError, match="of two images of the scene"):
        list(list_matches(tmp_path, names[:2]))


# ---------------------------------------------------------------- true poses
def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_poses_of_a_list_are_those_that_were_written(tmp_path: Path) -> None:
    folder = make_scene(tmp_path, "Fountain")
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation(np.array([1.0, -2, 0.5]), 2.1), [0.1, -30, 4e-5]
    write_pose_list(folder / "true_poses.txt", {"0001.png": T})
    truth = read_truth(read_scene(tmp_path, "Fountain"))
    assert truth is not None and list(truth) == ["0001.png"]
    np.testing.assert_allclose(truth["0001.png"], T, rtol=0, atol=1e-12)
    write_pose_list(folder / "true_poses.txt", {"0002.png": T})
    with pytest.raises(DataError, match=r"1 of 1 poses are of images that .* lacks: 0002.png"):
        read_truth(read_scene(tmp_path, "Fountain"))


def test_calibrations_agree_with_the_pairs_that_were_derived_from_them(
    shared_data: Callable[[str], Path],
) -> None:
    root = shared_data("sfm_sacre_coeur")
    scene = read_scene(root, "sfm_sacre_coeur")
    truth = read_truth(scene)
    assert truth is not None and tuple(truth) == scene.names and len(scene.names) == 10
    rows = [line.split() for line in (root / "pairs_with_gt.txt").read_text().splitlines()]
    assert len(rows) == 45
    for row in rows:
        name0, name1 = Path(row[0]).name, Path(row[1]).name
        T_0to1 = np.array(row[22:38], dtype=np.float64).reshape(4, 4)
        np.testing.assert_allclose(truth[name1] @ np.linalg.inv(truth[name0]), T_0to1, atol=1e-5)


def test_broken_calibrations_are_named(tmp_path: Path) -> None:
    folder = make_scene(tmp_path, "Sacre")
    (folder / "calibration").mkdir()
    scene = read_scene(tmp_path, "Sacre")
    with pytest.raises(DataError, match=r"no calibration_<image>.h5 of any of the 2 images"):
        read_truth(scene)
    path = folder / "calibration" / "calibration_0001.h5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="calibration_0001.h5: expected an HDF5 file with R and T"):
        read_truth(scene)
    for R in (np.diag([1.0, 1, -1]), 2 * np.eye(3)):
        with h5py.File(path, "w") as file:
            file["R"], file["T"] = R, np.zeros(3)
        with pytest.raises(DataError, match="calibration_0001.h5: expected a rotation R"):
            read_truth(scene)
