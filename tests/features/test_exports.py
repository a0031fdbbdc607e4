"""Features in the layouts of other programs: the layouts as those programs read them, and back."""

from __future__ import annotations

import errno
import typing
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from matchlib.cli import main
from matchlib.errors import ConfigError, DataError
from matchlib.features import exports
from matchlib.features.exports import HLOC_FILE, Layout, export_features, read_imw, read_posfeat_npz
from matchlib.features.npz import read_npz
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features

IMAGES = {"v_wall/1.ppm": 5, "v_wall/2.ppm": 0, "i_night/1.ppm": 3, "alone.jpg": 2}


def make_features(seed: int, n: int) -> Features:
    random = np.random.default_rng(seed)
    descriptors = random.normal(size=(n, 128)).astype(np.float32)
    return Features(
        keypoints=(2000 + 1000 * random.random((n, 2))).astype(np.float32),
        scores=-np.sort(-random.random(n)).astype(np.float32),
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        image_size=(4000, 3000),
    )


def write(path: Path, names: dict[str, int]) -> dict[str, Features]:
    images = {name: make_features(seed, n) for seed, (name, n) in enumerate(names.items())}
    with FeatureWriter(path, StoreHeader(method="toy", fingerprint="f")) as writer:
        for name, features in images.items():
            writer.add(name, features)
        writer.finish()
    return images


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Features]:
    return write(tmp_path / "features.h5", IMAGES)


@pytest.fixture
def reader(tmp_path: Path, images: dict[str, Features]) -> Iterator[FeatureReader]:
    with FeatureReader(tmp_path / "features.h5") as opened:
        yield opened


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_same(found: Features, expected: Features) -> None:
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=1e-6)
    assert found.image_size == expected.image_size


def test_posfeat_npz(reader: FeatureReader, images: dict[str, Features], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_features(reader, out, layout="posfeat-npz", postfix="mine") == 4
    assert files_of(out) == sorted(f"{name}.mine" for name in IMAGES)
    for name, features in images.items():
        # as the published evaluations read it
        loaded = np.load(out / f"{name}.mine")
        assert set(loaded.files) == {"keypoints", "scores", "descriptors"}
        assert {loaded[key].dtype for key in loaded.files} == {np.dtype(np.float32)}
        assert loaded["scores"].shape == (len(features), 1)
        np.testing.assert_array_equal(loaded["descriptors"], features.descriptors)
        assert_same(read_posfeat_npz(out / f"{name}.mine", (4000, 3000)), features)


def test_imw_h5(reader: FeatureReader, images: dict[str, Features], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_features(reader, out, layout="imw-h5") == 12
    kinds = ("keypoints", "descriptors", "scores", "scales")
    assert files_of(out) == sorted(
        f"{folder}{kind}.h5" for folder in ("", "v_wall/", "i_night/") for kind in kinds
    )
    for kind, columns in zip(kinds, (2, 128, 1, 1), strict=True):
        with h5py.File(out / "v_wall" / f"{kind}.h5") as file:
            assert {name: file[name].shape for name in file} == {"1": (5, columns), "2": (0, columns)}
            assert file["1"].dtype == np.float32
    with h5py.File(out / "v_wall/scales.h5") as file:
        assert (file["1"][()] == 1).all()
    for name, features in images.items():
        path = Path(name)
        assert_same(read_imw(out / path.parent, path.stem, (4000, 3000)), features)


@pytest.mark.parametrize("half", [False, True])
def test_hloc_h5(reader: FeatureReader, images: dict[str, Features], tmp_path: Path, half: bool) -> None:
    out = tmp_path / "out"
    assert export_features(reader, out, layout="hloc-h5", half_descriptors=half) == 1
    with h5py.File(out / HLOC_FILE) as file:
        group = file["v_wall/1.ppm"]
        assert {key: group[key].shape for key in group} == {
            "keypoints": (5, 2),
            "scores": (5,),
            "descriptors": (128, 5),
            "image_size": (2,),
        }
        assert group["keypoints"].dtype == group["scores"].dtype == np.float32
        assert group["descriptors"].dtype == (np.float16 if half else np.float32)
        assert group["image_size"][()].tolist() == [4000, 3000]
        assert not file.attrs
    with FeatureReader(out / HLOC_FILE) as exported:
        assert exported.names == reader.names
        for name, features in images.items():
            found = exported.read(name)
            np.testing.assert_array_equal(found.keypoints, features.keypoints)
            np.testing.assert_allclose(found.descriptors, features.descriptors, atol=1e-3 if half else 1e-6)


def test_our_own_file_is_of_the_hloc_layout(reader: FeatureReader, tmp_path: Path) -> None:
    export_features(reader, tmp_path / "out", layout="hloc-h5")
    with h5py.File(tmp_path / "features.h5") as ours, h5py.File(tmp_path / "out" / HLOC_FILE) as theirs:
        for name in IMAGES:
            assert set(ours[name]) == set(theirs[name])
            for key in ours[name]:
                assert ours[name][key].dtype == theirs[name][key].dtype
                np.testing.assert_array_equal(ours[name][key][()], theirs[name][key][()])


@pytest.mark.parametrize("layout", typing.get_args(Layout))
def test_the_command_knows_all_layouts(
    layout: str, reader: FeatureReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "features.h5"), "--out", str(out), "--format", layout]) == 0
    assert f"4 images in {len(files_of(out))} files" in capsys.readouterr().out


def test_npz_is_the_layout_without_a_choice(reader: FeatureReader, tmp_path: Path) -> None:
    assert main(["export", str(tmp_path / "features.h5"), "--out", str(tmp_path / "out")]) == 0
    assert files_of(tmp_path / "out") == sorted(f"{name}.npz" for name in IMAGES)


@pytest.mark.parametrize("layout", typing.get_args(Layout))
def test_an_export_that_fails_leaves_whole_files_and_can_be_run_again(
    layout: Layout, reader: FeatureReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    export_features(reader, whole, layout=layout)
    original, calls = FeatureReader.read, []

    def read(self: FeatureReader, name: str) -> Features:
        calls.append(name)
        if len(calls) == 3:
            raise OSError(errno.EIO, "the disk went away")
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureReader, "read", read)
        with pytest.raises(OSError, match="went away"):
            export_features(reader, out, layout=layout)
    assert set(files_of(out)) < set(files_of(whole)), "no temporary file is left, and not all are written"
    export_features(reader, out, layout=layout)
    assert files_of(out) == files_of(whole)
    for name in files_of(whole):
        assert (out / name).stat().st_size == (whole / name).stat().st_size


def test_images_that_coincide_without_their_ending_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "f.h5", {"a/1.jpg": 1, "a/1.png": 1})
    with FeatureReader(tmp_path / "f.h5") as reader:
        with pytest.raises(
            DataError, match=r"images 'a/1\.jpg' and 'a/1\.png' have one name in layout imw-h5"
        ):
            export_features(reader, tmp_path / "out", layout="imw-h5")
        assert not (tmp_path / "out").exists()
        assert export_features(reader, tmp_path / "out", layout="posfeat-npz") == 2


def test_combinations_that_no_layout_has(reader: FeatureReader, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="half precision: expected layout hloc-h5, got imw-h5"):
        export_features(reader, tmp_path, layout="imw-h5", half_descriptors=True)
    for postfix in ("", "a/b"):
        with pytest.raises(ConfigError, match="postfix: expected a word"):
            export_features(reader, tmp_path, layout="posfeat-npz", postfix=postfix)


def test_foreign_files_are_read_as_others_write_them(tmp_path: Path) -> None:
    """D2-Net's scores are (N,), CAPS writes none, and neither promises unit descriptors or float32."""
    keypoints = np.array([[1.5, 2.5], [3.0, 4.0]])
    descriptors = np.array([[3.0, 4.0], [0.0, 2.0]])
    with open(tmp_path / "a.d2-net", "wb") as stream:
        np.savez(stream, keypoints=keypoints, descriptors=descriptors, scores=np.array([0.5, 0.25]))
    with open(tmp_path / "a.caps", "wb") as stream:
        np.savez(stream, keypoints=keypoints, descriptors=descriptors)
    found = read_posfeat_npz(tmp_path / "a.d2-net", (9, 9))
    np.testing.assert_allclose(found.descriptors, [[0.6, 0.8], [0, 1]])
    assert found.scores.tolist() == [0.5, 0.25] and found.keypoints.dtype == np.float32
    assert read_posfeat_npz(tmp_path / "a.caps", (9, 9)).scores.tolist() == [1, 1]


@pytest.mark.parametrize("content", [b"", b"PK nothing", b"\x93NUMPY", b"text"])
def test_broken_npz_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.posfeat").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.posfeat: not a features file"):
        read_posfeat_npz(tmp_path / "bad.posfeat", (1, 1))


def test_npz_files_of_other_content_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "three.npz", keypoints=np.zeros((2, 3)), descriptors=np.zeros((2, 4)))
    np.savez(tmp_path / "none.npz", keypoints=np.zeros((2, 2)))
    for name in ("one.npy", "three.npz", "none.npz", "absent.npz"):
        with pytest.raises(DataError, match=name):
            read_posfeat_npz(tmp_path / name, (1, 1))


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "cut.npz", keypoints=np.zeros((50, 2)), descriptors=np.zeros((50, 4)))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for read in (read_npz, lambda path: read_posfeat_npz(path, (1, 1))):
        with pytest.raises(DataError, match=r"cut\.npz: not a features file"):
            read(tmp_path / "cut.npz")


def test_broken_imw_folders_are_named(reader: FeatureReader, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exports.export_features(reader, out, layout="imw-h5")
    with pytest.raises(DataError, match=r"no features of image 'absent' in layout imw-h5"):
        read_imw(out, "absent", (1, 1))
    (out / "scores.h5").unlink()
    assert read_imw(out, "alone", (1, 1)).scores.tolist() == [1, 1]
    (out / "keypoints.h5").write_bytes(b"noise")
    with pytest.raises(DataError, match="no features of image 'alone'"):
        read_imw(out, "alone", (1, 1))
