"""A COLMAP model against itself: its 3D points, projected by our cameras, fall on what the images show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from matchlib.datasets.colmap_model import ColmapImage, read_colmap, undistorted
from matchlib.datasets.images import read_image
from matchlib.errors import DataError

pycolmap = pytest.importorskip("pycolmap")


def project(image: ColmapImage, points: np.ndarray) -> np.ndarray:
    camera = image.camera
    in_camera = points @ camera.T_world_to_cam[:3, :3].T + camera.T_world_to_cam[:3, 3]
    pixels = in_camera @ camera.K.T
    return pixels[:, :2] / pixels[:, 2:]


def points_of(folder: Path) -> dict[int, list[float]]:
    """id -> X Y Z of a points3D.txt, read by hand."""
    rows = [
        line.split()
        for line in (folder / "points3D.txt").read_text().splitlines()
        if line[:1] not in ("#", "")
    ]
    return {int(row[0]): [float(word) for word in row[1:4]] for row in rows}


def pinhole_model(folder: Path) -> Path:
    """One pinhole camera at the origin; a point straight ahead is seen in the corner-counted image centre."""
    folder.mkdir()
    (folder / "cameras.txt").write_text("1 PINHOLE 40 30 50 60 20 15\n")
    (folder / "images.txt").write_text(
        "1 1 0 0 0 0 0 0 1 b.jpg\n20 15 7 1 1 -1\n2 1 0 0 0 1 0 0 1 a.jpg\n30 15 7\n"
    )
    (folder / "points3D.txt").write_text("7 0 0 5 9 9 9 0.1 1 0 2 0\n")
    return folder


def test_half_a_pixel_is_taken_off(tmp_path: Path) -> None:
    images = read_colmap(pinhole_model(tmp_path / "model"))
    assert list(images) == ["a.jpg", "b.jpg"]
    one = images["b.jpg"]
    assert one.camera.K.tolist() == [[50, 0, 19.5], [0, 60, 14.5], [0, 0, 1]]
    assert one.camera.size == (40, 30)
    assert one.keypoints.tolist() == [[19.5, 14.5]]  # the observation without a 3D point is dropped
    assert one.point_ids.tolist() == [7]
    for image in images.values():
        assert project(image, np.array([[0.0, 0, 5]])) == pytest.approx(image.keypoints)
    pixels = np.zeros((30, 40, 3), np.uint8)
    assert undistorted(one, pixels) is pixels
    with pytest.raises(DataError, match=r"b.jpg: expected 40 x 30 px .* got 41 x 30"):
        undistorted(one, np.zeros((30, 41, 3), np.uint8))


def test_undistorted_cameras_project_the_points_where_they_were_seen(
    shared_data: Callable[[str], Path],
) -> None:
    folder = shared_data("sfm_lund_door") / "sparse"
    points = points_of(folder)
    images = read_colmap(folder)
    assert len(images) == 12
    errors = [
        np.linalg.norm(
            project(image, np.array([points[i] for i in image.point_ids])) - image.keypoints, axis=1
        )
        for image in images.values()
    ]
    assert sum(map(len, errors)) == 55375  # as the data's description says, like the mean error of 0.15 px
    assert np.concatenate(errors).mean() == pytest.approx(0.15, abs=0.02)


def test_binary_models_are_the_same_as_text(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared_data("sfm_lund_door") / "sparse"
    pycolmap.Reconstruction(str(folder)).write_binary(str(tmp_path))
    text, binary = read_colmap(folder), read_colmap(tmp_path)
    assert list(text) == list(binary)
    for name in text:
        assert np.array_equal(text[name].keypoints, binary[name].keypoints)
        assert text[name].camera.T_world_to_cam == pytest.approx(
            binary[name].camera.T_world_to_cam, abs=1e-12
        )


def test_pictures_are_undistorted_as_the_observations_are(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("sfm_lund_door")
    image = read_colmap(folder / "sparse")["DSC_0005.JPG"]
    rgb = read_image(folder / "images" / image.name)
    straight = undistorted(image, rgb)
    width, height = image.camera.size
    assert straight.shape == (height, width, 3)
    model = pycolmap.Reconstruction(str(folder / "sparse"))
    original = next(one for one in model.images.values() if one.name == image.name)
    seen = np.array([p.xy for p in original.points2D if p.has_point3D()]) - 0.5
    assert np.abs(seen - image.keypoints).max() > 2  # there is something to undo

    def grey(pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
        blurred = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
        return cv2.remap(blurred, *points.astype(np.float32).T[:, :, None], cv2.INTER_LINEAR).ravel()

    truth = grey(rgb, seen)
    error = np.abs(grey(straight, image.keypoints) - truth).mean()
    for shift in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)):
        assert error < 0.5 * np.abs(grey(straight, image.keypoints + shift) - truth).mean()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        read_colmap(tmp_path / "nothing")
    with pytest.raises(DataError, match="expected a COLMAP model"):
        read_colmap(tmp_path)
    model = pinhole_model(tmp_path / "model")
    lines = (model / "images.txt").read_text()
    (model / "images.txt").write_text(lines[: len(lines) // 2])
    with pytest.raises(DataError, match="expected a COLMAP model"):
        read_colmap(model)
    shutil.rmtree(model)
    empty = pinhole_model(tmp_path / "model")
    for name in ("images.txt", "points3D.txt"):
        (empty / name).write_text("# none\n")
    with pytest.raises(DataError, match="expected registered images"):
        read_colmap(empty)
