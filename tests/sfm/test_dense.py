"""Dense points, as far as they go without a GPU; `tests/mirror/test_eth_writer.py` fuses exact depth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchlib.completion import MARKER
from matchlib.datasets.images import read_image, write_image
from matchlib.errors import ConfigError, DataError
from matchlib.sfm.config import MappingConfig, VerificationConfig
from matchlib.sfm.database import build_database, verify_database
from matchlib.sfm.dense import COUNT, DenseSettings, dense_points, finished_points, has_cuda, undistort
from matchlib.sfm.mapping import reconstruct
from matchlib.sfm.work import finished_folder


@pytest.fixture(scope="module")
def mapped(scene: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of the scene, and a folder of its photographs: grey, all alike."""
    root = tmp_path_factory.mktemp("mapped")
    build_database(root / "raw.db", images=scene.cameras, features=scene.features, matches=scene.matches)
    verify_database(root / "raw.db", root / "v.db", scene.pairs, VerificationConfig())
    reconstruct(root / "v.db", None, root / "model", MappingConfig())
    for name in scene.names:
        write_image(root / "images" / name, np.full((768, 1024, 3), 90, np.uint8))
    return root / "model", root / "images"


def test_images_are_undistorted_to_the_size_asked_for(
    scene: Any, mapped: tuple[Path, Path], tmp_path: Path
) -> None:
    model, images = mapped
    undistort(model, images, tmp_path, 320)
    pictures = sorted((tmp_path / "images").glob("*.png"))
    assert [path.name for path in pictures] == scene.names
    assert all(max(read_image(path).shape) == 320 for path in pictures)
    with pytest.raises(DataError, match="absent"):
        undistort(tmp_path / "absent", images, tmp_path / "other", 320)


def test_photographs_that_are_not_there_are_named(
    scene: Any, mapped: tuple[Path, Path], tmp_path: Path
) -> None:
    """COLMAP goes on without them, and would count the points of the others."""
    model, images = mapped
    (tmp_path / "few").mkdir()
    for name in scene.names[1:]:
        (tmp_path / "few" / name).symlink_to(images / name)
    with pytest.raises(DataError, match=f"1 of the 6 photographs of .*{scene.names[0]}"):
        undistort(model, tmp_path / "few", tmp_path / "work", 320)


def test_without_cuda_nothing_is_left(mapped: tuple[Path, Path], tmp_path: Path) -> None:
    if has_cuda():
        pytest.skip("this pycolmap has CUDA")
    with pytest.raises(ConfigError, match="dense: expected a pycolmap built with CUDA"):
        dense_points(*mapped, tmp_path / "dense")
    assert not list(tmp_path.iterdir())


def test_a_finished_count_needs_no_gpu_but_must_be_one(mapped: tuple[Path, Path], tmp_path: Path) -> None:
    model, out = mapped[0], tmp_path / "dense"
    for content in ('{"points": 7}', "[]", "half"):
        with finished_folder(
            out, stage="dense", settings=asdict(DenseSettings()), inputs=[model / MARKER]
        ) as folder:
            (folder / COUNT).write_text(content)
        if content == '{"points": 7}':
            assert dense_points(*mapped, out) == finished_points(model, out) == 7
            assert finished_points(model, out, DenseSettings(min_pixels=3)) is None
        else:
            with pytest.raises(DataError, match=r"dense\.json: expected the number of points as JSON"):
                dense_points(*mapped, out)
