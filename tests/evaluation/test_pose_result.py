"""Figures of relative-pose results: closed forms, intervals, files and tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.evaluation.pose_result import (
    PairPose,
    PoseResult,
    PoseRun,
    read_pose_result,
    write_pose_result,
)
from matchlib.evaluation.pose_table import pose_table
from matchlib.evaluation.table import write_table


def row(*errors: float, scene: str = "", number: int = 0, precision: float | None = 0.5) -> PairPose:
    return PairPose(
        name0=f"{number}-a",
        name1=f"{number}-b",
        scene=scene,
        matches=10,
        precision=precision,
        inliers=(6,) * len(errors),
        rotation_errors_deg=errors,
        translation_errors_deg=tuple(error / 2 for error in errors),
    )


def run_of(*errors: float, scenes: list[str] | None = None, **settings: Any) -> PoseRun:
    names = scenes or [""] * len(errors)
    rows = tuple(row(e, scene=s, number=i) for i, (e, s) in enumerate(zip(errors, names, strict=True)))
    return PoseRun(protocol=PoseProtocol(**settings), pairs=rows)


def result_of(*runs: PoseRun) -> PoseResult:
    return PoseResult(
        label="toy",
        dataset="pairs",
        pairs_digest="p",
        pixel_offset=0.5,
        epipolar_threshold=1e-4,
        features_digest="f",
        features_resize="original size",
        matcher=None,
        matches_digest=None,
        missing_images=("gone.jpg",),
        runs=runs,
    )


def test_areas_closed_forms() -> None:
    assert run_of(0, 0, 0).auc() == pytest.approx((1, 1, 1))
    assert run_of(math.inf).auc() == (0, 0, 0)
    # Recall rises to 1 at 2.5 and stays: (2.5 / 2 + 2.5) / 5.
    assert run_of(2.5).auc()[0] == pytest.approx(0.75)
    assert run_of(2.5, math.inf).auc()[0] == pytest.approx(0.375)
    assert run_of(math.inf, failure_deg=90.0, auc_deg=(180.0,)).auc()[0] == pytest.approx(0.75)


def test_repeats_count_as_errors_of_their_own() -> None:
    protocol = PoseProtocol(repeats=2)
    run = PoseRun(protocol=protocol, pairs=(row(0, 0), row(0, math.inf)))
    assert run.auc()[0] == pytest.approx(0.75)
    assert run.auc_spread()[0] == pytest.approx(np.std([1, 0.5], ddof=1))
    assert math.isnan(run_of(1).auc_spread()[0])
    summary = run.summary()
    assert summary["failed"] == 1
    assert summary["auc@5_spread"] == pytest.approx(np.std([1, 0.5], ddof=1))
    assert math.isinf(run.pairs[1].pose_error_deg)


def test_summary_figures() -> None:
    summary = run_of(1, 3, 7, math.inf, math.inf).summary()
    assert (summary["pairs"], summary["matches"], summary["inliers"], summary["failed"]) == (5, 10, 6, 2)
    assert (summary["median_deg"], summary["median_translation_deg"]) == (7, 3.5)
    assert math.isnan(run_of(1, math.inf).summary()["median_deg"])
    some = PoseRun(protocol=PoseProtocol(), pairs=(row(1, precision=None), row(1, precision=0.25)))
    assert some.summary()["precision"] == 0.25


def test_intervals_draw_scenes_where_there_are_enough() -> None:
    errors = [0.5 if i < 30 else 30.0 for i in range(60)]
    in_scenes = [f"s{i // 6}" for i in range(60)]
    scenes = run_of(*errors, scenes=in_scenes)
    pairs = run_of(*errors, scenes=in_scenes, bootstrap_over="pairs")
    few = run_of(*errors, scenes=[f"s{i // 10}" for i in range(60)])
    assert [run.interval_over for run in (scenes, pairs, few)] == ["scenes", "pairs", "pairs"]
    low, high = scenes.summary()["interval"]["auc@20"]
    pair_low, pair_high = pairs.summary()["interval"]["auc@20"]
    assert low < scenes.auc()[2] < high
    assert high - low > 1.5 * (pair_high - pair_low)  # pairs of a scene agree: drawing pairs is too sure
    # The binomial error of 60 pairs at recall 1/2, 1.96 of it on either side.
    assert pair_high - pair_low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 60), rel=0.15)


def test_one_unit_has_no_interval() -> None:
    assert run_of(1.0).summary()["interval"] == {}
    assert run_of(1.0, 2.0, bootstrap_over="scenes").summary()["interval"] == {}


def test_results_read_back_and_equal_results_have_equal_bytes(tmp_path: Path) -> None:
    settings = {"bootstrap": BootstrapConfig(resamples=10), "auc_deg": (5.0, 7.5), "repeats": 2}
    run = PoseRun(
        protocol=PoseProtocol(**settings), pairs=(row(0.1, math.inf), row(2.0, 3.0, precision=None))
    )
    result = result_of(run, run_of(4.0, name="other"))
    write_pose_result(result, tmp_path / "a.json")
    found = read_pose_result(tmp_path / "a.json")
    assert found == result
    write_pose_result(found, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert found.run("other").auc() == result.runs[1].auc()
    with pytest.raises(ConfigError, match="poselib, other"):
        found.run("third")


@pytest.mark.parametrize("key", ["runs", "label", "missing_images"])
def test_broken_files_are_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.json"
    write_pose_result(result_of(run_of(1.0)), path)
    body = json.loads(path.read_text())
    body["runs"][0]["pairs"][0].pop("inliers") if key == "runs" else body.pop(key)
    path.write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"a\.json: incomplete"):
        read_pose_result(path)
    with pytest.raises(DataError, match="not found"):
        read_pose_result(tmp_path / "absent.json")


def test_rows_need_one_value_per_repeat() -> None:
    with pytest.raises(ShapeError, match="one value per repeat"):
        PairPose(
            name0="a",
            name1="b",
            scene="",
            matches=1,
            precision=0.0,
            inliers=(1, 2),
            rotation_errors_deg=(1.0,),
            translation_errors_deg=(1.0,),
        )


def test_every_row_names_estimator_threshold_and_resize(tmp_path: Path) -> None:
    runs = [
        run_of(1.0, 2.0, math.inf),
        run_of(
            1.0, math.inf, name="r", threshold_frame="resized", long_side=1600, ratio=0.8, threshold_px=0.5
        ),
    ]
    table = pose_table(
        [result_of(*runs), result_of(run_of(3.0, 4.0, auc_deg=(10.0,), apply_pixel_offset=False))]
    )
    assert table["estimator"].tolist()[:2] == [
        "poselib 1 px @ original size",
        "poselib 0.5 px @ long side 1600",
    ]
    assert table["resize"].tolist()[:2] == ["original size", "long side 1600"]
    assert table["matcher"].tolist()[:2] == ["mutual nearest", "mutual nearest, ratio 0.8"]
    assert table["pixel_offset"].tolist() == [0.5, 0.5, 0.0]
    assert table["missing_images"].tolist() == [1, 1, 1]
    assert math.isnan(table["auc@5"][2]) and table["auc@10"][2] == pytest.approx(run_of(3.0, 4.0).auc()[1])
    assert table["auc@5_low"][0] <= table["auc@5"][0] <= table["auc@5_high"][0]
    write_table(table, tmp_path / "pose")
    rows = json.loads((tmp_path / "pose.json").read_text())
    assert rows[1]["median_deg"] is None  # half of its pairs failed
