"""Models on disk as pictures, against the synthetic scene that they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from matchlib.errors import DataError
from matchlib.sfm.poses import Registered, write_poses
from matchlib.sfm.registration import POSES
from matchlib.visualization.model_pictures import picture_of_model


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path, pycolmap.Reconstruction]:
    """A model folder, its database, and the reconstruction itself."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 4
    options.num_points3D = 60
    with pycolmap.Database.open(str(tmp_path / "scene.db")) as database:
        truth = pycolmap.synthesize_dataset(options, database)
    folder = tmp_path / "model"
    folder.mkdir()
    truth.write(str(folder))
    return folder, tmp_path / "scene.db", truth


def test_points_and_cameras_are_those_of_the_model(model):
    folder, _, truth = model
    picture = picture_of_model(folder, "synthetic")
    assert picture.title == "synthetic" and len(picture.points) == truth.num_points3D() == 60
    wanted = sorted(point.xyz.tolist() for point in truth.points3D.values())
    np.testing.assert_allclose(sorted(picture.points.tolist()), wanted)
    for camera in picture.cameras:
        image = truth.find_image_with_name(camera.name)
        np.testing.assert_allclose(camera.centre, image.projection_center(), atol=1e-9)
        assert camera.K[0, 2] == pytest.approx(image.camera.principal_point_x - 0.5)
        assert camera.kind == "mapped"


def test_registered_queries_stand_beside_the_map(model, tmp_path):
    folder, database, truth = model
    name = min(image.name for image in truth.images.values())
    poses = tmp_path / "poses"
    poses.mkdir()
    write_poses(poses / POSES, {name: Registered(T_world_to_cam=np.eye(4), inliers=40), "lost.png": None})
    (poses / ".complete").write_text("{}")
    picture = picture_of_model(folder, "queries", poses=poses, database=database)
    queries = [camera for camera in picture.cameras if camera.kind == "registered"]
    assert [camera.name for camera in queries] == [name]
    np.testing.assert_allclose(queries[0].T_world_to_cam, np.eye(4))
    assert queries[0].size == (truth.cameras[1].width, truth.cameras[1].height)


def test_an_empty_model_is_no_picture(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    pycolmap.Reconstruction().write(str(folder))
    assert picture_of_model(folder, "empty") is None


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        picture_of_model(tmp_path / "nowhere", "none")
