"""Matching a pair list: as pair by pair, whatever shards, cache and order; and resumed after SIGKILL."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from matchlib.completion import verify_folder
from matchlib.errors import ConfigError, DataError
from matchlib.features.types import Features
from matchlib.matching.at_scale import match_pairs, match_shard
from matchlib.matching.config import MatcherConfig
from matchlib.matching.mutual_nearest import match_mutual_nearest
from matchlib.matching.pair_lists import Pair, exhaustive_pairs
from matchlib.matching.store import MatchReader

WritePairs = Callable[[list[Pair]], Path]


class CountingSource:
    """Features in memory that count how often they are read."""

    def __init__(self, features: dict[str, Features]) -> None:
        self.names = tuple(features)
        self.digest = "in memory"
        self.reads: list[str] = []
        self._features = features

    def read(self, name: str) -> Features:
        self.reads.append(name)
        return self._features[name]


@pytest.fixture(scope="session")
def all_pairs(features_by_name: dict[str, Features]) -> list[Pair]:
    return list(exhaustive_pairs(list(features_by_name)))


def digest_of(*folders: Path) -> str:
    with MatchReader(folders) as reader:
        return reader.digest


@pytest.mark.parametrize(
    ("config", "ratio"), [(None, None), (MatcherConfig(kind="mutual_ratio", ratio=0.85), 0.85)]
)
def test_every_pair_is_matched_as_by_itself(
    tmp_path: Path,
    features_file: Path,
    features_by_name: dict[str, Features],
    all_pairs: list[Pair],
    write_pairs: WritePairs,
    config: MatcherConfig | None,
    ratio: float | None,
) -> None:
    match_shard(features_file, write_pairs(all_pairs), tmp_path / "out", config=config)
    with MatchReader(tmp_path / "out") as reader:
        assert sorted(reader.pairs) == sorted(all_pairs) and len(reader) == 276
        total = 0
        for name0, name1, matches in reader.items():
            expected = match_mutual_nearest(features_by_name[name0], features_by_name[name1], ratio=ratio)
            np.testing.assert_array_equal(matches.index, expected.index)
            np.testing.assert_allclose(matches.scores, expected.scores, atol=1e-6)
            total += len(matches)
        assert total > 276 * 5
        assert reader.keypoint_counts == {name: len(found) for name, found in features_by_name.items()}
    assert verify_folder(tmp_path / "out") == []


def test_results_do_not_depend_on_shards_cache_or_the_order_of_the_list(
    tmp_path: Path, features_file: Path, all_pairs: list[Pair], write_pairs: WritePairs
) -> None:
    match_shard(features_file, write_pairs(all_pairs), tmp_path / "whole")
    expected = digest_of(tmp_path / "whole")
    for shards, cache_bytes in ((1, 0), (3, 5_000), (7, 1 << 20)):
        folders = [tmp_path / f"{shards}-{shard}" for shard in range(shards)]
        for shard, folder in enumerate(folders):
            match_shard(
                *(features_file, write_pairs(all_pairs), folder),
                shard=shard,
                shards=shards,
                cache_bytes=cache_bytes,
            )
        assert digest_of(*folders) == digest_of(*reversed(folders)) == expected
    no_cache, whole = (tmp_path / name / "matches.h5" for name in ("1-0", "whole"))
    assert no_cache.read_bytes() == whole.read_bytes()
    mixed = random.Random(0).sample(all_pairs, len(all_pairs))
    match_shard(features_file, write_pairs(mixed), tmp_path / "mixed")
    assert digest_of(tmp_path / "mixed") == expected
    match_shard(features_file, write_pairs(mixed[1:]), tmp_path / "fewer")
    assert digest_of(tmp_path / "fewer") != expected


def test_images_are_read_as_often_as_planned_and_no_more(
    tmp_path: Path, features_by_name: dict[str, Features], all_pairs: list[Pair]
) -> None:
    roomy, tight = CountingSource(features_by_name), CountingSource(features_by_name)
    match_pairs(roomy, all_pairs, tmp_path / "roomy", cache_bytes=1 << 20)
    assert sorted(roomy.reads) == sorted(features_by_name)
    match_pairs(tight, all_pairs, tmp_path / "tight", cache_bytes=0)
    assert 2 * len(all_pairs) * 0.9 < len(tight.reads) <= 2 * len(all_pairs)


def test_a_finished_shard_is_not_matched_again_and_other_settings_are(
    tmp_path: Path, features_by_name: dict[str, Features], all_pairs: list[Pair]
) -> None:
    source = CountingSource(features_by_name)
    match_pairs(source, all_pairs, tmp_path / "out")
    marker = (tmp_path / "out" / ".complete").read_bytes()
    source.reads.clear()
    match_pairs(source, all_pairs, tmp_path / "out")
    assert source.reads == [] and (tmp_path / "out" / ".complete").read_bytes() == marker
    match_pairs(source, all_pairs, tmp_path / "out", config=MatcherConfig(min_similarity=0.9))
    assert source.reads and (tmp_path / "out" / ".complete").read_bytes() != marker
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".complete", "matches.h5"]


def test_only_the_best_keypoints_are_matched_under_their_own_numbers(
    tmp_path: Path, features_by_name: dict[str, Features], all_pairs: list[Pair]
) -> None:
    match_pairs(
        *(CountingSource(features_by_name), all_pairs, tmp_path / "out"),
        config=MatcherConfig(max_keypoints=15),
    )
    with MatchReader(tmp_path / "out") as reader:
        for name0, name1, matches in reader.items():
            best0, best1 = (np.argsort(-features_by_name[n].scores)[:15] for n in (name0, name1))
            short = match_mutual_nearest(features_by_name[name0].top(15), features_by_name[name1].top(15))
            expected = {(best0[i], best1[j]) for i, j in short.index}
            assert {(i, j) for i, j in matches.index} == expected
            assert (np.diff(matches.index[:, 0]) > 0).all()


def test_images_without_keypoints_have_no_matches(
    tmp_path: Path, features_by_name: dict[str, Features]
) -> None:
    empty = Features(
        keypoints=np.empty((0, 2), np.float32),
        scores=np.empty(0, np.float32),
        descriptors=np.empty((0, 0), np.float32),  # as foreign files write it
        image_size=(1, 1),
    )
    source = CountingSource({**features_by_name, "empty": empty})
    match_pairs(source, [("db/1.jpg", "empty"), ("empty", "db/5.jpg")], tmp_path / "out")
    with MatchReader(tmp_path / "out") as reader:
        assert [len(matches) for *_, matches in reader.items()] == [0, 0]
        assert reader.keypoint_counts["empty"] == 0


def test_missing_images_are_all_named_before_any_work(
    tmp_path: Path, features_file: Path, all_pairs: list[Pair], write_pairs: WritePairs
) -> None:
    pairs = write_pairs([*all_pairs, *(("db/1.jpg", f"no/{number}.jpg") for number in range(12))])
    with pytest.raises(DataError, match=r"12 images of .*pairs.txt: no/0.jpg, no/1.jpg, .*\.\.\.; extract"):
        match_shard(features_file, pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_descriptors_that_cannot_be_compared_are_refused_with_their_pair(
    tmp_path: Path, features_by_name: dict[str, Features]
) -> None:
    broken = features_by_name["db/1.jpg"].descriptors.copy()
    broken[3, 2] = np.nan
    features = dict(features_by_name)
    features["db/1.jpg"] = Features(
        keypoints=features["db/1.jpg"].keypoints,
        scores=features["db/1.jpg"].scores,
        descriptors=broken,
        image_size=(100, 100),
    )
    with pytest.raises(DataError, match=r"'db/2.jpg' and 'db/1.jpg': .*finite"):
        match_pairs(CountingSource(features), [("db/2.jpg", "db/1.jpg")], tmp_path / "out")
    with pytest.raises(ConfigError, match="cache_bytes"):
        match_pairs(CountingSource(features), [("db/2.jpg", "db/1.jpg")], tmp_path / "out", cache_bytes=-1)


def test_a_fault_while_reading_ends_the_run_and_keeps_what_was_matched(
    tmp_path: Path,
    features_by_name: dict[str, Features],
    all_pairs: list[Pair],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(CountingSource):
        def read(self, name: str) -> Features:
            if len(self.reads) == 12:
                raise DataError("the disk is gone")
            return super().read(name)

    with pytest.raises(DataError, match="disk is gone"):
        match_pairs(Failing(features_by_name), all_pairs, tmp_path / "out")
    with pytest.raises(DataError, match="an unfinished run"):
        MatchReader(tmp_path / "out")
    with caplog.at_level(logging.INFO):
        match_pairs(CountingSource(features_by_name), all_pairs, tmp_path / "out")
    assert "resuming with" in caplog.text
    match_pairs(CountingSource(features_by_name), all_pairs, tmp_path / "undisturbed")
    assert (tmp_path / "out/matches.h5").read_bytes() == (tmp_path / "undisturbed/matches.h5").read_bytes()


# ---------------------------------------------------------------- kill and resume
MATCH_ALL = """
import os, signal, sys
from pathlib import Path
from matchlib.features.store import FeatureReader
from matchlib.matching.at_scale import match_pairs
from matchlib.matching.pair_lists import read_pair_list
from matchlib.matching.writer import MatchWriter

features, pairs, out, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
renames = 0

def count_renames(event, arguments):
    global renames
    if event == "os.rename":
        renames += 1
        if renames == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

if kill_at:
    sys.addaudithook(count_renames)
with FeatureReader(features) as source:
    match_pairs(source, read_pair_list(pairs).pairs, out, part_seconds=0)
"""


def run_killed_at(kill_at: int, features: Path, pairs: Path, out: Path) -> int:
    """Return code of a run that kills itself at its nth rename (0: never): the moments when files become final."""
    command = [sys.executable, "-c", MATCH_ALL, str(features), str(pairs), str(out), str(kill_at)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, env=os.environ, check=False, timeout=60).returncode


def test_killed_and_resumed_the_bytes_are_those_of_an_undisturbed_run(
    tmp_path: Path, features_file: Path, all_pairs: list[Pair], write_pairs: WritePairs
) -> None:
    pairs, out = write_pairs(all_pairs[:30]), tmp_path / "killed"
    match_shard(features_file, pairs, tmp_path / "undisturbed")
    sealed = 0
    for kill_at in (1, 9, 15):  # the first rename of all stamps the work folder; every part is one pair here
        assert run_killed_at(kill_at, features_file, pairs, out) == -signal.SIGKILL
        assert not (out / ".complete").exists()
        sealed_now = len(list((out / "work").glob("part-*.h5")))
        assert sealed_now >= sealed
        sealed = sealed_now
    assert 20 <= sealed < 30, "nothing was left to resume, or nothing was kept; the test shows nothing"
    parts = sorted((out / "work").glob("part-*.h5"))
    with h5py.File(parts[-2], "r+") as file:  # damage: this part and the ones after it are matched again
        file["scores"][0] = 0.123
    assert run_killed_at(0, features_file, pairs, out) == 0
    assert (out / "matches.h5").read_bytes() == (tmp_path / "undisturbed" / "matches.h5").read_bytes()
    assert (out / ".complete").read_bytes() == (tmp_path / "undisturbed" / ".complete").read_bytes()
    assert not (out / "work").exists()
