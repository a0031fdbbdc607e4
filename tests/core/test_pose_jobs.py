"""The jobs around relative poses: the image set carries the size of extraction from the configuration to the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from matchlib.cli import main
from matchlib.completion import atomic_write_json
from matchlib.config import PoseConfig
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.pose_result import read_pose_result
from matchlib.features.store import FeatureReader
from matchlib.jobs.data import DatasetIndex, ImageSet, read_image_set, write_image_set
from matchlib.jobs.evaluation import run_extraction
from matchlib.jobs.pose import run_pose, write_pose_list
from matchlib.typed_yaml import dump_typed


def test_image_sets_carry_a_long_side_only_where_one_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    write_image_set(Path("images"), ["a.png"], path)
    assert json.loads(path.read_text()) == {"root": "images", "names": ["a.png"]}
    assert read_image_set(path) == ImageSet(root=Path("images"), names=("a.png",))
    write_image_set(Path("images"), ["a.png"], path, resize_long_side=840)
    assert read_image_set(path).resize_long_side == 840


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"root": "a", "names": [], "resize_long_side": "large"}', "no"]
)
def test_a_file_that_is_no_image_set_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(DataError, match=r"set\.json: expected"):
        read_image_set(tmp_path / "set.json")


@pytest.mark.parametrize("side", [15, 0, -840])
def test_an_impossible_long_side_is_refused(side: int) -> None:
    with pytest.raises(ConfigError, match=f"extract_long_side: expected at least 16 or null, got {side}"):
        PoseConfig(dataset="d", extract_long_side=side)
    assert PoseConfig(dataset="d").extract_long_side is None


def run_jobs(frames: Path, place: Path, **settings: Any) -> tuple[str, float]:
    """The three jobs of an evaluation in the order of the graph: what the result says of the size, and AUC@20."""
    index, pairs, images = place / "index.json", place / "pairs.json", place / "set.json"
    found = DatasetIndex(
        dataset="box", format="photos", root=str(frames), train=(), validation=(), content=None
    )
    atomic_write_json(index, dump_typed(found))
    config = {"dataset": "box", "list": "pairs_with_gt.txt", "list_format": "superglue"} | settings
    write_pose_list(config, index=index, match_sets=place, out=pairs, images=images)
    method = {"method": "rootsift", "settings": {"max_keypoints": 500}, "weights": None}
    run_extraction(**method, images=images, out=place / "f.h5", device="cpu")
    out = place / "result.json"
    run_pose(config, features=place / "f.h5", pairs=pairs, images=images, label="sift", out=out, device="cpu")
    result = read_pose_result(out)
    return result.features_resize, result.runs[0].auc()[2]


def test_features_are_extracted_at_the_long_side_and_rows_say_so(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    frames = shared_data("rgbd_box")
    for settings, resize in (
        ({}, "original size"),
        ({"extract_long_side": 480}, "long side 480"),
        ({"extract_long_side": 800}, "long side 800"),
    ):
        found, auc = run_jobs(frames, tmp_path, **settings)
        assert found == resize
        assert auc > 0.8  # coordinates of the resized image would fit no intrinsics
        with FeatureReader(tmp_path / "f.h5") as reader:
            assert {reader.read(name).image_size for name in reader.names} == {(640, 480)}


def test_the_command_extracts_at_a_long_side(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    one = shared_data("rgbd_box") / "frame-000000.color.png"
    arguments = [
        "extract",
        "--images",
        str(one),
        "--out",
        str(tmp_path / "f.h5"),
        "--resize-long-side",
        "320",
    ]
    assert main([*arguments, "max_keypoints=100"]) == 0
    with FeatureReader(tmp_path / "f.h5") as reader:
        features = reader.read(one.name)
        assert reader.header is not None and reader.header.settings["resize_long_side"] == 320
    assert features.image_size == (640, 480)
    assert features.keypoints[:, 0].max() > 320  # in pixels of the original
    with pytest.raises(SystemExit):
        main([*arguments, "--resize-short-side", "100"])
