"""Aachen's layouts: found wherever the files lie, faults named, published lists with their published counts."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from matchlib.datasets.aachen import (
    AachenDataset,
    ReferenceImage,
    hold_out,
    list_conditions_v1,
    read_aachen,
    read_pose_list,
    skeleton_images,
    write_pose_list,
)
from matchlib.datasets.colmap_camera import ColmapCamera, write_intrinsics_list
from matchlib.datasets.nvm import write_nvm
from matchlib.datasets.types import FORMATS
from matchlib.errors import ConfigError, DataError
from matchlib.matching.pair_lists import read_pair_list

CAMERA = ColmapCamera(model="SIMPLE_RADIAL", width=64, height=48, params=(70.0, 32.0, 24.0, -0.03))
REFERENCE = ("db/1.jpg", "db/2.jpg", "db/3.jpg")
DAY, NIGHT = "query/day/nexus4/a.jpg", "query/night/nexus5x/b.jpg"

# Where the scripts of the challenge, and PoSFeat, look for each file.
OFFICIAL_V1 = {
    "poses": "3D-models/aachen_cvpr2018_db.nvm",
    "intrinsics": "3D-models/database_intrinsics.txt",
    "night": "queries/night_time_queries_with_intrinsics.txt",
    "day": "queries/day_time_queries_with_intrinsics.txt",
    "pairs": "image_pairs_to_match.txt",
    "skeleton": "database.db",
}
OFFICIAL_V1_1 = {
    "poses": "3D-models/aachen_v_1_1/aachen_v_1_1.nvm",
    "intrinsics": "3D-models/aachen_v_1_1/database_intrinsics_v1_1.txt",
    "night": "queries/night_time_queries_with_intrinsics.txt",
    "pairs": "image_pairs_to_match_v1_1.txt",
    "skeleton": "database_v1_1.db",
}
POSFEAT_V1 = OFFICIAL_V1 | {
    "poses": "3D-models/aachen_v_1/aachen_cvpr2018_db.nvm",
    "intrinsics": "3D-models/aachen_v_1/database_intrinsics.txt",
    "pairs": "others/image_pairs_to_match.txt",
    "skeleton": "others/database.db",
}
POSFEAT_V1_1 = OFFICIAL_V1_1 | {
    "night": "queries/night_time_queries_with_intrinsics_v1_1.txt",
    "pairs": "others/image_pairs_to_match_v1_1.txt",
    "skeleton": "others/database_v1_1.db",
}


def pose(index: int) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0.1, 0.2 * index, -0.3]).as_matrix()
    T[:3, 3] = [index, -0.5, 2.0]
    return T


def write_skeleton(path: Path, names: tuple[str, ...]) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table images (image_id integer primary key, name text)")
        connection.executemany("insert into images values (?, ?)", enumerate(names, 7))
    connection.close()


def layout(
    root: Path, places: dict[str, str], *, images: str = "images/images_upright", night: str = NIGHT
) -> Path:
    for folder in ("db", "query/night/nexus5x"):
        (root / images / folder).mkdir(parents=True, exist_ok=True)
    for place in places.values():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
    poses = {name: pose(index) for index, name in enumerate(REFERENCE)}
    write_nvm(root / places["poses"], poses, focal_px=dict.fromkeys(REFERENCE, 70.0))
    write_intrinsics_list(root / places["intrinsics"], dict.fromkeys(REFERENCE, CAMERA))
    write_intrinsics_list(root / places["night"], {night: CAMERA})
    if "day" in places:
        write_intrinsics_list(root / places["day"], {DAY: CAMERA})
    (root / places["pairs"]).write_text(f"db/1.jpg db/2.jpg\n{night} db/1.jpg\n")
    write_skeleton(root / places["skeleton"], (*REFERENCE, night))
    return root


@pytest.mark.parametrize(
    ("version", "places"),
    [("v1", OFFICIAL_V1), ("v1_1", OFFICIAL_V1_1), ("v1", POSFEAT_V1), ("v1_1", POSFEAT_V1_1)],
)
def test_published_layouts_are_found(tmp_path: Path, version, places: dict[str, str]) -> None:
    dataset = read_aachen(layout(tmp_path, places), version)
    assert dataset.name == ("aachen" if version == "v1" else "aachen_v1_1")
    assert tuple(dataset.reference) == REFERENCE
    for index, image in enumerate(dataset.reference.values()):
        assert image.camera == CAMERA
        np.testing.assert_allclose(image.T_world_to_cam, pose(index), atol=1e-12)
    assert dataset.queries["night"] == {NIGHT: CAMERA}
    assert ("day" in dataset.queries) == ("day" in places)
    assert dataset.pairs == tmp_path / places["pairs"]
    assert dataset.skeleton == tmp_path / places["skeleton"]
    assert dataset.tracks == tmp_path / places["poses"]
    assert dataset.path_of("db/1.jpg") == tmp_path / "images/images_upright/db/1.jpg"
    assert dataset.truth == {}


def test_both_versions_may_share_a_folder(tmp_path: Path) -> None:
    layout(tmp_path, POSFEAT_V1, night="query/night/nexus5x/old.jpg")
    layout(tmp_path, POSFEAT_V1_1, night="query/night/nexus5x/new.jpg")
    assert list(read_aachen(tmp_path, "v1").queries["night"]) == ["query/night/nexus5x/old.jpg"]
    assert list(read_aachen(tmp_path, "v1_1").queries["night"]) == ["query/night/nexus5x/new.jpg"]


def test_files_elsewhere_are_found_unless_it_is_unclear_which(tmp_path: Path) -> None:
    places = OFFICIAL_V1 | {"skeleton": "mine/database.db"}
    layout(tmp_path, places, images="images_upright")
    assert read_aachen(tmp_path).skeleton == tmp_path / "mine/database.db"
    # Work files of other programs are not the published ones.
    (tmp_path / "intermedia/sift").mkdir(parents=True)
    shutil.copy(tmp_path / "mine/database.db", tmp_path / "intermedia/sift/database.db")
    assert read_aachen(tmp_path).skeleton == tmp_path / "mine/database.db"
    (tmp_path / "yours").mkdir()
    shutil.copy(tmp_path / "mine/database.db", tmp_path / "yours/database.db")
    with pytest.raises(DataError, match=r"database\.db lies in several places: .*mine.*yours"):
        read_aachen(tmp_path)
    shutil.copy(tmp_path / "mine/database.db", tmp_path / "database.db")
    assert read_aachen(tmp_path).skeleton == tmp_path / "database.db"


def test_all_that_is_missing_is_listed(tmp_path: Path) -> None:
    layout(tmp_path, OFFICIAL_V1)
    (tmp_path / OFFICIAL_V1["poses"]).unlink()
    (tmp_path / OFFICIAL_V1["night"]).unlink()
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError) as caught:
        read_aachen(tmp_path)
    for part in ("aachen_cvpr2018_db.nvm", "night_time_queries_with_intrinsics.txt", "folder of images"):
        assert part in str(caught.value)
    assert "database_intrinsics" not in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        read_aachen(tmp_path / "absent")
    with pytest.raises(ConfigError, match="version: expected one of v1, v1_1, got 'v2'"):
        read_aachen(tmp_path, "v2")  # type: ignore[arg-type]


def test_reference_images_without_intrinsics_are_named(tmp_path: Path) -> None:
    layout(tmp_path, OFFICIAL_V1)
    write_intrinsics_list(tmp_path / OFFICIAL_V1["intrinsics"], {"db/1.jpg": CAMERA, "db/3.jpg": CAMERA})
    with pytest.raises(
        DataError, match=r"database_intrinsics\.txt: no intrinsics of 1 of 3 images: db/2\.jpg"
    ):
        read_aachen(tmp_path)


def test_wrong_camera_models_are_named_with_their_line(tmp_path: Path) -> None:
    layout(tmp_path, OFFICIAL_V1)
    (tmp_path / OFFICIAL_V1["night"]).write_text(f"{NIGHT} SIMPLE_RADIAL 64 48 70 32 24\n")
    with pytest.raises(DataError, match=r"night_time.*:1: .*expected 4 parameters \(f cx cy k\), got 3"):
        read_aachen(tmp_path)


def test_an_image_is_reference_or_query(tmp_path: Path) -> None:
    layout(tmp_path, OFFICIAL_V1)
    write_intrinsics_list(tmp_path / OFFICIAL_V1["day"], {NIGHT: CAMERA})
    with pytest.raises(DataError, match="more than one of reference and query: query/night"):
        read_aachen(tmp_path)


# ---------------------------------------------------------------- lists of poses, held-out images
def test_pose_lists_are_world_to_camera_with_w_first(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    poses = {f"a{index}.jpg": pose(index) for index in range(5)}
    write_pose_list(path, poses)
    words = path.read_text().splitlines()[1].split()
    assert words[0] == "a1.jpg"
    x, y, z, w = Rotation.from_matrix(pose(1)[:3, :3]).as_quat(canonical=True)
    np.testing.assert_allclose(np.array(words[1:], float), [w, x, y, z, *pose(1)[:3, 3]], atol=1e-12)
    for name, T in read_pose_list(path).items():
        np.testing.assert_allclose(T, poses[name], atol=1e-12)
    path.write_text("a.jpg 1 0 0 0 1 2 3\nb.jpg 1 1 0 0 1 2 3\n")
    with pytest.raises(DataError, match=r"poses\.txt:2: expected a unit quaternion"):
        read_pose_list(path)
    path.write_text("a.jpg 1 0 0 0 1 2\n")
    with pytest.raises(DataError, match=r"poses\.txt:1: expected 7 numbers, got 6"):
        read_pose_list(path)


def task(count: int) -> AachenDataset:
    reference = {
        f"db/{index:02d}.jpg": ReferenceImage(camera=CAMERA, T_world_to_cam=pose(index))
        for index in range(count)
    }
    return AachenDataset(
        name="aachen", images=Path("images"), reference=reference, queries={"night": {NIGHT: CAMERA}}
    )


def test_held_out_images_become_queries_of_known_pose() -> None:
    dataset = task(10)
    held = hold_out(dataset, 4)
    assert list(held.queries) == ["held_out"]
    assert list(held.queries["held_out"]) == ["db/02.jpg", "db/06.jpg"]
    assert set(held.reference) == set(dataset.reference) - set(held.truth)
    np.testing.assert_array_equal(held.truth["db/06.jpg"], pose(6))
    assert held.ignored == {NIGHT}
    among = hold_out(dataset, 2, among={"db/03.jpg", "db/07.jpg"})
    assert list(among.truth) == ["db/07.jpg"]
    with pytest.raises(DataError, match="holding out every 40th of 10 images leaves 0 queries"):
        hold_out(dataset, 40)


def test_conditions_are_checked() -> None:
    assert task(2).query_cameras(["night"]) == {NIGHT: CAMERA}
    with pytest.raises(ConfigError, match=r"'day' is none of aachen \(known: night\)"):
        task(2).query_cameras(["day"])
    with pytest.raises(DataError, match="expected reference images"):
        task(0)


def test_the_formats_check_what_was_unpacked(tmp_path: Path) -> None:
    assert FORMATS.get("aachen").list_scenes.endswith("list_conditions_v1")
    assert FORMATS.get("aachen_v1_1").list_scenes.endswith("list_conditions_v1_1")
    assert list_conditions_v1(layout(tmp_path, OFFICIAL_V1), "all") == ("day", "night")


# ---------------------------------------------------------------- published files
def test_skeletons_are_read_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    write_skeleton(path, REFERENCE)
    before = path.read_bytes()
    assert skeleton_images(path) == {"db/1.jpg": 7, "db/2.jpg": 8, "db/3.jpg": 9}
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["database.db"]
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at" * 9)
    with pytest.raises(DataError, match="not a COLMAP database"):
        skeleton_images(tmp_path / "text.db")
    with pytest.raises(DataError, match="not found"):
        skeleton_images(tmp_path / "absent.db")


def test_the_published_skeleton_and_pairs_have_the_published_counts(shared_data) -> None:
    lists = shared_data("aachen_lists")
    ids = skeleton_images(lists / "database.db")
    kinds = Counter("/".join(name.split("/")[: 1 if name.startswith("db/") else 3]) for name in ids)
    assert len(ids) == 5401
    assert kinds == {
        "db": 4479,
        "query/day/nexus4": 445,
        "query/day/milestone": 354,
        "query/day/nexus5x": 25,
        "query/night/nexus5x": 98,
    }
    listed = read_pair_list(lists / "image_pairs_to_match.txt")
    assert (listed.lines, len(listed.pairs), listed.duplicates, listed.selves) == (14941, 14941, 0, 0)
    images = {name for pair in listed.pairs for name in pair}
    night = {name for name in images if name.startswith("query/night/")}
    assert (len(images), len(night)) == (1182, 98)
    assert images <= set(ids)
    per_query = Counter(name for pair in listed.pairs for name in pair if name in night)
    assert sum(per_query.values()) == 1957
    assert sorted(per_query.values())[:2] == [17, 20]
    retrieved = read_pair_list(lists / "pairs-query-netvlad20-night.txt")
    assert (retrieved.lines, len({query for query, _ in retrieved.pairs})) == (1960, 98)
