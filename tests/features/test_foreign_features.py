"""Features of other programs: written here as those programs write them, and broken in the ways they break."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.datasets.images import write_image
from matchlib.errors import ConfigError, DataError
from matchlib.features.exports import export_features
from matchlib.features.foreign_checks import check_inside
from matchlib.features.foreign_features import ForeignReader, convert_features, open_features
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features

SIZE = (96, 64)
COUNTS = {"db/1.png": 5, "db/2.png": 0, "query/night/1.png": 3}
Arrays = dict[str, np.ndarray]


def make_features(seed: int, n: int, dim: int = 8) -> Features:
    random = np.random.default_rng(seed)
    descriptors = random.normal(size=(n, dim)).astype(np.float32)
    return Features(
        keypoints=(random.random((n, 2)) * (np.array(SIZE) - 1)).astype(np.float32),
        scores=random.random(n).astype(np.float32),
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        image_size=SIZE,
    )


FEATURES = {name: make_features(seed, n) for seed, (name, n) in enumerate(COUNTS.items(), start=1)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in FEATURES:
        write_image(tmp_path / "images" / name, np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    return tmp_path / "images"


def raw_arrays(features: Features, **changes: np.ndarray | None) -> Arrays:
    arrays = {
        "keypoints": features.keypoints,
        "scores": features.scores,
        "descriptors": features.descriptors,
    }
    merged = {**arrays, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def write_npz(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        np.savez(stream, **arrays)


def write_hloc(path: Path, change: Callable[[Arrays], Arrays] = lambda arrays: arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, features in FEATURES.items():
            arrays = raw_arrays(features, descriptors=features.descriptors.T, image_size=np.array(SIZE))
            for key, array in change(arrays).items():
                file.create_dataset(f"{name}/{key}", data=array)
    return path


def assert_same(found: Features, expected: Features, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=atol, rtol=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=atol, rtol=0)
    np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=atol, rtol=0)
    assert found.image_size == expected.image_size


def source_of(layout: str, folder: Path) -> Path:
    """The same features in each layout, named as its program names them."""
    if layout == "hloc":
        return write_hloc(folder / "feats.h5")
    if layout == "posfeat-hloc":
        return write_hloc(folder / "feat.h5", lambda a: {**a, "descriptors": a["descriptors"].T})
    if layout == "imw":
        for parent in ("db", "query/night"):
            (folder / "imw" / parent).mkdir(parents=True)
        for key in ("keypoints", "descriptors", "scores"):
            for name, features in FEATURES.items():
                with h5py.File(folder / "imw" / Path(name).parent / f"{key}.h5", "a") as file:
                    file[Path(name).stem] = raw_arrays(features)[key]
        return folder / "imw"
    for name, features in FEATURES.items():
        arrays = raw_arrays(features)
        if layout == "posfeat":  # scores (N, 1)
            write_npz(folder / "posfeat" / f"{name}.posfeat", {**arrays, "scores": arrays["scores"][:, None]})
        elif layout == "d2-net":  # the third column is the scale
            scale = np.ones((len(features), 1), np.float32)
            keypoints = np.hstack([features.keypoints, scale])
            write_npz(folder / "d2-net" / f"{name}.d2-net", {**arrays, "keypoints": keypoints})
        elif layout == "r2d2":
            write_npz(folder / "r2d2" / f"{name}.r2d2", {**arrays, "imsize": np.array(SIZE)})
        else:
            write_npz(folder / "npz" / f"{name}.npz", {**arrays, "image_size": np.array(SIZE)})
    return folder / layout


LAYOUTS = ("hloc", "posfeat-hloc", "imw", "posfeat", "d2-net", "r2d2", "npz")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_features_and_converts(layout: str, tmp_path: Path, images: Path):
    source = source_of(layout, tmp_path)
    with open_features(source, images=images) as reader:
        assert reader.names == tuple(sorted(FEATURES)) and len(reader) == 3
        assert "db/1.png" in reader and "db/9.png" not in reader
        for name, expected in FEATURES.items():
            assert_same(reader.read(name), expected)
    converted = convert_features(source, tmp_path / "ours.h5", images=images)
    assert converted.images == 3 and converted.reused == 0 and converted.notices == ()
    with FeatureReader(tmp_path / "ours.h5") as ours:
        assert ours.digest == converted.digest
        assert ours.header is not None and str(tmp_path) not in repr(ours.header)
        assert ours.names == tuple(sorted(FEATURES))
        for name, expected in FEATURES.items():
            assert_same(ours.read(name), expected)
            assert ours.image_digest(name)


@pytest.mark.parametrize("layout", ["npz", "posfeat-npz", "imw-h5", "hloc-h5"])
def test_what_we_export_is_read_back(layout: str, tmp_path: Path, images: Path):
    with FeatureWriter(tmp_path / "ours.h5", StoreHeader(method="toy", fingerprint="f")) as writer:
        for name, features in FEATURES.items():
            writer.add(name, features)
        writer.finish()
    with FeatureReader(tmp_path / "ours.h5") as reader:
        export_features(reader, tmp_path / "out", layout=layout)
    source = tmp_path / "out" / "feat.h5" if layout == "hloc-h5" else tmp_path / "out"
    with open_features(source, images=images) as foreign:
        assert isinstance(foreign, ForeignReader)
        for name, expected in FEATURES.items():
            assert_same(foreign.read(name), expected)


def test_our_own_file_is_opened_as_itself_and_converts_to_the_same_bytes(tmp_path: Path):
    ours = tmp_path / "ours.h5"
    with FeatureWriter(ours, StoreHeader(method="toy", fingerprint="f")) as writer:
        writer.add("1.png", FEATURES["db/1.png"], image_digest="d")
        writer.finish({"2.png": "truncated"})
    with open_features(ours) as reader:
        assert isinstance(reader, FeatureReader)
    convert_features(ours, tmp_path / "copy.h5")
    assert (tmp_path / "copy.h5").read_bytes() == ours.read_bytes()
    with pytest.raises(ConfigError, match="another file"):
        convert_features(ours, ours)
    with pytest.raises(ConfigError, match="keeps its name"):
        convert_features(ours, tmp_path / "renamed.h5", method="other")


def test_equal_sources_give_equal_bytes_and_a_killed_conversion_goes_on(tmp_path: Path, images: Path):
    source = source_of("d2-net", tmp_path)
    last = source / "query/night/1.png.d2-net"
    whole = last.read_bytes()
    convert_features(source, tmp_path / "first.h5", images=images)
    broken = dict(np.load(last))
    write_npz(last, {**broken, "scores": np.full(3, np.nan, np.float32)})
    with pytest.raises(DataError, match="finite"):
        convert_features(source, tmp_path / "second.h5", images=images)
    assert not (tmp_path / "second.h5").exists()
    last.write_bytes(whole)
    again = convert_features(source, tmp_path / "second.h5", images=images)
    assert again.reused == 0, "the bytes changed in between, so nothing of that run counts"
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()
    assert convert_features(source, tmp_path / "second.h5", images=images).reused == 3


def test_a_conversion_that_was_stopped_keeps_what_it_had(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
):
    source = source_of("hloc", tmp_path)
    whole = convert_features(source, tmp_path / "whole.h5", images=images)
    read = ForeignReader.read

    def stop_at_the_last(self: ForeignReader, name: str) -> Features:
        if name == "query/night/1.png":
            raise KeyboardInterrupt
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(ForeignReader, "read", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            convert_features(source, tmp_path / "ours.h5", images=images)
    assert not (tmp_path / "ours.h5").exists()
    resumed = convert_features(source, tmp_path / "ours.h5", images=images)
    assert resumed.reused == 2 and resumed.digest == whole.digest
    assert (tmp_path / "ours.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_half_precision_is_named_with_its_step(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    points = np.array([[1025.0, 7.0], [2.0, 3.0]], np.float32)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file.create_group("a.jpg")
        group["keypoints"] = points.astype(np.float16)
        group["descriptors"] = np.eye(8, 2)
        group["image_size"] = np.array([1600, 1200])
    with caplog.at_level(logging.WARNING), open_features(tmp_path / "f.h5") as reader:
        found = reader.read("a.jpg")
        reader.read("a.jpg")
        assert isinstance(reader, ForeignReader) and "up to 1 px" in reader.notices()[-1]
        assert any("no scores" in text and "2 images" in text for text in reader.notices())
    messages = [record.getMessage() for record in caplog.records]
    assert sum("up to 1 px" in text for text in messages) == 1
    np.testing.assert_array_equal(found.keypoints[0], [1025.0, 7.0])  # the step from 1024 on is 1 px
    np.testing.assert_array_equal(found.scores, 1)


def test_descriptors_get_unit_length_with_a_notice(tmp_path: Path):
    source = write_hloc(tmp_path / "f.h5", lambda a: {**a, "descriptors": 3 * a["descriptors"]})
    converted = convert_features(source, tmp_path / "ours.h5")
    assert converted.notices == ("descriptors brought to unit length (2 images)",)
    with FeatureReader(tmp_path / "ours.h5") as ours:
        assert_same(ours.read("db/1.png"), FEATURES["db/1.png"])
        assert ours.read("db/2.png").descriptors.shape == (0, 8), "an image without keypoints has the same D"


FAULTS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "no descriptors": (lambda a: {k: v for k, v in a.items() if k != "descriptors"}, "descriptors"),
    "nan": (lambda a: {**a, "keypoints": a["keypoints"] * np.nan}, "keypoints: expected finite"),
    "inf": (lambda a: {**a, "descriptors": a["descriptors"] + np.inf}, "descriptors: expected finite"),
    "fewer scores": (lambda a: {**a, "scores": a["scores"][1:]}, r"scores: expected shape \(5,\)"),
    "one column": (lambda a: {**a, "keypoints": a["keypoints"][:, :1]}, r"keypoints: expected shape \(N, 2"),
    "packed bits": (lambda a: {**a, "descriptors": np.ones((8, 5), np.uint8)}, "floating point"),
    "text": (lambda a: {**a, "keypoints": np.full((5, 2), b"x")}, "real numbers"),
    "resized": (lambda a: {**a, "keypoints": a["keypoints"] * 10}, "resized image"),
    "yx": (lambda a: {**a, "keypoints": np.array([[2, 90]] * 5, np.float32)}, r"are they \(y, x\)"),
    "flat descriptors": (
        lambda a: {**a, "descriptors": a["descriptors"].ravel()},
        "descriptors: expected shape",
    ),
    "size": (lambda a: {**a, "image_size": np.array([1, 2, 3])}, "image_size: expected shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_image_is_named_and_nothing_is_written(fault: str, tmp_path: Path):
    change, message = FAULTS[fault]
    source = write_hloc(tmp_path / "f.h5", lambda a: change(a) if len(a["keypoints"]) == 5 else a)
    with pytest.raises(DataError, match=message) as caught:
        convert_features(source, tmp_path / "ours.h5")
    assert "f.h5" in str(caught.value) and "db/1.png" in str(caught.value)
    assert not (tmp_path / "ours.h5").exists()


def test_another_dimension_in_the_middle_is_refused(tmp_path: Path):
    write_npz(tmp_path / "f/a.jpg.npz", {**raw_arrays(make_features(1, 4)), "image_size": np.array(SIZE)})
    write_npz(tmp_path / "f/b.jpg.npz", {**raw_arrays(make_features(1, 4, 16)), "image_size": np.array(SIZE)})
    with pytest.raises(DataError, match=r"'b\.jpg': descriptors: expected dimension 8, as before, got 16"):
        convert_features(tmp_path / "f", tmp_path / "ours.h5")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_refused_and_not_run(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    hostile = np.array([Bomb()], dtype=object)
    write_npz(tmp_path / "f/db/1.png.sneaky", {"keypoints": hostile, "descriptors": hostile})
    with open_features(tmp_path / "f", images=images) as reader, pytest.raises(DataError, match="sneaky"):
        reader.read("db/1.png")
    (tmp_path / "feats.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        open_features(tmp_path / "feats.pkl")
    assert not (tmp_path / "exploded").exists()
    np.load(tmp_path / "f/db/1.png.sneaky", allow_pickle=True)["keypoints"]
    assert (tmp_path / "exploded").exists(), "the file would have run code, had anyone let it"


def test_features_of_several_methods_beside_the_images_need_the_postfix(tmp_path: Path, images: Path):
    for name, features in FEATURES.items():
        write_npz(images / f"{name}.d2-net", raw_arrays(features))
        write_npz(images / f"{name}.sift.v2", raw_arrays(features, scores=None))
    with pytest.raises(DataError, match=r"3 of 'd2-net', 3 of 'sift\.v2'; say the postfix"):
        open_features(images, images=images)
    with open_features(images, images=images, postfix="sift.v2") as reader:
        np.testing.assert_array_equal(reader.read("db/1.png").scores, 1)
    with pytest.raises(DataError, match=r"<image>\.orb"):
        open_features(images, images=images, postfix="orb")


def test_other_zip_files_are_passed_over_and_damaged_ones_are_not(tmp_path: Path, images: Path):
    source = source_of("posfeat", tmp_path)
    with zipfile.ZipFile(source / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with open_features(source, images=images) as reader:
        assert reader.names == tuple(sorted(FEATURES))
    damaged = source / "db/1.png.posfeat"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with (
        open_features(source, images=images) as reader,
        pytest.raises(DataError, match=r"1\.png\.posfeat: not a features file"),
    ):
        reader.read("db/1.png")


def test_names_without_ending_find_their_image_or_say_which_it_could_be(tmp_path: Path, images: Path):
    write_npz(tmp_path / "f/db/1.npz", {**raw_arrays(FEATURES["db/1.png"]), "image_size": np.array(SIZE)})
    with open_features(tmp_path / "f", images=images) as reader:
        assert reader.names == ("db/1.png",)
    with pytest.raises(DataError, match="without the ending of the image, such as 'db/1'"):
        open_features(tmp_path / "f")
    write_image(images / "db/1.jpg", np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    with pytest.raises(DataError, match=r"could be of db/1\.jpg and db/1\.png"):
        open_features(tmp_path / "f", images=images)
    write_npz(tmp_path / "f/db/1.png.npz", raw_arrays(FEATURES["db/1.png"]))
    (images / "db/1.jpg").unlink()
    with pytest.raises(DataError, match=r"both features of db/1\.png"):
        open_features(tmp_path / "f", images=images)


def test_sizes_that_are_missing_or_disagree(tmp_path: Path, images: Path):
    source = source_of("posfeat", tmp_path)
    with open_features(source) as reader, pytest.raises(DataError, match="give the folder of the images"):
        reader.read("db/1.png")
    write_image(images / "db/1.png", np.zeros((10, 10, 3), np.uint8))
    hloc = write_hloc(tmp_path / "f.h5")
    with open_features(hloc, images=images) as reader:
        with pytest.raises(DataError, match="10 x 10 pixels, got 96 x 64"):
            reader.read("db/1.png")
        with pytest.raises(DataError, match=r"no features of image 'x\.png'"):
            reader.read("x.png")
    (images / "db/2.png").unlink()
    with pytest.raises(DataError, match="'db/2.png' are of no image"):
        open_features(hloc, images=images)


def test_what_is_not_there_or_empty(tmp_path: Path):
    with pytest.raises(DataError, match="not found"):
        open_features(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no features found"):
        open_features(tmp_path / "empty")
    h5py.File(tmp_path / "bare.h5", "w").close()
    with pytest.raises(DataError, match="no features of any image"):
        convert_features(tmp_path / "bare.h5", tmp_path / "ours.h5")
    (tmp_path / "imw").mkdir()
    h5py.File(tmp_path / "imw" / "keypoints.h5", "w").create_dataset("1", data=np.zeros((2, 2)))
    write_image(tmp_path / "images/1.png", np.zeros((9, 9, 3), np.uint8))
    with (
        open_features(tmp_path / "imw", images=tmp_path / "images") as reader,
        pytest.raises(DataError, match=r"descriptors\.h5"),
    ):
        reader.read("1.png")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-3, 100, width=32), st.floats(-3, 70, width=32)), min_size=1, max_size=6),
)
def test_exactly_points_off_the_image_by_more_than_half_a_pixel_are_refused(
    points: list[tuple[float, float]],
):
    array = np.array(points, np.float32)
    is_inside = all(-1 <= x <= SIZE[0] and -1 <= y <= SIZE[1] for x, y in array)
    if is_inside:
        check_inside(array, SIZE)
    else:
        with pytest.raises(ValueError, match="inside the image of 96 x 64"):
            check_inside(array, SIZE)
