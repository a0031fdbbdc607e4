"""Tables: columns beside each other, rounding, missing values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from matchlib.evaluation.config import HomographyProtocol, HPatchesProtocol
from matchlib.evaluation.homography_result import HomographyPair, HomographyResult
from matchlib.evaluation.hpatches import HPatchesResult, PairResult, PublishedResult
from matchlib.evaluation.table import homography_table, hpatches_table, write_table


def evaluated(label: str) -> HPatchesResult:
    pairs = [
        PairResult(
            sequence=name,
            k=k,
            features0=1,
            features1=1,
            matches=k,
            accuracy=tuple(np.linspace(row / 3, 1, 15)),
            corner_error_px=float(k),
        )
        for row, name in enumerate(("i_a", "i_b", "v_c"))
        for k in range(2, 7)
    ]
    return HPatchesResult(
        label=label,
        protocol=HPatchesProtocol(sequences="all_present"),
        features_digest="d" * 64,
        image_features=(1,) * 17 + (2,),
        pairs=tuple(pairs),
    )


def published() -> PublishedResult:
    curve = np.linspace(0.1, 1, 15)
    return PublishedResult(
        label="other",
        illumination=10 * curve,
        viewpoint=5 * curve,
        pair_is_illumination=np.arange(15) < 10,
        image_features=np.full(18, 7),
        pair_matches=np.full(15, 3),
    )


def test_published_and_own_results_share_a_table(tmp_path: Path) -> None:
    for order in ([evaluated("ours"), published()], [published(), evaluated("ours")]):
        table = hpatches_table(order)
        assert list(table.columns[:9]) == [
            *("method", "source", "split", "pairs", "features", "matches"),
            *("mma@1", "mma@1_low", "mma@1_high"),
        ]
        rows = table.set_index(["method", "split"])
        assert rows.loc[("other", "all"), "mma@1"] == 0.1
        assert rows.loc[("ours", "illumination"), "mma@1"] == np.mean([0, 1 / 3])
        assert np.isnan(rows.loc[("other", "all"), "mma@1_low"])
        low, value, high = (rows.loc[("ours", "all"), f"mma@3{end}"] for end in ("_low", "", "_high"))
        assert low < value < high
        assert rows.loc[("ours", "all"), "estimator"] == "opencv 3 px @ original size"
    write_table(table, tmp_path / "table")
    back = pd.read_csv(tmp_path / "table.csv")
    assert back["mma@1"].tolist() == table["mma@1"].round(4).tolist()
    assert back.loc[back["method"] == "ours", "features"].tolist() == [1.06] * 3
    rows = json.loads((tmp_path / "table.json").read_text())
    assert rows[0]["mma@1_low"] is None and rows[0]["mma@1"] == 0.1 and rows[0]["pairs"] == 15
    assert [row["split"] for row in rows[:3]] == ["all", "illumination", "viewpoint"]


def test_tables_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(hpatches_table([evaluated("ours")]), tmp_path / name)
    for ending in ("csv", "json"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_every_homography_row_names_its_estimator(tmp_path: Path) -> None:
    pairs = tuple(
        HomographyPair(sequence=name, k=k, matches=10, corner_error_px=math.inf if k == 2 else 0.5)
        for name in ("i_a", "v_b")
        for k in range(2, 7)
    )
    results = [
        HomographyResult(
            label="ours", protocol=protocol, sequences="all_present", features_digest="d", pairs=pairs
        )
        for protocol in (
            HomographyProtocol(),
            HomographyProtocol(name="p", estimator="poselib", threshold_px=1, short_side=480, auc_px=(5.0,)),
        )
    ]
    table = homography_table(results)
    assert table["estimator"].unique().tolist() == [
        "opencv 3 px @ original size",
        "poselib 1 px @ short side 480",
    ]
    assert table["correct@1"].tolist() == [0.8] * 6 and table["failed"].tolist() == [2, 1, 1] * 2
    first = table.iloc[0]
    # 2 of 10 errors are infinite, 8 are 0.5 px: recall rises to 0.1 by 0.5 px, jumps there to 0.8 and stays.
    assert first["auc@1"] == pytest.approx(0.5 * (0 + 0.1) / 2 + 0.5 * 0.8)
    assert np.isnan(table.iloc[3]["auc@1"])


def test_no_results_give_an_empty_table(tmp_path: Path) -> None:
    table = hpatches_table([])
    assert len(table) == 0 and list(table.columns[:3]) == ["method", "source", "split"]
    write_table(table, tmp_path / "none")
    assert json.loads((tmp_path / "none.json").read_text()) == []
