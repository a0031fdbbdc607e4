"""Lists of pose pairs: every format against closed forms or NumPy, published counts, hostile and broken files."""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.datasets.plain_pickle import read_plain_pickle
from matchlib.datasets.pose_pairs import (
    PosePair,
    PosePairSet,
    csv_columns,
    read_pose_pairs,
    write_pose_pairs,
)
from matchlib.errors import DataError, ShapeError

K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])


def rigid(rotation: tuple[float, float, float], t: tuple[float, float, float]) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(np.array(rotation))[0]
    T[:3, 3] = t
    return T


T0, T1 = rigid((0.1, -0.2, 0.3), (1, 2, 3)), rigid((-0.3, 0.1, 0.2), (-1, 0.5, 2))


def pair(**changes: Any) -> PosePair:
    values = {"name0": "a/0.jpg", "name1": "a/1.jpg", "K0": K, "K1": 2 * K / [[1], [1], [2]], "T_0to1": T0}
    return PosePair(**(values | changes))


def line(item: PosePair, *, turns: bool = True, short_pose: bool = False) -> str:
    T = item.T_0to1
    pose = [*T[:3, :3].ravel(), *T[:3, 3]] if short_pose else T.ravel()
    numbers = [*item.K0.ravel(), *item.K1.ravel(), *pose]
    head = [item.name0, item.name1, *([str(item.rot0), str(item.rot1)] if turns else [])]
    return " ".join([*head, *(repr(float(n)) for n in numbers)]) + "\n"


def assert_same(found: PosePair, expected: PosePair) -> None:
    for key in ("K0", "K1", "T_0to1"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))
    for key in ("name0", "name1", "rot0", "rot1", "scene", "size0", "size1"):
        assert getattr(found, key) == getattr(expected, key), key


# ---------------------------------------------------------------- text
@pytest.mark.parametrize("columns", [38, 36, 32])
def test_the_three_text_layouts_read_alike(tmp_path: Path, columns: int) -> None:
    item = pair(rot0=3 if columns == 38 else 0, scene="a")
    path = tmp_path / "pairs.txt"
    path.write_text("\n" + line(item, turns=columns == 38, short_pose=columns == 32))
    assert len(path.read_text().split()) == columns
    found = read_pose_pairs(path, kind="superglue", pixel_offset=0.5)
    assert_same(found.pairs[0], item)
    assert (found.pixel_offset, found.epipolar_threshold, found.root) == (0.5, 5e-4, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg b.jpg\n", "got 2"),
        ("a.jpg b.jpg 0 0\n", "got 4"),
        ("a.jpg\n", "got 1"),
        (line(pair()).replace("510.0", "x"), "expected numbers"),
        (line(pair()).replace("a/1.jpg 0 0", "a/1.jpg 0 7"), "rot1"),
        (line(pair()).replace("a/1.jpg 0 0", "a/1.jpg 0 0.5"), "whole number"),
        (line(pair()).replace("500.0", "-500.0"), "K0"),
        (line(pair()).replace("240.0", "nan"), "K0"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(line(pair()) + text)
    with pytest.raises(DataError, match=rf"pairs\.txt:2: .*{message}"):
        read_pose_pairs(path, kind="superglue")


def test_impossible_pairs_are_refused() -> None:
    skewed = K.copy()
    skewed[0, 1] = 1
    mirrored = np.diag([1.0, 1, -1, 1])
    stretched = np.diag([1.1, 1, 1, 1])
    with pytest.raises(DataError, match="K1"):
        pair(K1=skewed)
    for T in (mirrored, stretched, T0.T):
        with pytest.raises(DataError, match="T_0to1"):
            pair(T_0to1=T)
    with pytest.raises(ShapeError, match="T_0to1"):
        pair(T_0to1=T0[:3])
    with pytest.raises(DataError, match="size0"):
        pair(size0=(0, 4))


def test_an_empty_list_and_an_unknown_convention_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("\n")
    with pytest.raises(DataError, match=r"pairs\.txt: .*at least one pair"):
        read_pose_pairs(tmp_path / "pairs.txt", kind="superglue")
    with pytest.raises(DataError, match="pixel_offset"):
        PosePairSet(name="x", root=tmp_path, pairs=(pair(),), pixel_offset=0.25)
    with pytest.raises(DataError, match="not found"):
        read_pose_pairs(tmp_path / "absent.txt", kind="superglue")


# ---------------------------------------------------------------- our own files
angles = st.floats(-3, 3)


@settings(max_examples=30, deadline=None)
@given(
    rotation=st.tuples(angles, angles, angles),
    t=st.tuples(angles, angles, angles),
    focal=st.floats(1, 1e5),
    size=st.none() | st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
)
def test_json_reads_back_exactly(
    tmp_path_factory: Any, rotation: Any, t: Any, focal: float, size: Any
) -> None:
    folder = tmp_path_factory.mktemp("json")
    K_own = np.array([[focal, 0, 3.25], [0, focal / 3, 7], [0, 0, 1]])
    item = pair(K0=K_own, T_0to1=rigid(rotation, t), scene="s", size1=size, rot1=2)
    written = PosePairSet(name="own", root=folder, pairs=(item,), pixel_offset=0.5, epipolar_threshold=1e-4)
    write_pose_pairs(written, folder / "pairs.json")
    found = read_pose_pairs(folder / "pairs.json", kind="matchlib")
    assert_same(found.pairs[0], item)
    assert (found.name, found.pixel_offset, found.epipolar_threshold) == ("own", 0.5, 1e-4)
    assert found.digest == written.digest


def test_the_digest_covers_what_changes_figures_and_not_the_place(tmp_path: Path) -> None:
    one = PosePairSet(name="x", root=tmp_path, pairs=(pair(),))
    assert one.digest == PosePairSet(name="x", root=tmp_path / "moved", pairs=(pair(),)).digest
    others = [
        PosePairSet(name="x", root=tmp_path, pairs=(pair(),), pixel_offset=0.5),
        PosePairSet(name="x", root=tmp_path, pairs=(pair(),), epipolar_threshold=1e-4),
        PosePairSet(name="x", root=tmp_path, pairs=(pair(T_0to1=T1),)),
        PosePairSet(name="x", root=tmp_path, pairs=(pair(size0=(2, 2)),)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5


def write_csv(path: Path, columns: list[str], row: list[str]) -> None:
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([columns, row])


def test_csv_reads_by_column_name(tmp_path: Path) -> None:
    item = pair(scene="s", rot0=1, size1=(640, 480))
    cells = dict(zip(csv_columns(), line(item, turns=False).split(), strict=True))
    cells |= {"width1": "640", "height1": "480", "width0": "", "height0": "", "scene": "s", "rot0": "1"}
    columns = sorted(cells, reverse=True)
    write_csv(tmp_path / "pairs.csv", columns, [cells[key] for key in columns])
    assert_same(read_pose_pairs(tmp_path / "pairs.csv", kind="matchlib").pairs[0], item)
    fewer = [key for key in columns if key != "name1"]
    write_csv(tmp_path / "few.csv", fewer, [cells[key] for key in fewer])
    with pytest.raises(DataError, match=r"few\.csv:1: columns missing: \['name1'\]"):
        read_pose_pairs(tmp_path / "few.csv", kind="matchlib")
    write_csv(tmp_path / "short.csv", columns, [cells[key] for key in columns[:-1]])
    with pytest.raises(DataError, match=r"short\.csv:2"):
        read_pose_pairs(tmp_path / "short.csv", kind="matchlib")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.pop("layout"), "layout"),
        (lambda body: body.update(pixel_ofset=1), "pixel_ofset"),
        (lambda body: body["pairs"][0].pop("K0"), r"pairs\[0\]: 'K0' is missing"),
        (lambda body: body["pairs"][0].update(K0=[1, 2]), r"pairs\[0\]"),
        (lambda body: body["pairs"][0].update(colour="red"), r"pairs\[0\].*colour"),
        (lambda body: body.update(pairs={}), "list 'pairs'"),
    ],
)
def test_a_broken_json_list_is_named(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path = tmp_path / "pairs.json"
    write_pose_pairs(PosePairSet(name="x", root=tmp_path, pairs=(pair(),)), path)
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(DataError, match=rf"pairs\.json: .*{message}"):
        read_pose_pairs(path, kind="matchlib")
    path.write_text("{")
    with pytest.raises(DataError, match=r"pairs\.json"):
        read_pose_pairs(path, kind="matchlib")


# ---------------------------------------------------------------- glue-factory
def write_scene(folder: Path, *, camera: str = "SIMPLE_RADIAL 640 480 500 320 240 0") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (f"s/{i}.jpg", T, camera if i else "PINHOLE 640 480 500 510 320 240") for i, T in enumerate((T0, T1))
    ]
    text = [
        " ".join([name, *(repr(float(n)) for n in [*T[:3, :3].ravel(), *T[:3, 3]]), model])
        for name, T, model in rows
    ]
    (folder / "views.txt").write_text("\n".join(text))
    (folder / "pairs.txt").write_text("s/0.jpg s/1.jpg\n")


def test_glue_factory_scenes(tmp_path: Path) -> None:
    write_scene(tmp_path / "one")
    found = read_pose_pairs(tmp_path / "one", kind="glue_factory")
    (item,) = found.pairs
    assert (item.name0, item.name1, item.scene) == ("images/s/0.jpg", "images/s/1.jpg", "s")
    np.testing.assert_array_equal(item.K0, K)
    np.testing.assert_array_equal(item.K1, [[500, 0, 320], [0, 500, 240], [0, 0, 1]])
    np.testing.assert_allclose(item.T_0to1, T1 @ np.linalg.inv(T0), atol=1e-12)
    assert (found.pixel_offset, item.size0) == (0.5, (640, 480))
    write_scene(tmp_path / "two")
    both = read_pose_pairs(tmp_path, kind="glue_factory")
    assert [p.name0 for p in both.pairs] == ["one/images/s/0.jpg", "two/images/s/0.jpg"]


def test_broken_glue_factory_scenes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"views\.txt"):
        read_pose_pairs(tmp_path, kind="glue_factory")
    write_scene(tmp_path, camera="SIMPLE_RADIAL 640 480 500 320 240 0.1")
    with pytest.raises(DataError, match=r"views\.txt:2: .*undistorted"):
        read_pose_pairs(tmp_path, kind="glue_factory")
    write_scene(tmp_path, camera="FISHEYE 640 480 500 320 240 0")
    with pytest.raises(DataError, match=r"views\.txt:2: .*FISHEYE"):
        read_pose_pairs(tmp_path, kind="glue_factory")
    write_scene(tmp_path)
    (tmp_path / "pairs.txt").write_text("s/0.jpg s/2.jpg")
    with pytest.raises(DataError, match=r"pairs\.txt:1: s/2\.jpg"):
        read_pose_pairs(tmp_path, kind="glue_factory")


# ---------------------------------------------------------------- published indices
def test_the_published_megadepth_index_reads_as_numpy_reads_it(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("megadepth_index")
    found = read_pose_pairs(folder, kind="megadepth")
    assert len(found) == 300
    assert (found.scenes, found.pixel_offset, found.epipolar_threshold) == (("0015",), 0.5, 1e-4)
    body = np.load(folder / "0015_0.1_0.3.npz", allow_pickle=True)
    for item, info in zip(found.pairs, body["pair_infos"], strict=True):
        i, j = info[0]
        assert (item.name0, item.name1) == (body["image_paths"][i], body["image_paths"][j])
        np.testing.assert_array_equal(item.K1, body["intrinsics"][j])
        expected = body["poses"][j] @ np.linalg.inv(body["poses"][i])
        np.testing.assert_allclose(item.T_0to1, expected, atol=1e-9)


def test_the_published_scannet_index_has_1500_pairs_of_100_scans(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("scannet_index")
    found = read_pose_pairs(folder, kind="scannet")
    assert (len(found), len(found.scenes)) == (1500, 100)
    table = np.load(folder / "test.npz")
    last = found.pairs[-1]
    scene, sub, frame0, frame1 = table["name"][-1]
    assert last.name0 == f"scene{scene:04d}_{sub:02d}/color/{frame0}.jpg"
    assert last.name1.endswith(f"/{frame1}.jpg")
    assert last.size0 == (640, 480)
    np.testing.assert_array_equal(last.T_0to1[:3].ravel(), table["rel_pose"][-1])


def scene_index(path: Path, **changes: Any) -> None:
    columns: dict[str, Any] = {
        "image_paths": ["Undistorted_SfM/7/images/a.jpg", None, "Undistorted_SfM/7/images/b.jpg"],
        "intrinsics": [K, None, K],
        "poses": [T0, None, T1],
        "pair_infos": [((np.int64(0), 2), np.float64(0.3), np.zeros(4))],
    }
    body: dict[str, Any] = {}
    for key, values in (columns | changes).items():
        body[key] = values
        if key != "pair_infos":
            body[key] = np.empty(len(values), dtype=object)
            body[key][:] = values
    path.write_bytes(pickle.dumps(body))


def test_scene_indices_of_a_folder_are_joined_and_faults_named(tmp_path: Path) -> None:
    scene_index(tmp_path / "7_a.npz")
    scene_index(tmp_path / "7_b.npz", pair_infos=[((2, 0), 0.3, None), ((0, 2), 0.3, None)])
    found = read_pose_pairs(tmp_path, kind="megadepth")
    assert [item.name0[-5:] for item in found.pairs] == ["a.jpg", "b.jpg", "a.jpg"]
    np.testing.assert_allclose(found.pairs[1].T_0to1 @ found.pairs[0].T_0to1, np.eye(4), atol=1e-12)
    for index in ((0, 1), (0, 3), (-1, 0)):
        scene_index(tmp_path / "7_b.npz", pair_infos=[(index, 0.3, None)])
        with pytest.raises(DataError, match=r"7_b\.npz: pair_infos\[0\]"):
            read_pose_pairs(tmp_path, kind="megadepth")
    (tmp_path / "7_b.npz").write_bytes(pickle.dumps({"image_paths": []}))
    with pytest.raises(DataError, match="intrinsics"):
        read_pose_pairs(tmp_path, kind="megadepth")


def test_a_scannet_list_without_fitting_arrays_is_named(tmp_path: Path) -> None:
    name, pose = np.array([[1, 0, 2, 3]], np.uint16), T0[None, :3].reshape(1, 12)
    np.savez(tmp_path / "test.npz", name=name, rel_pose=pose)
    np.savez(tmp_path / "intrinsics.npz", scene0002_00=K)
    with pytest.raises(DataError, match="scene0001_00"):
        read_pose_pairs(tmp_path, kind="scannet")
    np.savez(tmp_path / "intrinsics.npz", scene0001_00=K)
    assert len(read_pose_pairs(tmp_path, kind="scannet")) == 1
    np.savez(tmp_path / "test.npz", name=name, rel_pose=pose[:, :9])
    with pytest.raises(DataError, match=r"rel_pose: expected shape \(P, 12\)"):
        read_pose_pairs(tmp_path, kind="scannet")
    np.savez(tmp_path / "test.npz", name=np.array([[object()] * 4]), rel_pose=pose)
    with pytest.raises(DataError, match=r"test\.npz"):
        read_pose_pairs(tmp_path, kind="scannet")


# ---------------------------------------------------------------- pickles
class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_hostile_pickles_run_nothing(tmp_path: Path, protocol: int) -> None:
    import codecs

    target = tmp_path / "was-here"
    hostile = {
        "system": Call(os.system, f"touch {target}"),
        "eval": Call(eval, f"open({str(target)!r}, 'w')"),
        # Without a check this reads Python objects from addresses of the sender's choice.
        "ndarray": Call(np.ndarray, (1,), "O", b"\x01" * 8),
        "_codecs|codec": Call(codecs.encode, "x", "bz2"),
        "V8|dtype": np.zeros(2, dtype=[("a", "<f4"), ("b", "<f4")]),
    }
    for words, value in hostile.items():
        path = tmp_path / "hostile.npz"
        path.write_bytes(pickle.dumps({"pair_infos": [value]}, protocol=protocol))
        with pytest.raises(DataError, match=rf"hostile\.npz: .*({words})"):
            read_pose_pairs(path, kind="megadepth")
    assert not target.exists()


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)


@settings(max_examples=60, deadline=None)
@given(
    plain=st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner), max_leaves=8
    ),
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["f4", "f8", ">f8", "i8", "u2", "?"]),
    is_fortran=st.booleans(),
    protocol=st.sampled_from([2, 3, 4, 5]),
)
def test_plain_values_read_as_pickle_reads_them(
    tmp_path_factory: Any, plain: Any, shape: list[int], dtype: str, is_fortran: bool, protocol: int
) -> None:
    path = tmp_path_factory.mktemp("pickle") / "x.pkl"
    numbers = (
        np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype, order="F" if is_fortran else "C")
    )
    objects = np.empty(3, dtype=object)
    objects[:] = [plain, numbers, None]
    path.write_bytes(pickle.dumps([plain, numbers, objects, np.float32(1.5), numbers], protocol=protocol))
    found = read_plain_pickle(path)
    assert found[0] == plain
    for array in (found[1], found[4], found[2][1]):
        assert array.dtype == numbers.dtype
        np.testing.assert_array_equal(array, numbers)
    assert found[2].dtype == object
    assert found[2][2] is None
    assert found[3] == np.float32(1.5)
    assert found[3].dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_damaged_pickles_are_data_errors_or_values(tmp_path_factory: Any, cut: int, flip: int) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    whole = pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": [np.float64(1), "text"]})
    for data in (whole[: min(cut, len(whole) - 1)], bytes([*whole[:flip], 255, *whole[flip + 1 :]])):
        (folder / "x.pkl").write_bytes(data)
        try:
            read_plain_pickle(folder / "x.pkl")
        except DataError as error:
            assert "x.pkl" in str(error)
    with pytest.raises(DataError, match="at most 10 bytes"):
        read_plain_pickle(folder / "x.pkl", max_bytes=10)
    with pytest.raises(DataError, match="cannot be read"):
        read_plain_pickle(folder / "absent.pkl")
