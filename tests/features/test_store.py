"""Features on disk: hloc's layout, resuming after a kill, broken and foreign files."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import DataError, ShapeError
from matchlib.features.npz import export_npz, read_npz
from matchlib.features.store import (
    FeatureReader,
    FeatureWriter,
    StoreHeader,
    features_digest,
)
from matchlib.features.types import Features

HEADER = StoreHeader(method="toy", fingerprint="f0", settings={"k": 3})


def make_features(seed: int, n: int = 7, d: int = 4) -> Features:
    draw = np.random.default_rng(seed)
    descriptors = draw.normal(size=(n, d)).astype(np.float32)
    return Features(
        keypoints=draw.uniform(0, 4000, (n, 2)).astype(np.float32),
        scores=np.sort(draw.uniform(size=n).astype(np.float32))[::-1].copy(),
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        image_size=(640, 480),
    )


def assert_same(a: Features, b: Features) -> None:
    for name in ("keypoints", "scores", "descriptors"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.image_size == b.image_size


def write(path: Path, images: dict[str, Features], header: StoreHeader = HEADER) -> str:
    with FeatureWriter(path, header) as writer:
        for name, features in images.items():
            writer.add(name, features, image_digest=f"digest of {name}")
        return writer.finish()


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    images = {"b.jpg": make_features(0), "db/a/1.jpg": make_features(1), "empty.png": make_features(2, n=0)}
    digest = write(tmp_path / "f.h5", images)
    with FeatureReader(tmp_path / "f.h5") as reader:
        assert reader.names == ("b.jpg", "db/a/1.jpg", "empty.png")
        assert reader.header == HEADER and reader.digest == digest
        assert "db/a/1.jpg" in reader and "db/a" not in reader and "nothing" not in reader
        assert reader.image_digest("b.jpg") == "digest of b.jpg"
        for name, features in images.items():
            assert_same(reader.read(name), features)
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"], "no work folder is left behind"


def test_layout_is_the_one_hloc_reads(tmp_path: Path) -> None:
    features = make_features(0)
    write(tmp_path / "f.h5", {"db/1.jpg": features})
    with h5py.File(tmp_path / "f.h5", "r") as file:
        group = file["db"]["1.jpg"]
        assert sorted(group) == ["descriptors", "image_size", "keypoints", "scores"]
        assert group["keypoints"].dtype == np.float32 and group["descriptors"].dtype == np.float32
        np.testing.assert_array_equal(group["keypoints"][()], features.keypoints)
        np.testing.assert_array_equal(group["descriptors"][()], features.descriptors.T)
        np.testing.assert_array_equal(group["image_size"][()], [640, 480])


def test_a_file_written_by_hloc_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "hloc.h5", "w") as file:
        group = file.create_group("query/night/1.jpg")
        group.create_dataset("keypoints", data=rng.uniform(0, 500, (5, 2)).astype(np.float16))
        group["keypoints"].attrs["uncertainty"] = 1.0
        group.create_dataset("descriptors", data=rng.normal(size=(8, 5)).astype(np.float16))
        group.create_dataset("image_size", data=np.array([100, 50]))
    with FeatureReader(tmp_path / "hloc.h5") as reader:
        features = reader.read("query/night/1.jpg")
        assert reader.header is None and len(reader.digest) == 64
    assert features.keypoints.dtype == np.float32 and features.image_size == (100, 50)
    np.testing.assert_array_equal(features.scores, np.ones(5, np.float32))
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-6)


def test_digest_depends_on_values_not_on_order_of_writing(tmp_path: Path) -> None:
    a, b = make_features(0), make_features(1)
    first = write(tmp_path / "1.h5", {"a": a, "b": b})
    assert write(tmp_path / "2.h5", {"b": b, "a": a}) == first
    assert write(tmp_path / "3.h5", {"a": b, "b": a}) != first
    assert write(tmp_path / "4.h5", {"a": a, "b": b}, StoreHeader(method="toy", fingerprint="f1")) != first


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(0, 20), d=st.integers(1, 9), where=st.integers(0, 2))
def test_features_digest_notices_any_change(seed: int, n: int, d: int, where: int) -> None:
    features = make_features(seed, n, d)
    assert features_digest(features) == features_digest(make_features(seed, n, d))
    array = (features.keypoints, features.scores, features.descriptors)[where]
    if array.size:
        before = features_digest(features)
        array.flat[seed % array.size] += 1
        assert features_digest(features) != before


def test_nothing_appears_before_finish_and_finished_images_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt), FeatureWriter(path, HEADER) as writer:
        writer.add("a", make_features(0), image_digest="x")
        raise KeyboardInterrupt
    assert not path.exists()
    with FeatureWriter(path, HEADER) as writer:
        assert writer.kept == {"a": "x"}
        writer.add("b", make_features(1), image_digest="y")
        resumed = writer.finish()
    whole = tmp_path / "whole.h5"
    with FeatureWriter(whole, HEADER) as writer:
        writer.add("a", make_features(0), image_digest="x")
        writer.add("b", make_features(1), image_digest="y")
        assert writer.finish() == resumed


@pytest.mark.parametrize("damage", ["no flag", "missing dataset", "changed value", "wrong shape"])
def test_an_image_that_is_not_intact_is_not_kept(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt), FeatureWriter(path, HEADER) as writer:
        writer.add("good", make_features(0))
        writer.add("bad", make_features(1))
        raise KeyboardInterrupt
    with h5py.File(tmp_path / "f.h5.work" / "features.h5", "r+") as file:
        if damage == "no flag":
            del file["bad"].attrs["complete"]
        elif damage == "changed value":
            file["bad/descriptors"][0, 0] += 1
        else:
            del file["bad/scores"]
            if damage == "wrong shape":
                file["bad/scores"] = np.zeros(3, np.float32)
    with FeatureWriter(path, HEADER) as writer:
        assert list(writer.kept) == ["good"]


def test_state_of_other_settings_or_damaged_state_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt), FeatureWriter(path, HEADER) as writer:
        writer.add("a", make_features(0))
        raise KeyboardInterrupt
    with FeatureWriter(path, StoreHeader(method="toy", fingerprint="other")) as writer:
        assert writer.kept == {}
    (tmp_path / "f.h5.work" / "features.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"rubbish" * 100)
    with FeatureWriter(path, HEADER) as writer:
        assert writer.kept == {}


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    with (
        FeatureWriter(tmp_path / "f.h5", HEADER),
        pytest.raises(DataError, match="writing here"),
        FeatureWriter(tmp_path / "f.h5", HEADER),
    ):
        pass


WRITE_SLOWLY = """
import sys
from pathlib import Path
import numpy as np
from matchlib.features.store import FeatureWriter, StoreHeader
from matchlib.features.types import Features
with FeatureWriter(Path(sys.argv[1]), StoreHeader(method="toy", fingerprint="f0")) as writer:
    print(len(writer.kept), flush=True)
    for index in range(400):
        draw = np.random.default_rng(index)
        if f"i/{index}.png" not in writer.kept:
            writer.add(f"i/{index}.png", Features(
                keypoints=draw.uniform(size=(200, 2)).astype(np.float32),
                scores=draw.uniform(size=200).astype(np.float32),
                descriptors=draw.uniform(size=(200, 16)).astype(np.float32), image_size=(9, 9)))
    print(writer.finish(), flush=True)
"""


def test_killed_at_random_moments_the_file_still_ends_the_same(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITE_SLOWLY, str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    whole = start("whole.h5").communicate()[0].split()
    delays = np.random.default_rng(0).uniform(0.01, 0.15, 8)
    kept = []
    for delay in delays:
        process = start("killed.h5")
        assert process.stdout is not None
        kept.append(int(process.stdout.readline()))
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    resumed = start("killed.h5").communicate()[0].split()
    assert resumed[1] == whole[1]
    # A kill inside an HDF5 flush may cost the progress so far, but not every kill falls into one.
    assert max(*kept, int(resumed[0])) > 0, f"no progress survived any kill: {kept}"


def test_a_finished_file_lends_its_images_to_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    write(path, {"a": make_features(0), "b": make_features(1)})
    with FeatureWriter(path, HEADER) as writer:
        assert writer.kept == {"a": "digest of a", "b": "digest of b"}
        writer.drop("a")
        writer.finish()
    with FeatureReader(path) as reader:
        assert reader.names == ("b",)


def test_readers_name_file_and_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.h5: not found"):
        FeatureReader(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"text\.h5: not a readable HDF5 file"):
        FeatureReader(tmp_path / "text.h5")
    with FeatureWriter(tmp_path / "f.h5", HEADER) as writer:
        writer.add("a", make_features(0))
        writer.finish({"broken.jpg": "truncated JPEG"})
    with FeatureReader(tmp_path / "f.h5") as reader:
        with pytest.raises(DataError, match=r"f\.h5: image 'broken.jpg' could not be read .*truncated JPEG"):
            reader.read("broken.jpg")
        with pytest.raises(DataError, match=r"f\.h5: no features of image 'c.jpg' \(it has 1 images: a\)"):
            reader.read("c.jpg")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        del file["a/image_size"]
    with FeatureReader(tmp_path / "f.h5") as reader, pytest.raises(DataError, match="image 'a'.*image_size"):
        reader.read("a")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(DataError, match=r"f\.h5: not finished"):
        FeatureReader(tmp_path / "f.h5")


@pytest.mark.parametrize("name", ["/abs.jpg", "../up.jpg", "a/../../b", "", "a//b", "./a"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with FeatureWriter(tmp_path / "f.h5", HEADER) as writer, pytest.raises(DataError, match="image name"):
        writer.add(name, make_features(0))


def test_npz_export_reads_back_without_pickle(tmp_path: Path) -> None:
    images = {"db/1.jpg": make_features(0), "2.jpg": make_features(1, n=0)}
    write(tmp_path / "f.h5", images)
    with FeatureReader(tmp_path / "f.h5") as reader:
        assert export_npz(reader, tmp_path / "npz") == 2
    for name, features in images.items():
        with np.load(tmp_path / "npz" / f"{name}.npz", allow_pickle=False) as arrays:
            assert sorted(arrays) == ["descriptors", "image_size", "keypoints", "scores"]
            assert arrays["keypoints"].dtype == np.float32
        assert_same(read_npz(tmp_path / "npz" / f"{name}.npz"), features)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"bad\.npz"):
        read_npz(tmp_path / "bad.npz")


def test_half_precision_keypoints_cannot_be_stored() -> None:
    with pytest.raises(ShapeError, match="keypoints: expected float32, got float16"):
        Features(
            keypoints=np.zeros((1, 2), np.float16),  # type: ignore[arg-type]
            scores=np.zeros(1, np.float32),
            descriptors=np.zeros((1, 4), np.float32),
            image_size=(1, 1),
        )
