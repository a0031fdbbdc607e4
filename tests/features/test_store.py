"""Features on disk: hloc's layout, resuming after a kill, broken and foreign files."""

from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import subprocess
import sys
import time
import weakref
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
    with h5py.File(tmp_path / "f.h5.work" / "part-000000.h5", "r+") as file:
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
    with pytest.raises(KeyboardInterrupt), FeatureWriter(path, HEADER, part_bytes=1) as writer:
        assert writer.kept == {}, "the other run has removed the parts that it cannot use"
        writer.add("a", make_features(0))
        writer.add("b", make_features(1))
        raise KeyboardInterrupt
    (tmp_path / "f.h5.work" / "part-000000.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"rubbish" * 100)
    with FeatureWriter(path, HEADER) as writer:
        assert list(writer.kept) == ["b"], "one damaged part does not cost the others"


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    with (
        FeatureWriter(tmp_path / "f.h5", HEADER),
        pytest.raises(DataError, match="writing here"),
        FeatureWriter(tmp_path / "f.h5", HEADER),
    ):
        pass


def sealed_parts(path: Path) -> list[str]:
    return sorted(part.name for part in path.with_name(path.name + ".work").glob("*.h5"))


def test_parts_are_sealed_by_size_and_by_time(tmp_path: Path) -> None:
    bytes_each = 4 * 7 * (2 + 1 + 4)
    with FeatureWriter(tmp_path / "size.h5", HEADER, part_bytes=3 * bytes_each) as writer:
        for index in range(8):
            writer.add(f"{index}", make_features(index))
        assert sealed_parts(writer.path) == ["part-000000.h5", "part-000001.h5"]
    with FeatureWriter(tmp_path / "time.h5", HEADER, part_seconds=0.05) as writer:
        writer.add("a", make_features(0))
        assert sealed_parts(writer.path) == []
        time.sleep(0.06)
        writer.add("b", make_features(1))
        assert sealed_parts(writer.path) == ["part-000000.h5"]


def test_a_slice_of_a_large_map_does_not_keep_the_map_in_memory(tmp_path: Path) -> None:
    large = np.zeros((4096, 4096), np.float32)  # 64 MiB
    small = Features(
        keypoints=np.zeros((1, 2), np.float32),
        scores=np.ones(1, np.float32),
        descriptors=large[:1, :4],
        image_size=(9, 9),
    )
    with FeatureWriter(tmp_path / "f.h5", HEADER) as writer:
        writer.add("a", small)
        held = weakref.ref(large)
        del small, large
        gc.collect()
        assert held() is None


def test_the_last_version_of_an_image_counts(tmp_path: Path) -> None:
    """Within a part, across parts, and over a finished file that lends an older one."""
    path = tmp_path / "f.h5"
    write(path, {"a": make_features(0), "b": make_features(1), "c": make_features(2)})
    with pytest.raises(KeyboardInterrupt), FeatureWriter(path, HEADER, part_bytes=1) as writer:
        writer.add("a", make_features(10), image_digest="older")
        writer.add("a", make_features(11), image_digest="newer")
        raise KeyboardInterrupt
    with FeatureWriter(path, HEADER) as writer:
        assert writer.kept == {"a": "newer", "b": "digest of b", "c": "digest of c"}
        writer.add("b", make_features(12))
        writer.add("b", make_features(13))
        writer.finish()
    with FeatureReader(path) as reader:
        for name, seed in (("a", 11), ("b", 13), ("c", 2)):
            assert_same(reader.read(name), make_features(seed))


def test_equal_images_give_equal_bytes_whatever_came_between(tmp_path: Path) -> None:
    images = {f"db/{index}.jpg": make_features(index) for index in range(9)}
    write(tmp_path / "whole.h5", images)
    whole = (tmp_path / "whole.h5").read_bytes()
    time.sleep(1.1)  # HDF5 keeps times in whole seconds
    path = tmp_path / "f.h5"
    for attempt in range(5):
        with contextlib.suppress(KeyboardInterrupt), FeatureWriter(path, HEADER, part_bytes=300) as writer:
            for name in reversed(images):
                if name not in writer.kept:
                    writer.add(name, images[name], image_digest=f"digest of {name}")
                    if attempt < 4 and len(writer.kept) == attempt:
                        raise KeyboardInterrupt
            writer.finish()
    assert path.read_bytes() == whole
    assert write(path, images) == write(path, {}) != "", "a finished file lends all"
    assert path.read_bytes() == whole


WRITE_MANY = """
import os, signal, sys
from pathlib import Path
import numpy as np
from matchlib.features.store import FeatureWriter, StoreHeader
from matchlib.features.types import Features

path, kill_at_rename = Path(sys.argv[1]), int(sys.argv[2])
renames = 0

def count_renames(event, arguments):
    global renames
    if event == "os.rename":
        renames += 1
        if renames == kill_at_rename:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count_renames)
bytes_each = 4 * 200 * (2 + 1 + 16)
with FeatureWriter(path, StoreHeader(method="toy", fingerprint="f0"), part_bytes=10 * bytes_each) as writer:
    print(len(writer.kept), flush=True)
    for index in range(400):
        draw = np.random.default_rng(index)
        if f"i/{index}.png" not in writer.kept:
            writer.add(f"i/{index}.png", Features(
                keypoints=draw.uniform(size=(200, 2)).astype(np.float32),
                scores=draw.uniform(size=200).astype(np.float32),
                descriptors=draw.uniform(size=(200, 16)).astype(np.float32), image_size=(9, 9)))
            print("added", flush=True)
    print(writer.finish(), flush=True)
"""
IMAGES_PER_PART = 10


def start_writing(path: Path, kill_at_rename: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE_MANY, str(path), str(kill_at_rename)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def progress(lines: list[str]) -> tuple[int, int]:
    """Images kept from earlier runs, and images stored in the end, of one run."""
    return int(lines[0]), int(lines[0]) + lines.count("added")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("undisturbed") / "whole.h5"
    assert start_writing(path).communicate()[0].split()[0] == "0"
    return path.read_bytes()


def test_killed_at_random_moments_only_the_open_part_is_lost(tmp_path: Path, undisturbed: bytes) -> None:
    path, stored, draw = tmp_path / "killed.h5", 0, np.random.default_rng(0)
    for wait_for in draw.integers(1, 40, 8):
        process = start_writing(path)
        assert process.stdout is not None
        lines = [line.strip() for line in itertools.islice(process.stdout, int(wait_for))]
        time.sleep(draw.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        kept, stored_now = progress([*lines, *process.communicate()[0].split()])
        # One more than was said, if the kill fell between sealing a part and saying "added".
        assert stored - IMAGES_PER_PART < kept <= stored + 1
        stored = stored_now
    kept, stored_now = progress(start_writing(path).communicate()[0].split())
    assert stored - IMAGES_PER_PART < kept <= stored + 1 and stored_now == 400
    assert kept > 0, "no part was sealed before any kill; the test shows nothing"
    assert path.read_bytes() == undisturbed


def test_killed_before_any_rename_the_file_still_ends_the_same(tmp_path: Path, undisturbed: bytes) -> None:
    """Renames seal a part and finish the file: the two moments at which the state on disk changes."""
    path, runs = tmp_path / "killed.h5", [1, 2, 15, 26, 1]
    for number, kill_at in enumerate(runs):
        process = start_writing(path, kill_at)
        kept, _ = progress(process.communicate()[0].split())
        assert process.returncode == -signal.SIGKILL
        assert kept == IMAGES_PER_PART * sum(rename - 1 for rename in runs[:number])
        assert not path.exists()
    assert kept == 400 and start_writing(path).communicate()[0].split()[0] == "400"
    assert path.read_bytes() == undisturbed
    assert [entry.name for entry in tmp_path.iterdir()] == ["killed.h5"]


def test_a_full_disk_hides_no_error_and_costs_no_sealed_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "f.h5"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(RuntimeError, match="first error"),
        FeatureWriter(path, HEADER, part_bytes=1) as writer,
    ):
        writer.add("a", make_features(0))
        monkeypatch.setattr("matchlib.features.store._write_file", full)
        with pytest.raises(OSError, match="No space"):
            writer.add("b", make_features(1))
        raise RuntimeError("first error")
    assert "1 images could not be kept" in caplog.text
    monkeypatch.undo()
    with FeatureWriter(path, HEADER) as writer:
        assert list(writer.kept) == ["a"]


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
