"""Labels on disk: what is written is read, and what does not belong together is refused."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest

from matchlib.completion import MARKER, verify_folder
from matchlib.errors import DataError, ShapeError
from matchlib.photo_pairs.labels import COUNTS, NAMES, POINTS, PseudoLabels, finished_shards, write_labels


def some_points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3), dtype=np.float32)


@pytest.fixture
def shards(tmp_path):
    """Two finished shards and one that is not; returns (folder, name -> points)."""
    expected = {}
    for shard, counts in (("00", (3, 0, 5)), ("01", (2,))):
        names = [f"{shard}/{number}.jpg" for number in range(len(counts))]
        points = [some_points(count, seed=count) for count in counts]
        write_labels(tmp_path / shard, names, points, fingerprint="f")
        expected |= dict(zip(names, points, strict=True))
    (tmp_path / "02").mkdir()
    return tmp_path, expected


def test_points_come_back_by_name(shards):
    folder, expected = shards
    labels = PseudoLabels(finished_shards(folder))
    assert len(labels) == 4
    for name, points in expected.items():
        assert name in labels
        np.testing.assert_array_equal(labels.points(name), points)
        assert labels.points(name).dtype == np.float32 and labels.points(name).flags.writeable
    again = pickle.loads(pickle.dumps(labels))
    np.testing.assert_array_equal(again.points("00/2.jpg"), expected["00/2.jpg"])


def test_a_photograph_without_labels_is_named(shards):
    with pytest.raises(DataError, match=r"'03/0\.jpg' has no labels among the 4 photographs of 2 shards"):
        PseudoLabels(finished_shards(shards[0])).points("03/0.jpg")


def test_the_digest_follows_the_labels_and_not_their_place(shards, tmp_path):
    folder, expected = shards
    labels = PseudoLabels(finished_shards(folder))
    assert PseudoLabels(finished_shards(folder)[::-1]).digest == labels.digest
    write_labels(folder / "01", ["01/0.jpg"], [some_points(2, seed=9)], fingerprint="f")
    assert PseudoLabels(finished_shards(folder)).digest != labels.digest


def test_equal_labels_are_equal_bytes_and_can_be_verified(tmp_path):
    for place in ("a", "b"):
        write_labels(tmp_path / place, ["x", "y"], [some_points(4), some_points(0)], fingerprint="f")
    for name in (NAMES, COUNTS, POINTS, MARKER):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert verify_folder(tmp_path / "a") == []
    assert json.loads((tmp_path / "a" / NAMES).read_text()) == ["x", "y"]
    assert np.load(tmp_path / "a" / COUNTS).tolist() == [4, 0]


def test_an_empty_shard_is_a_shard(tmp_path):
    write_labels(tmp_path / "0", [], [], fingerprint="f")
    assert len(PseudoLabels([tmp_path / "0"])) == 0


@pytest.mark.parametrize(
    ("names", "points", "error", "message"),
    [
        (["a"], [], ShapeError, "expected 1 arrays"),
        (["a", "a"], [some_points(1)] * 2, DataError, "named twice"),
        (["a"], [np.zeros((2, 2), np.float32)], ShapeError, r"labels of a: expected shape \(K, 3\)"),
        (["a"], [np.zeros((2, 3))], ShapeError, "expected finite float32, got float64"),
        (["a"], [np.full((1, 3), np.nan, np.float32)], ShapeError, "expected finite float32"),
    ],
)
def test_impossible_labels_are_not_written(tmp_path, names, points, error, message):
    with pytest.raises(error, match=message):
        write_labels(tmp_path / "0", names, points, fingerprint="f")
    assert not (tmp_path / "0").exists()


def test_counts_that_were_changed_are_not_taken(tmp_path):
    write_labels(tmp_path / "0", ["a", "b"], [some_points(3), some_points(2)], fingerprint="f")
    np.save(tmp_path / "0" / COUNTS, np.array([4, 1]))  # the same sum
    with pytest.raises(DataError, match="counts.npy: changed since it was written"):
        PseudoLabels([tmp_path / "0"])


def test_unfinished_foreign_and_mixed_shards_are_refused(shards, tmp_path):
    folder, _ = shards
    with pytest.raises(DataError, match="not finished"):
        PseudoLabels([folder / "02"])
    write_labels(folder / "03", ["00/1.jpg"], [some_points(1)], fingerprint="f")
    with pytest.raises(DataError, match=re.escape("labels '00/1.jpg', which")):
        PseudoLabels(finished_shards(folder))
    (folder / "00" / COUNTS).write_bytes((folder / "01" / COUNTS).read_bytes())
    with pytest.raises(DataError, match="do not belong together"):
        PseudoLabels([folder / "00"])
    (folder / "01" / POINTS).write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="not readable as an array"):
        PseudoLabels([folder / "01"])


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
@pytest.mark.parametrize("name", [NAMES, COUNTS, POINTS])
def test_a_lost_file_of_a_shard_is_named(shards, name, content):
    path = shards[0] / "00" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: not readable")):
        PseudoLabels([path.parent])
