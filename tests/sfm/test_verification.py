"""Geometric verification, by RANSAC and by known poses, against matches whose truth is known."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchlib.completion import digest_file
from matchlib.errors import ConfigError, DataError
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.geometry.epipolar import epipolar_lines, essential_from_pose, point_line_distance
from matchlib.matching.store import MatchHeader, MatchReader, PairMatches
from matchlib.matching.types import Matches
from matchlib.matching.writer import write_matches
from matchlib.sfm.colmap import copy_database, open_database, verified_counts
from matchlib.sfm.config import VerificationConfig
from matchlib.sfm.database import build_database, verify_database
from matchlib.sfm.pose_verification import epipolar_errors, verify_with_poses

WRONG = 60


@pytest.fixture
def mixed(scene: Any, tmp_path: Path) -> Path:
    """A database in which the first 60 matches of every pair are wrong: each point goes to another one's place."""
    matches = []
    for name0, name1, found in scene.matches.matches:
        index = found.index.copy()
        index[:WRONG, 1] = np.roll(index[:WRONG, 1], 7)
        matches.append((name0, name1, Matches(index=index, scores=found.scores)))
    path = tmp_path / "mixed.db"
    build_database(path, images=scene.cameras, features=scene.features, matches=type(scene.matches)(matches))
    return path


def inliers_of(path: Path, tmp_path: Path, pair: tuple[int, int]) -> set[tuple[int, int]]:
    copy = copy_database(path, tmp_path / "look.db")
    with open_database(copy) as opened:
        return {(int(a), int(b)) for a, b in opened.read_two_view_geometry(*pair).inlier_matches}


def test_right_matches_are_kept_and_most_wrong_ones_dropped(mixed: Path, scene: Any, tmp_path: Path) -> None:
    before = digest_file(mixed)
    summary = verify_database(mixed, tmp_path / "v.db", scene.pairs, VerificationConfig())
    assert digest_file(mixed) == before
    assert (summary.pairs, summary.verified, summary.without_matches) == (15, 15, 0)
    right = {(int(a), int(b)) for a, b in scene.matches.matches[0][2].index[WRONG:]}
    kept = inliers_of(tmp_path / "v.db", tmp_path, (1, 2))
    assert len(right & kept) >= 0.97 * len(right)
    assert len(kept - right) <= 6  # an epipolar line is as long as the image: a few wrong ones lie on it


def test_a_second_run_gives_the_same_bytes(mixed: Path, scene: Any, tmp_path: Path) -> None:
    for name in ("a.db", "b.db"):
        verify_database(mixed, tmp_path / name, scene.pairs, VerificationConfig(seed=3))
    assert digest_file(tmp_path / "a.db") == digest_file(tmp_path / "b.db")


def test_pairs_count_once_and_only_those_asked_for_are_verified(
    mixed: Path, scene: Any, tmp_path: Path
) -> None:
    a, b = scene.names[:2]
    summary = verify_database(
        mixed, tmp_path / "v.db", [(a, b), (b, a), (a, b), (a, a)], VerificationConfig()
    )
    assert (summary.pairs, summary.verified) == (1, 1)


def test_an_unknown_image_and_no_pair_to_try_are_errors_that_leave_no_file(
    mixed: Path, scene: Any, tmp_path: Path
) -> None:
    out = tmp_path / "v.db"
    for verify in (
        lambda pairs: verify_database(mixed, out, pairs, VerificationConfig()),
        lambda pairs: verify_with_poses(mixed, out, pairs, scene.known()),
    ):
        with pytest.raises(DataError, match="no image 'db/1.jpg'"):
            verify([("db/1.jpg", scene.names[0])])
        for pairs in ([], [(scene.names[0], scene.names[0])]):
            with pytest.raises(DataError, match="expected at least one pair"):
                verify(pairs)
    assert not out.exists()
    assert not (tmp_path / "v.db.work").exists()


def test_nothing_verified_is_a_result_with_a_row_for_every_pair(
    mixed: Path, scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty, out = tmp_path / "empty.db", tmp_path / "v.db"
    build_database(empty, images=scene.cameras, features=scene.features, matches=type(scene.matches)([]))
    moved = {
        name: (camera, scene.poses[name] @ np.diag([-1, -1, 1, 1.0]))
        for name, camera in scene.cameras.items()
    }
    strict = VerificationConfig(min_inliers=1000)
    for verify, without, said in (
        (
            lambda: verify_database(mixed, out, scene.pairs, strict),
            0,
            "none of the 15 pairs with matches was",
        ),
        (lambda: verify_database(empty, out, scene.pairs, strict), 15, "none of the 15 pairs has a match"),
        (
            lambda: verify_with_poses(mixed, out, scene.pairs, moved, max_error_px=1e-9),
            0,
            "none of the 15 pairs with matches was verified",
        ),
        (
            lambda: verify_with_poses(empty, out, scene.pairs, scene.known()),
            15,
            "none of the 15 pairs has a match",
        ),
    ):
        caplog.clear()
        summary = verify()
        assert (summary.pairs, summary.without_matches, summary.verified) == (15, without, 0)
        assert verified_counts(out) == (0, 0)
        assert said in caplog.text
        with closing(sqlite3.connect(out)) as opened:
            assert opened.execute("select count(*), sum(rows) from two_view_geometries").fetchone() == (15, 0)


def test_a_skipped_line_of_the_list_is_noticed_before(scene: Any, tmp_path: Path) -> None:
    """COLMAP takes a name with a leading # for a comment."""
    commented = {name: f"#{name}" for name in scene.names}
    build_database(
        tmp_path / "a.db",
        images={commented[name]: camera for name, camera in scene.cameras.items()},
        features=type(scene.features)({commented[name]: found for name, found in scene.features.items()}),
        matches=type(scene.matches)([(commented[a], commented[b], m) for a, b, m in scene.matches.matches]),
    )
    pairs = [(commented[a], commented[b]) for a, b in scene.pairs]
    with pytest.raises(DataError, match="a leading #"):
        verify_database(tmp_path / "a.db", tmp_path / "v.db", pairs, VerificationConfig())


def test_known_poses_keep_the_right_matches(mixed: Path, scene: Any, tmp_path: Path) -> None:
    summary = verify_with_poses(mixed, tmp_path / "v.db", scene.pairs, scene.known(), max_error_px=1.0)
    assert summary.verified == 15
    right = {(int(a), int(b)) for a, b in scene.matches.matches[0][2].index[WRONG:]}
    kept = inliers_of(tmp_path / "v.db", tmp_path, (1, 2))
    assert right <= kept
    assert len(kept - right) <= 6
    with pytest.raises(DataError, match=f"{scene.names[5]}: no known pose"):
        verify_with_poses(mixed, tmp_path / "w.db", scene.pairs, scene.known(scene.names[:5]))


def test_epipolar_errors_are_those_of_the_geometry_package(scene: Any) -> None:
    import torch

    T0, T1 = (scene.poses[name] for name in scene.names[:2])
    T_0to1 = T1 @ np.linalg.inv(T0)
    rays0, rays1 = np.random.default_rng(0).normal(size=(2, 20, 2))
    ours = epipolar_errors(rays0, rays1, T_0to1)
    E = essential_from_pose(torch.from_numpy(T_0to1))
    a, b = torch.from_numpy(rays0), torch.from_numpy(rays1)
    np.testing.assert_allclose(ours[0], point_line_distance(a, epipolar_lines(b, E.mT)), atol=1e-12)
    np.testing.assert_allclose(ours[1], point_line_distance(b, epipolar_lines(a, E)), atol=1e-12)


def test_settings_out_of_range_are_refused() -> None:
    for key, value in (("min_inliers", 0), ("max_error_px", 0), ("confidence", 1), ("min_inlier_ratio", 0)):
        with pytest.raises(ConfigError, match=rf"^verification\.{key}"):
            VerificationConfig(**{key: value})


def test_pairs_of_few_matches_are_tried_and_fail(scene: Any, tmp_path: Path) -> None:
    few = [(a, b, found.top(3) if a == scene.names[0] else found) for a, b, found in scene.matches.matches]
    reader = type(scene.matches)(few)
    build_database(tmp_path / "a.db", images=scene.cameras, features=scene.features, matches=reader)
    summary = verify_database(tmp_path / "a.db", tmp_path / "v.db", scene.pairs, VerificationConfig())
    assert (summary.pairs, summary.without_matches, summary.verified) == (15, 0, 10)
    assert verified_counts(tmp_path / "v.db") == (10, summary.inlier_matches)


def test_a_name_with_spaces_is_refused_before_colmap_splits_it(scene: Any, tmp_path: Path) -> None:
    def renamed(name: str) -> str:
        return name.replace("_", " ")

    build_database(
        tmp_path / "a.db",
        images={renamed(name): camera for name, camera in scene.cameras.items()},
        features=type(scene.features)({renamed(name): found for name, found in scene.features.items()}),
        matches=type(scene.matches)(
            [(renamed(a), renamed(b), found) for a, b, found in scene.matches.matches]
        ),
    )
    pairs = [(renamed(a), renamed(b)) for a, b in scene.pairs]
    with pytest.raises(DataError, match="spaces"):
        verify_database(tmp_path / "a.db", tmp_path / "v.db", pairs, VerificationConfig())


def test_what_lies_in_the_stores_of_features_and_matches_is_what_comes_in(scene: Any, tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f.h5", StoreHeader(method="exact", fingerprint="1")) as writer:
        for name, features in scene.features.items():
            writer.add(name, features)
        writer.finish()
    found = [
        (a, b, PairMatches(matches=matches, count0=len(scene.features[a]), count1=len(scene.features[b])))
        for a, b, matches in scene.matches.matches
    ]
    write_matches(tmp_path / "matches", found, header=MatchHeader(features="1"))
    with FeatureReader(tmp_path / "f.h5") as features, MatchReader(tmp_path / "matches") as matches:
        build_database(tmp_path / "a.db", images=scene.cameras, features=features, matches=matches)
    build_database(tmp_path / "b.db", images=scene.cameras, features=scene.features, matches=scene.matches)
    assert digest_file(tmp_path / "a.db") == digest_file(tmp_path / "b.db")
