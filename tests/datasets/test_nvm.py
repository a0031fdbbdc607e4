"""NVM files: R C + t = 0, quaternions as SciPy has them, and every fault named with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from matchlib.datasets.nvm import (
    NvmPoint,
    camera_centre,
    quaternion_from_rotation,
    read_nvm,
    read_nvm_points,
    rotation_from_quaternion,
    write_nvm,
)
from matchlib.errors import DataError

# Two cameras and a point as VisualSFM writes them; the first looks along x from (1, 2, 3).
TEXT = """NVM_V3 FixedK 500 320 500 240 0

2
db/1.jpg\t1200.5 0.5 -0.5 0.5 -0.5 1 2 3 -0.01 0
db/2.jpg 1100 1 0 0 0 -4 0 0.5 0 0

1
0.5 1.5 2.5 10 20 30 2 0 17 1.0 2.0 1 4 3.0 4.0

0
"""
numbers = st.floats(-1, 1)


def nvm(path: Path, text: str = TEXT) -> Path:
    (path / "model.nvm").write_text(text, encoding="utf-8")
    return path / "model.nvm"


def random_poses(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    poses = {}
    for index in range(count):
        T = np.eye(4)
        T[:3, :3] = Rotation.random(random_state=index).as_matrix()
        T[:3, 3] = rng.normal(size=3) * 100
        poses[f"db/{index}.jpg"] = T
    return poses


def test_poses_and_points_of_a_file_written_by_hand(tmp_path: Path) -> None:
    path = nvm(tmp_path)
    poses = read_nvm(path)
    assert list(poses) == ["db/1.jpg", "db/2.jpg"]
    # w x y z = (1, -1, 1, -1) / 2 takes (x, y, z) to (-y, -z, x).
    np.testing.assert_allclose(poses["db/1.jpg"][:3, :3], [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-15)
    np.testing.assert_allclose(
        poses["db/1.jpg"][:3, :3] @ [1, 2, 3] + poses["db/1.jpg"][:3, 3], 0, atol=1e-15
    )
    np.testing.assert_allclose(poses["db/2.jpg"][:3, 3], [4, 0, -0.5])
    (point,) = read_nvm_points(path)
    assert point.images == (0, 1)
    assert point.position.tolist() == [0.5, 1.5, 2.5]


def test_written_files_read_back_and_hold_the_centre(tmp_path: Path) -> None:
    poses = random_poses(20)
    points = [
        NvmPoint(position=np.array([1 / 3, -2, 5]), images=(0, 3, 19)),
        NvmPoint(position=np.ones(3), images=(1, 2)),
    ]
    path = tmp_path / "a" / "model.nvm"
    write_nvm(path, poses, focal_px=dict.fromkeys(poses, 1000.0), points=points)
    read = read_nvm(path)
    assert list(read) == list(poses)
    rows = [line.split() for line in path.read_text().splitlines()[3:23]]
    for row, (name, T) in zip(rows, poses.items(), strict=True):
        np.testing.assert_allclose(read[name], T, atol=1e-12)
        centre = np.array(row[6:9], dtype=float)
        np.testing.assert_allclose(T[:3, :3] @ centre + T[:3, 3], 0, atol=1e-10)
        np.testing.assert_allclose(camera_centre(T), centre, atol=1e-12)
    back = list(read_nvm_points(path))
    assert [point.images for point in back] == [point.images for point in points]
    assert back[0].position.tolist() == points[0].position.tolist()


@given(st.tuples(numbers, numbers, numbers, numbers).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_quaternions_agree_with_scipy(q: tuple[float, float, float, float]) -> None:
    w, x, y, z = q
    expected = Rotation.from_quat([x, y, z, w]).as_matrix()
    np.testing.assert_allclose(rotation_from_quaternion(q), expected, atol=1e-12)
    back = quaternion_from_rotation(expected)
    assert back[0] >= 0
    assert np.linalg.norm(back) == pytest.approx(1)
    np.testing.assert_allclose(rotation_from_quaternion(back), expected, atol=1e-12)


def test_half_turns_have_quaternions() -> None:
    for axis in np.eye(3):
        R = Rotation.from_rotvec(np.pi * axis).as_matrix()
        np.testing.assert_allclose(rotation_from_quaternion(quaternion_from_rotation(R)), R, atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("NVM_V3", "NVM_V2", r":1: expected the header NVM_V3, got 'NVM_V2"),
        ("2\ndb/1", "x\ndb/1", r":3: expected numbers"),
        ("2\ndb/1", "2.5\ndb/1", r":3: number of cameras: expected a whole number"),
        ("-4 0 0.5 0 0", "-4 0 0.5 0", r":5: expected 10 numbers, got 9"),
        ("1100 1 0 0 0", "1100 1 1 0 0", r":5: expected a unit quaternion .* of length 1.41"),
        ("-4 0 0.5", "-4 nan 0.5", r":5: expected finite numbers"),
        ("db/2.jpg", "db/1.jpg", r":5: image 'db/1.jpg' was given before"),
    ],
)
def test_faults_of_cameras_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=r"model\.nvm" + message):
        read_nvm(nvm(tmp_path, TEXT.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1\n0.5", "2\n0.5", r"expected 2 points, found "),
        ("30 2 0", "30 3 0", r":8: expected 4 numbers for each of 3 observations, got 8"),
        ("1 4 3.0", "2 4 3.0", r":8: image 2 is beyond the 2 cameras"),
        ("0.5 1.5 2.5 10 20 30 2 0 17 1.0 2.0 1 4 3.0 4.0", "0.5 1.5", r":8: expected 'X Y Z R G B n"),
    ],
)
def test_faults_of_points_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = nvm(tmp_path, TEXT.replace(old, new, 1).removesuffix("\n0\n"))
    assert len(read_nvm(path)) == 2
    with pytest.raises(DataError, match=message):
        list(read_nvm_points(path))


def test_cut_absent_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected 2 cameras, found 1; the file is cut"):
        read_nvm(nvm(tmp_path, TEXT[: TEXT.index("db/2.jpg")]))
    with pytest.raises(DataError, match="not found"):
        read_nvm(tmp_path / "absent.nvm")
    (tmp_path / "binary.nvm").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected a text file"):
        read_nvm(tmp_path / "binary.nvm")
    assert list(read_nvm_points(nvm(tmp_path, TEXT[: TEXT.index("\n1\n0.5")]))) == []
    with pytest.raises(DataError, match="without white space, got 'a b'"):
        write_nvm(tmp_path / "x.nvm", {"a b": np.eye(4)}, focal_px={"a b": 1.0})
    assert not (tmp_path / "x.nvm").exists()
