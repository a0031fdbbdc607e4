"""CAPS' MegaDepth layout: what is written is read back, and every fault of a file is named with its line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from matchlib.datasets import caps_megadepth as caps
from matchlib.datasets.images import write_image
from matchlib.datasets.types import FORMATS, Camera
from matchlib.errors import ConfigError, DataError

# Columns as the public loader indexes them: 3 to 6 are fx fy cx cy, 7 to 15 R, 16 to 18 t.
LINE = "a.jpg 640 480 500 510 319.5 239.5 1 0 0 0 0 -1 0 1 0 0.5 -2 3"


def camera(number: int = 0, size: tuple[int, int] = (64, 48)) -> Camera:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0.01 * number, 0.02 * number, -0.03]).as_matrix()
    T[:3, 3] = [number, 0.1, 1 / 3]
    K = np.array([[60.0 + number, 0, 31.5], [0, 55.0, 23.5], [0, 0, 1]])
    return Camera(K=K, T_world_to_cam=T, size=size)


def sub_model(
    root: Path,
    names: list[str],
    pairs: list[tuple[str, str]] | None,
    *,
    place: str = "train/0000/dense0",
    size: tuple[int, int] = (64, 48),
) -> Path:
    aligned = root / place / "aligned"
    caps.write_cameras(aligned / "img_cam.txt", {name: camera(i) for i, name in enumerate(names)})
    if pairs is not None:
        caps.write_pairs(aligned / "pairs.txt", pairs)
    for name in names:
        write_image(aligned / "images" / name, np.full((size[1], size[0], 3), 90, np.uint8))
    return aligned


def rewrite(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- img_cam.txt
def test_columns_are_those_of_the_public_layout(tmp_path: Path) -> None:
    read = caps.read_cameras(rewrite(tmp_path / "img_cam.txt", f"# a comment\n\n  {LINE}\n"))["a.jpg"]
    assert read.size == (640, 480)
    assert read.K.tolist() == [[500, 0, 319.5], [0, 510, 239.5], [0, 0, 1]]
    assert read.T_world_to_cam.tolist() == [[1, 0, 0, 0.5], [0, 0, -1, -2], [0, 1, 0, 3], [0, 0, 0, 1]]


finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e5)


@given(
    st.lists(
        st.tuples(positive, positive, finite, finite, st.tuples(finite, finite, finite), finite),
        min_size=1,
        max_size=4,
    )
)
def test_cameras_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    cameras = {}
    for number, (fx, fy, cx, cy, t, angle) in enumerate(rows):
        T = np.eye(4)
        T[:3, :3] = Rotation.from_euler("xyz", [angle, 2 * angle, 0.3]).as_matrix()
        T[:3, 3] = t
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        cameras[f"{number}.jpg"] = Camera(K=K, T_world_to_cam=T, size=(640, 480))
    path = tmp_path_factory.mktemp("cameras") / "img_cam.txt"
    caps.write_cameras(path, cameras)
    read = caps.read_cameras(path)
    assert list(read) == list(cameras)
    for name, one in cameras.items():
        assert np.array_equal(read[name].K, one.K)
        assert np.array_equal(read[name].T_world_to_cam, one.T_world_to_cam)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINE.rsplit(" ", 1)[0], r"img_cam.txt:1: expected 19 columns .* got 18"),
        (f"{LINE}\n{LINE}", r"img_cam.txt:2: image a.jpg was given before"),
        (LINE.replace(" 500 ", " 0 "), r"img_cam.txt:1: .* focal lengths above 0, got 640 x 480, fx 0"),
        (LINE.replace(" 510 ", " nan "), r"img_cam.txt:1: expected finite numbers"),
        (LINE.replace(" 640 ", " 640.5 "), r"img_cam.txt:1: image size: expected a whole number"),
        (LINE.replace(" 1 0 0 0 0 -1 ", " 1 0 0 0 0 1 "), r"img_cam.txt:1: expected a rotation"),  # a mirror
        (LINE.replace(" 1 0 0 0 0 -1 ", " 2 0 0 0 0 -1 "), r"img_cam.txt:1: expected a rotation"),
        (LINE.replace("500", "five"), r"img_cam.txt:1: expected numbers"),
        (f"../../{LINE}", r"img_cam.txt:1: expected an image name"),
        ("# nothing\n", r"img_cam.txt: expected a line for each image, found none"),
    ],
)
def test_broken_cameras_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        caps.read_cameras(rewrite(tmp_path / "img_cam.txt", text))


def test_what_the_layout_cannot_say_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "img_cam.txt"
    one = camera()
    bent = Camera(K=one.K, T_world_to_cam=one.T_world_to_cam, size=one.size, distortion=(0.1, 0, 0))
    with pytest.raises(DataError, match="undistort it first"):
        caps.write_cameras(path, {"a.jpg": bent})
    with pytest.raises(DataError, match="without white space"):
        caps.write_cameras(path, {"a b.jpg": one})
    assert not path.exists()


# ---------------------------------------------------------------- pairs.txt
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=40))
def test_pairs_are_kept_once_and_the_rest_is_counted(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    caps.write_pairs(path, pairs)
    read = caps.read_pairs(path, dict.fromkeys("abcdef"))
    proper = [pair for pair in pairs if pair[0] != pair[1]]
    assert {frozenset(pair) for pair in read.pairs} == {frozenset(pair) for pair in proper}
    assert len(read.pairs) + read.repeated + read.selfs == len(pairs)
    assert read.selfs == len(pairs) - len(proper)
    assert all(pair in pairs for pair in read.pairs)  # the first mention says who comes first


def test_any_white_space_separates_names(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "pairs.txt", "a   b\n\n\tb\tc  \n")
    assert caps.read_pairs(path, dict.fromkeys("abc")).pairs == (("a", "b"), ("b", "c"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b\na b c\n", r"pairs.txt:2: expected two image names, got 3 words"),
        ("a\n", r"pairs.txt:1: expected two image names, got 1 words"),
        ("a b\n\na x.jpg\n", r"pairs.txt:3: image x.jpg has no camera in .*img_cam.txt"),
    ],
)
def test_broken_pairs_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        caps.read_pairs(rewrite(tmp_path / "pairs.txt", text), dict.fromkeys("abc"))


# ---------------------------------------------------------------- scenes
def test_a_scene_is_all_its_sub_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sub_model(tmp_path, ["b.jpg", "a.jpg"], [("b.jpg", "a.jpg")])
    sub_model(tmp_path, ["a.jpg", "c.jpg", "d.jpg"], [("a.jpg", "d.jpg")], place="train/0000/dense2")
    sub_model(tmp_path, ["a.jpg", "b.jpg"], None, place="train/0000/dense10")
    with caplog.at_level(logging.INFO):
        scene = caps.read_scene(tmp_path, "0000")
    assert list(scene.images) == list(range(7))
    places = [image.image_path.relative_to(tmp_path / "train/0000").parts for image in scene.images.values()]
    assert [(p[0], p[-1]) for p in places] == [
        ("dense0", "a.jpg"),
        ("dense0", "b.jpg"),
        ("dense2", "a.jpg"),
        ("dense2", "c.jpg"),
        ("dense2", "d.jpg"),
        ("dense10", "a.jpg"),
        ("dense10", "b.jpg"),
    ]
    assert scene.images[0].camera.K[0, 0] == 61  # a.jpg is the second line of its file
    assert scene.candidate_pairs == ((0, 1), (2, 4))
    assert all(image.depth_path is None for image in scene.images.values())
    assert "dense10/aligned/pairs.txt: not there" in caplog.text


def test_empty_repeated_and_self_pairs_are_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.jpg", "b.jpg"]
    sub_model(tmp_path, names, [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg"), ("a.jpg", "a.jpg")])
    sub_model(tmp_path, names, [], place="train/0000/dense1")
    with caplog.at_level(logging.INFO):
        assert caps.read_scene(tmp_path, "0000").candidate_pairs == ((0, 1),)
    assert "left out 1 repeated pairs and 1 of an image with itself" in caplog.text
    assert "dense1/aligned/pairs.txt: no pairs" in caplog.text


def test_many_pairs_are_drawn_alike_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    names = [f"{number:03d}.jpg" for number in range(110)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    assert len(pairs) == 5995
    drawn = []
    for number, listed in enumerate((pairs, pairs[::-1])):
        root = tmp_path / str(number)
        sub_model(root, names[:1], [])  # one image is enough: only a header is read
        cameras = {name: camera() for name in (names if number else reversed(names))}
        caps.write_cameras(root / "train/0000/dense0/aligned/img_cam.txt", cameras)
        caps.write_pairs(root / "train/0000/dense0/aligned/pairs.txt", listed)
        drawn.append(caps.read_scene(root, "0000").candidate_pairs)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == caps.MAX_PAIRS_PER_MODEL
    assert list(drawn[0]) == sorted(drawn[0])
    expected = {(int(b[:3]), int(a[:3])) for a, b in pairs}
    assert set(drawn[0]) < expected
    # A fair draw of 5000 of 5995 leaves pairs out everywhere, not only at the end.
    left_out = sorted(expected - set(drawn[0]))
    assert 0.4 < np.mean([pair[1] < 55 for pair in left_out]) / np.mean([p[1] < 55 for p in expected]) < 1.6


def test_the_stored_size_counts_and_a_lie_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sub_model(tmp_path, ["a.jpg", "b.jpg"], [], size=(32, 24))
    scene = caps.read_scene(tmp_path, "0000")
    assert scene.images[1].camera.size == (32, 24)
    assert scene.images[1].camera.K[0, 0] == 61
    assert "says 64 x 48 px, but the image has 32 x 24" in caplog.text


def test_a_missing_image_is_no_concern_of_the_index_but_no_image_at_all_is(tmp_path: Path) -> None:
    aligned = sub_model(tmp_path, ["a.jpg", "b.jpg"], [("a.jpg", "b.jpg")])
    (aligned / "images" / "a.jpg").unlink()
    assert len(caps.read_scene(tmp_path, "0000").images) == 2
    (aligned / "images" / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"images: expected images, found none of 2 that can be read"):
        caps.read_scene(tmp_path, "0000")


def test_scenes_by_phase(tmp_path: Path) -> None:
    for place in ("train/0001/dense0", "train/0000/dense1", "val/0042/dense0"):
        sub_model(tmp_path, ["a.jpg"], [], place=place)
    (tmp_path / "train" / "0007").mkdir()  # no sub-model
    assert caps.list_scenes(tmp_path, "train") == ("0000", "0001")
    assert caps.list_scenes(tmp_path, "val") == ("0042",)
    assert caps.list_scenes(tmp_path, "all") == ("0000", "0001", "0042")
    with pytest.raises(DataError, match=r"expected CAPS-MegaDepth scenes \(test/<scene>"):
        caps.list_scenes(tmp_path, "test")
    with pytest.raises(ConfigError, match="unknown split 'training'"):
        caps.list_scenes(tmp_path, "training")
    with pytest.raises(DataError, match="expected scene 0007"):
        caps.read_scene(tmp_path, "0007")
    sub_model(tmp_path, ["a.jpg"], [], place="val/0000/dense0")
    with pytest.raises(DataError, match="scene 0000 lies in train and val"):
        caps.read_scene(tmp_path, "0000")


def test_the_format_is_registered_with_pose_alone() -> None:
    assert FORMATS.get("caps_megadepth").gives == {"pose"}
    assert FORMATS.get("caps_megadepth").folder_splits == {"all", "train", "val", "test"}
