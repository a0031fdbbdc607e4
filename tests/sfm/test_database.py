"""Databases, looked at with plain SQL."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchlib.completion import digest_file
from matchlib.datasets.colmap_camera import guessed_camera
from matchlib.errors import DataError
from matchlib.sfm.colmap import fold_log
from matchlib.sfm.config import VerificationConfig
from matchlib.sfm.database import build_database, verify_database

PAIR_BASE = 2147483647


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        return connection.execute(query).fetchall()


def build(out: Path, scene: Any, **changes: Any) -> Any:
    arguments = {"images": scene.cameras, "features": scene.features, "matches": scene.matches, **changes}
    return build_database(out, **arguments)


def test_rows_hold_keypoints_with_the_offset_and_matches_in_the_order_of_ids(
    scene: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    reversed_matches = [
        (name1, name0, dataclasses.replace(found, index=np.ascontiguousarray(found.index[:, ::-1])))
        for name0, name1, found in scene.matches.matches
    ]
    counts = build(path, scene, matches=type(scene.matches)(reversed_matches))
    ids = dict(rows_of(path, "select name, image_id from images"))
    assert sorted(ids) == scene.names
    for image_id, rows, columns, data in rows_of(path, "select image_id, rows, cols, data from keypoints"):
        name = next(name for name, other in ids.items() if other == image_id)
        stored = np.frombuffer(data, np.float32).reshape(rows, columns)[:, :2]
        np.testing.assert_array_equal(stored, scene.features[name].keypoints + np.float32(0.5))
    stored_pairs = {row[0]: row[1:] for row in rows_of(path, "select pair_id, rows, data from matches")}
    assert counts.pairs == len(stored_pairs) == 15
    for name0, name1, found in scene.matches.matches:
        rows, data = stored_pairs[PAIR_BASE * ids[name0] + ids[name1]]
        np.testing.assert_array_equal(np.frombuffer(data, np.uint32).reshape(rows, 2), found.index)


def test_equal_arguments_give_equal_bytes_and_nothing_else_lies_there(scene: Any, tmp_path: Path) -> None:
    for name in ("a.db", "b.db"):
        build(tmp_path / name, scene)
    assert digest_file(tmp_path / "a.db") == digest_file(tmp_path / "b.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "b.db"]


def test_repeated_reversed_and_self_pairs_are_left_out_and_counted(scene: Any, tmp_path: Path) -> None:
    first = scene.matches.matches[0]
    again = [*scene.matches.matches, first, (first[1], first[0], first[2]), (first[0], first[0], first[2])]
    counts = build(tmp_path / "a.db", scene, matches=type(scene.matches)(again))
    assert (counts.pairs, counts.repeated) == (15, 3)


def test_images_without_features_and_pairs_without_matches_stay(
    scene: Any, tmp_path: Path, make_matches: Callable[..., Any]
) -> None:
    alone, other = scene.names[:2]
    features = type(scene.features)({name: scene.features[name] for name in scene.names if name != alone})
    matches = [
        (a, b, make_matches([]) if alone in (a, b) else found) for a, b, found in scene.matches.matches
    ]
    counts = build(tmp_path / "a.db", scene, features=features, matches=type(scene.matches)(matches))
    assert (counts.pairs, counts.empty) == (15, 5)
    sizes = dict(rows_of(tmp_path / "a.db", "select name, rows from images join keypoints using (image_id)"))
    assert sizes[alone] == 0
    assert sizes[other] == 155
    summary = verify_database(tmp_path / "a.db", tmp_path / "v.db", scene.pairs, VerificationConfig())
    assert (summary.pairs, summary.without_matches, summary.verified) == (15, 5, 10)


def test_wrong_input_is_named_and_leaves_nothing(
    scene: Any, tmp_path: Path, make_matches: Callable[..., Any], make_features: Callable[..., Any]
) -> None:
    name0, name1 = scene.names[:2]
    size = (1024, 768)
    store, reader = type(scene.features), type(scene.matches)
    half = make_features(scene.features[name0].keypoints / 2, (512, 384))
    outside = make_features(scene.features[name0].keypoints * 2, size)
    centred = make_features(scene.features[name0].keypoints - np.array([512, 384]), size)
    unknown = make_features(np.array([[np.nan, 1]]), size)
    for changes, said in (
        ({"matches": reader([(name0, name1, make_matches([[0, 155]]))])}, "different runs"),
        ({"matches": reader([(name0, name1, make_matches([[-1, 0]]))])}, "different runs"),
        ({"matches": reader([(name0, "nowhere.jpg", make_matches([[0, 0]]))])}, "nowhere.jpg"),
        ({"features": store({**scene.features, name0: half})}, "512 x 384"),
        ({"features": store({**scene.features, name0: outside})}, "outside"),
        ({"features": store({**scene.features, name0: centred})}, r"a keypoint at \(-.*outside"),
        ({"features": store({**scene.features, name0: unknown})}, "finite"),
        (
            {"images": {**scene.cameras, name1: guessed_camera(*size)}, "shared_camera": True},
            "shared camera",
        ),
    ):
        with pytest.raises(DataError, match=said):
            build(tmp_path / "a.db", scene, **changes)
        assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_removed_not_used(scene: Any, tmp_path: Path) -> None:
    left = tmp_path / "a.db.work" / "draft" / "a.db"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a database")
    left.with_name("a.db-wal").write_bytes(b"and its log")
    build(tmp_path / "a.db", scene)
    assert rows_of(tmp_path / "a.db", "pragma integrity_check") == [("ok",)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_a_log_of_what_lay_there_before_is_not_played_into_the_new_database(
    scene: Any, tmp_path: Path
) -> None:
    """As a killed viewer leaves it beside the database that it looked at."""
    out = tmp_path / "a.db"
    build(tmp_path / "live.db", scene)
    with closing(sqlite3.connect(tmp_path / "live.db")) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("update images set name = 'old.jpg' where image_id = 1")
        connection.commit()
        for ending in ("", "-wal"):
            shutil.copyfile(tmp_path / f"live.db{ending}", tmp_path / f"a.db{ending}")
    build(out, scene)
    verify_database(out, tmp_path / "v.db", scene.pairs, VerificationConfig())
    assert ("old.jpg",) not in rows_of(tmp_path / "v.db", "select name from images")
    with closing(sqlite3.connect(out)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("select count(*) from images where name = 'old.jpg'").fetchone() == (0,)


def test_a_log_that_cannot_be_folded_in_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("no database " * 100)
    with pytest.raises(DataError, match=r"a\.db: its write-ahead log could not be folded in \(file is not"):
        fold_log(tmp_path / "a.db")


def test_one_camera_for_all_is_one_row(scene: Any, tmp_path: Path) -> None:
    build(tmp_path / "a.db", scene, shared_camera=True)
    assert rows_of(tmp_path / "a.db", "select count(*) from cameras") == [(1,)]
    assert rows_of(tmp_path / "a.db", "select count(distinct camera_id) from images") == [(1,)]
    build(tmp_path / "b.db", scene)
    assert rows_of(tmp_path / "b.db", "select count(*) from cameras") == [(6,)]


def test_the_ids_of_a_skeleton_are_kept_its_cameras_corrected_and_its_file_untouched(
    scene: Any, tmp_path: Path
) -> None:
    skeleton = tmp_path / "skeleton.db"
    wrong = guessed_camera(1024, 768)
    build(
        skeleton,
        scene,
        images=dict.fromkeys(scene.names[:4], wrong),
        features={},
        matches=type(scene.matches)([]),
    )
    with closing(sqlite3.connect(skeleton)) as connection, connection:
        connection.execute("update images set image_id = image_id * 100")
        connection.execute("update keypoints set image_id = image_id * 100")
    before = digest_file(skeleton)
    build(tmp_path / "a.db", scene, skeleton=skeleton)
    assert digest_file(skeleton) == before
    query = "select name, image_id, params, prior_focal_length from images join cameras using (camera_id)"
    found = {row[0]: row[1:] for row in rows_of(tmp_path / "a.db", query)}
    assert [found[name][0] for name in scene.names[:4]] == [100, 200, 300, 400]
    for position, name in enumerate(scene.names):
        np.testing.assert_array_equal(np.frombuffer(found[name][1]), scene.cameras[name].params)
        assert found[name][2] == (0 if position < 4 else 1)  # what was shipped stays uncalibrated
    with pytest.raises(DataError, match="shared_camera"):
        build(tmp_path / "b.db", scene, skeleton=skeleton, shared_camera=True)


def test_images_that_a_skeleton_has_none_of_are_added_and_named(
    scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skeleton, none = tmp_path / "skeleton.db", type(scene.matches)([])
    build(skeleton, scene, matches=none)
    more = {f"db/{name}": camera for name, camera in scene.cameras.items()}
    build(tmp_path / "a.db", scene, skeleton=skeleton, images=more, matches=none)
    assert rows_of(tmp_path / "a.db", "select name from images order by image_id") == [
        (name,) for name in (*scene.names, *more)
    ]
    sizes = dict(rows_of(tmp_path / "a.db", "select name, rows from images join keypoints using (image_id)"))
    assert sizes == {name: 155 for name in scene.names} | dict.fromkeys(more, 0)
    assert "has none of the 6 images, which are all added" in caplog.text
    assert f"it has '{scene.names[0]}', added is 'db/{scene.names[0]}'" in caplog.text


def test_images_that_share_a_camera_cannot_be_given_two(scene: Any, tmp_path: Path) -> None:
    skeleton = tmp_path / "skeleton.db"
    build(skeleton, scene, shared_camera=True)
    two = {**scene.cameras, scene.names[3]: guessed_camera(1024, 768)}
    with pytest.raises(DataError, match=f"'{scene.names[0]}' and '{scene.names[3]}' share it"):
        build(tmp_path / "a.db", scene, skeleton=skeleton, images=two)


def test_foreign_databases_are_refused_with_the_reason(scene: Any, tmp_path: Path) -> None:
    newer, other, text = (tmp_path / name for name in ("newer.db", "other.db", "text.db"))
    build(newer, scene)
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("pragma user_version = 99990000")
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("create table cameras (id integer)")
    text.write_text("no database " * 100)
    for path, said in (
        (newer, "newer COLMAP"),
        (other, "no table images"),
        (text, "not a readable"),
        (tmp_path / "absent.db", "not found"),
    ):
        with pytest.raises(DataError, match=said):
            verify_database(path, tmp_path / "v.db", [], VerificationConfig())
        with pytest.raises(DataError, match=said):
            build(tmp_path / "a.db", scene, skeleton=path)


def test_the_aachen_skeleton_is_migrated_on_a_copy(
    scene: Any, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    shipped = shared_data("aachen_lists") / "database.db"
    before = digest_file(shipped)
    build(tmp_path / "a.db", scene, images={}, features={}, matches=type(scene.matches)([]), skeleton=shipped)
    assert digest_file(shipped) == before
    assert rows_of(shipped, "pragma user_version") == [(3400,)]
    query = "select image_id, name, camera_id from images order by image_id"
    assert rows_of(tmp_path / "a.db", query) == rows_of(shipped, query)
    cameras = (
        "select camera_id, model, width, height, params, prior_focal_length from cameras order by camera_id"
    )
    assert rows_of(tmp_path / "a.db", cameras) == rows_of(shipped, cameras)
    assert rows_of(tmp_path / "a.db", "select count(*), sum(rows) from keypoints") == [(5401, 0)]
    groups = "select substr(name, 1, 9) as part, count(*) from images group by part order by part"
    counts = {"db": 0, "query/day": 0, "query/nig": 0}
    for part, count in rows_of(tmp_path / "a.db", groups):
        counts["db" if part.startswith("db/") else part] += count
    assert counts == {"db": 4479, "query/day": 824, "query/nig": 98}


def test_a_log_beside_a_skeleton_belongs_to_it(scene: Any, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    source = tmp_path / "live" / "a.db"
    build(source, scene, matches=type(scene.matches)([]))
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("update images set name = 'renamed.jpg' where image_id = 1")
        connection.commit()
        assert source.with_name("a.db-wal").stat().st_size > 0
        shutil.copytree(tmp_path / "live", tmp_path / "found")  # as a killed program leaves it
    images = {**scene.cameras, "renamed.jpg": scene.cameras[scene.names[0]]}
    del images[scene.names[0]]
    build(
        tmp_path / "b.db",
        scene,
        images=images,
        skeleton=tmp_path / "found" / "a.db",
        matches=type(scene.matches)([]),
    )
    assert rows_of(tmp_path / "b.db", "select name from images where image_id = 1") == [("renamed.jpg",)]
