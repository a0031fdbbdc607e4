"""Stored matches: read as written, either way round, refused when unfinished, damaged, or of several kinds."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from matchlib.completion import write_marker
from matchlib.errors import DataError
from matchlib.matching import store
from matchlib.matching.hloc import export_hloc_matches, import_hloc_matches, read_hloc_matches
from matchlib.matching.store import MatchHeader, MatchReader, PairMatches
from matchlib.matching.types import Matches
from matchlib.matching.writer import MatchWriter, write_matches

COUNTS = {"db/a.jpg": 30, "db/b.jpg": 40, "c.jpg": 0, "d-e.jpg": 50}
PAIRS = [("db/a.jpg", "db/b.jpg"), ("d-e.jpg", "db/a.jpg"), ("c.jpg", "db/b.jpg"), ("db/b.jpg", "d-e.jpg")]


def made_matches(name0: str, name1: str) -> PairMatches:
    draw = np.random.default_rng(len(name0) * 100 + COUNTS[name1])
    count = min(COUNTS[name0], COUNTS[name1]) // 2
    index = np.stack(
        [np.sort(draw.permutation(COUNTS[name0])[:count]), draw.permutation(COUNTS[name1])[:count]], axis=1
    )
    matches = Matches(index=index.astype(np.int64), scores=draw.uniform(size=count).astype(np.float32))
    return PairMatches(matches=matches, count0=COUNTS[name0], count1=COUNTS[name1])


def written(folder: Path, pairs: list[tuple[str, str]] = PAIRS, header: MatchHeader | None = None) -> Path:
    found = ((name0, name1, made_matches(name0, name1)) for name0, name1 in pairs)
    write_matches(folder, found, header=header or MatchHeader(features="f", settings={"ratio": 0.8}))
    return folder


def assert_equal(found: Matches, expected: Matches) -> None:
    np.testing.assert_array_equal(found.index, expected.index)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_matches_are_read_as_written_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(store, "_BLOCK_MATCHES", block)
    with MatchReader(written(tmp_path / "m")) as reader:
        assert reader.pairs == tuple(PAIRS)
        assert reader.features == "f" and reader.settings == {"ratio": 0.8}
        assert reader.keypoint_counts == COUNTS
        assert [(name0, name1) for name0, name1, _ in reader.items()] == PAIRS
        for name0, name1, matches in reader.items():
            assert_equal(matches, made_matches(name0, name1).matches)
            assert_equal(reader.read(name0, name1), matches)


def test_a_pair_can_be_asked_for_either_way_round(tmp_path: Path) -> None:
    with MatchReader(written(tmp_path / "m")) as reader:
        there, back = reader.read("db/a.jpg", "db/b.jpg"), reader.read("db/b.jpg", "db/a.jpg")
        assert (np.diff(back.index[:, 0]) > 0).all() and len(back) == 15
        scores = {(i, j): score for (i, j), score in zip(there.index.tolist(), there.scores, strict=True)}
        assert {
            (j, i): score for (i, j), score in zip(back.index.tolist(), back.scores, strict=True)
        } == scores
        assert ("db/b.jpg", "db/a.jpg") in reader and ("db/a.jpg", "c.jpg") not in reader
        with pytest.raises(DataError, match=r"no pair 'db/a.jpg', 'c.jpg' among 4"):
            reader.read("db/a.jpg", "c.jpg")


def test_an_empty_shard_is_a_finished_shard(tmp_path: Path) -> None:
    with MatchReader(written(tmp_path / "m", [])) as reader:
        assert reader.pairs == () and list(reader.items()) == [] and reader.keypoint_counts == {}


def shard(number: int, *, features: str = "f", shards: int = 2) -> MatchHeader:
    return MatchHeader(features=features, shard=number, shards=shards)


def test_shards_must_fit_together(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1", PAIRS[:2], shard(0)), written(tmp_path / "2", PAIRS[2:], shard(1))
    with MatchReader([one, two]) as reader, MatchReader([two, one]) as turned:
        assert reader.pairs == tuple(PAIRS) and reader.digest == turned.digest
    with pytest.raises(DataError, match=r"all 2 shards, but \[1\] are missing"):
        MatchReader(one)
    with MatchReader(one, partial=True) as reader:
        assert reader.pairs == tuple(PAIRS[:2])
    with pytest.raises(DataError, match="other features"):
        MatchReader([one, written(tmp_path / "3", PAIRS[2:], shard(1, features="g"))])
    reverse = [(name1, name0) for name0, name1 in PAIRS[1:]]
    with pytest.raises(DataError, match=r"occurs 2 times"):
        MatchReader([one, written(tmp_path / "4", reverse, shard(1))])
    with pytest.raises(DataError, match="at least one folder"):
        MatchReader([])


def test_the_digest_sees_every_value(tmp_path: Path) -> None:
    with MatchReader(written(tmp_path / "a")) as reader:
        digest = reader.digest
    found = [(name0, name1, made_matches(name0, name1)) for name0, name1 in PAIRS]
    found[3][2].matches.scores[4] += 1e-3
    write_matches(tmp_path / "b", found, header=MatchHeader(features="f"))
    with MatchReader(tmp_path / "b") as reader:
        assert reader.digest != digest


def test_damage_and_foreign_folders_are_noticed(tmp_path: Path) -> None:
    folder = written(tmp_path / "m")
    with h5py.File(folder / "matches.h5", "r+") as file:
        file["scores"][20] = 2.0
    with MatchReader(folder) as reader:
        assert len(reader.read(*PAIRS[0])) == 15, "other pairs are whole"
        with pytest.raises(DataError, match=r"'d-e.jpg', 'db/a.jpg' are damaged"):
            reader.read(*PAIRS[1])
    (folder / "matches.h5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="not readable"):
        MatchReader(folder)
    with pytest.raises(DataError, match="no such folder"):
        MatchReader(tmp_path / "absent")
    write_marker(tmp_path, stage="other", fingerprint="x", files=[])
    with pytest.raises(DataError, match="no marker of that stage"):
        MatchReader(tmp_path)


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    header = MatchHeader(features="f")
    with MatchWriter(tmp_path / "m", header, PAIRS[:2]) as writer:
        writer.add(made_matches(*PAIRS[0]))
        with pytest.raises(DataError, match="expected 2 pairs, got 1"):
            writer.finish()
        with (
            pytest.raises(DataError, match="is writing here"),
            MatchWriter(tmp_path / "m", header, PAIRS[:2]),
        ):
            pass
        wrong = made_matches(*PAIRS[1])
        with pytest.raises(DataError, match="of another extraction"):
            writer.add(PairMatches(matches=wrong.matches, count0=50, count1=3))
        writer.add(wrong)
        with pytest.raises(DataError, match="all 2 pairs"):
            writer.add(wrong)
    with MatchWriter(tmp_path / "m", header, PAIRS[:2]) as writer:
        assert writer.done == 2, "kept by the first writer although it did not finish"
        writer.finish()
    with pytest.raises(DataError, match="one line"):
        MatchWriter(tmp_path / "m", header, [("a\nb", "c")])


# ---------------------------------------------------------------- hloc
def test_hloc_files_go_there_and_back(tmp_path: Path) -> None:
    with MatchReader(written(tmp_path / "m")) as reader:
        digest = reader.digest
        assert export_hloc_matches(reader, tmp_path / "matches.h5") == 4
    with h5py.File(tmp_path / "matches.h5") as file:
        matches0 = file["db-a.jpg/db-b.jpg/matches0"][()]
        assert matches0.shape == (30,) and (matches0 > -1).sum() == 15
        expected = made_matches(*PAIRS[0]).matches
        assert matches0[expected.index[:, 0]].tolist() == expected.index[:, 1].tolist()
        assert file["db-a.jpg/db-b.jpg/matching_scores0"][expected.index[3, 0]] == expected.scores[3]
    import_hloc_matches(tmp_path / "matches.h5", tmp_path / "back", PAIRS, COUNTS)
    with MatchReader(tmp_path / "back") as reader:
        assert reader.digest == digest


def test_hloc_files_of_other_programs_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "hloc.h5"
    with h5py.File(path, "w") as file:  # as hloc writes them: int16 and half precision, the other way round
        group = file.create_group("db-b.jpg/db-a.jpg")
        group["matches0"] = np.array([-1, 4, -1, 2], np.int16)
        group["matching_scores0"] = np.array([0, 0.5, 0, 0.25], np.float16)
        twice = file.create_group("x/y")
        twice["matches0"] = np.array([1, 1], np.int16)
        twice["matching_scores0"] = np.ones(2, np.float16)
        file.create_group("half/image")["matches0"] = np.zeros(1, np.int16)
    ((_, _, matches),) = read_hloc_matches(path, [("db/a.jpg", "db/b.jpg")])
    assert matches.index.tolist() == [[2, 3], [4, 1]] and matches.scores.tolist() == [0.25, 0.5]
    for pair, message in (
        (("x", "y"), "more than once"),
        (("half", "image"), "damaged"),
        (("p", "q"), "no matches"),
    ):
        with pytest.raises(DataError, match=message):
            list(read_hloc_matches(path, [pair]))
    with pytest.raises(DataError, match="of another extraction"):
        import_hloc_matches(path, tmp_path / "m", [("db/a.jpg", "db/b.jpg")], {"db/a.jpg": 3, "db/b.jpg": 4})


def test_names_that_coincide_in_hloc_are_refused(tmp_path: Path) -> None:
    found = [
        (name0, "c.jpg", PairMatches(matches=made_matches(*PAIRS[2]).matches, count0=1, count1=0))
        for name0 in ("db/a.jpg", "db-a.jpg")
    ]
    write_matches(tmp_path / "m", found, header=MatchHeader(features="f"))
    with MatchReader(tmp_path / "m") as reader, pytest.raises(DataError, match="two pairs have the name"):
        export_hloc_matches(reader, tmp_path / "hloc.h5")
    assert not (tmp_path / "hloc.h5").exists()
