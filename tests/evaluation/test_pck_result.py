"""PCK results: means, intervals, files, tables."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matchlib.errors import DataError, ShapeError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.pck_config import PCK_PROTOCOLS, HarrisQueries, PCKProtocol
from matchlib.evaluation.pck_result import (
    PCKAblation,
    PCKPair,
    PCKResult,
    read_pck_ablation,
    read_pck_result,
    write_pck_ablation,
    write_pck_result,
)
from matchlib.evaluation.pck_table import pck_ablation_table, pck_table
from matchlib.evaluation.table import write_table

PROTOCOL = PCKProtocol(name="p", curve_px=(1.0, 3.0), threshold_px=3.0, harris=HarrisQueries(percentile=80))
SHARES = {"i_a": (0.9, 0.7), "i_b": (0.5,), "v_c": (0.2, 0.4, 0.6), "v_d": (0.1, 0.3)}


def make_result(label: str = "toy", *, shift: float = 0.0, **changes: object) -> PCKResult:
    """Pairs with the shares above at 3 px and half of them at 1 px."""
    pairs = tuple(
        PCKPair(
            sequence=name,
            k=k,
            points=100 * k,
            candidates=500,
            correct=share + shift,
            curve=((share + shift) / 2, share + shift),
        )
        for name, shares in SHARES.items()
        for k, share in enumerate(shares, start=2)
    )
    result = PCKResult(
        label=label,
        protocol=PROTOCOL,
        members=("only",),
        member_pairs="all",
        uses_truth=False,
        fingerprint="f" * 64,
        points_digest="d" * 64,
        pairs=pairs,
        left_out=("v_d 1-5",),
    )
    return replace(result, **changes)


def make_ablation() -> PCKAblation:
    exact = make_result()
    flann = make_result(shift=-0.1, protocol=replace(PROTOCOL, matcher="flann"))
    same = tuple(0.5 + 0.05 * row for row in range(len(exact.pairs)))
    return PCKAblation(exact=exact, flann=flann, same_index=same)


def test_figures_are_means_over_pairs() -> None:
    result = make_result()
    assert result.pck("illumination") == pytest.approx((0.9 + 0.7 + 0.5) / 3)
    assert result.pck("viewpoint") == pytest.approx((0.2 + 0.4 + 0.6 + 0.1 + 0.3) / 5)
    assert result.pck() == pytest.approx(3.7 / 8)
    np.testing.assert_allclose(result.curve("viewpoint"), [0.16, 0.32])
    only = replace(result, pairs=result.pairs_of("viewpoint"))
    assert np.isnan(only.pck("illumination")) and np.isnan(only.interval("illumination")).all()
    assert "illumination" not in only.summary()


def test_intervals_draw_whole_sequences() -> None:
    result = make_result()
    result = replace(result, protocol=replace(PROTOCOL, bootstrap=BootstrapConfig(resamples=4000)))
    low, high = result.interval("viewpoint")
    # Two sequences: c c, c d or d d with probabilities 1/4, 1/2, 1/4; 95 % reach the extremes.
    assert low[0] == pytest.approx(0.2) and high[0] == pytest.approx(0.4)
    np.testing.assert_allclose([low[2], high[2]], [low[0], high[0]])
    np.testing.assert_allclose([low[1], high[1]], [0.1, 0.2])
    one = replace(result, pairs=result.pairs[3:6])
    assert np.isnan(one.interval()).all()
    assert one.summary()["all"]["interval"] == {}


def test_all_methods_are_judged_over_the_same_resamples() -> None:
    difference = make_result(shift=0.25).interval() - make_result().interval()
    np.testing.assert_allclose(difference[:, 0], 0.25)


def test_results_survive_their_file(tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, bootstrap=BootstrapConfig(resamples=50, seed=4))
    result = make_result(
        protocol=protocol, members=("fine", "coarse"), member_pairs="not_coarse_coarse", uses_truth=True
    )
    write_pck_result(result, tmp_path / "r.json")
    assert read_pck_result(tmp_path / "r.json") == result
    write_pck_result(read_pck_result(tmp_path / "r.json"), tmp_path / "again.json")
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    write_pck_ablation(make_ablation(), tmp_path / "a.json")
    assert read_pck_ablation(tmp_path / "a.json") == make_ablation()
    for protocol in PCK_PROTOCOLS:
        pairs = (PCKPair(sequence="i_a", k=2, points=1, candidates=1, correct=1.0, curve=(1.0,) * 15),)
        full = make_result(protocol=protocol, pairs=pairs)
        write_pck_result(full, tmp_path / "full.json")
        assert read_pck_result(tmp_path / "full.json").protocol == protocol


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(DataError, match="not found"):
        read_pck_result(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"r\.json: not JSON"):
        read_pck_result(path)
    write_pck_ablation(make_ablation(), path)
    with pytest.raises(DataError, match="expected layout matchlib-pck-1, got matchlib-pck-ablation-1"):
        read_pck_result(path)
    write_pck_result(make_result(), path)
    with pytest.raises(DataError, match="expected layout"):
        read_pck_ablation(path)
    body = json.loads(path.read_text())
    for broken in (
        {key: value for key, value in body.items() if key != "pairs"},
        body | {"surplus": 1},
        body | {"protocol": body["protocol"] | {"threshold_px": -1.0}},
        body | {"protocol": None},
        body | {"pairs": [body["pairs"][0] | {"curve": [1.0]}]},
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"r\.json: incomplete or foreign result"):
            read_pck_result(path)


def test_inconsistent_results_cannot_be_made() -> None:
    pair = replace(make_result().pairs[0], curve=(1.0,))
    with pytest.raises(ShapeError, match=r"curve of i_a 1-2: expected 2 values, got 1"):
        make_result(pairs=(pair,))
    with pytest.raises(ShapeError, match="the same pairs"):
        replace(make_ablation(), same_index=(1.0,))


def test_the_table_has_a_row_for_each_method_and_split(tmp_path: Path) -> None:
    oracle = make_result("blend", uses_truth=True, members=("fine", "coarse"), protocol=PROTOCOL)
    table = pck_table([make_result(), oracle])
    assert table["method"].tolist() == ["toy"] * 3 + ["blend"] * 3
    assert table["split"].tolist() == ["all", "illumination", "viewpoint"] * 2
    assert table["uses_truth"].tolist() == ["no"] * 3 + ["oracle"] * 3
    assert table["members"].tolist() == ["only"] * 3 + ["fine + coarse"] * 3
    row = table.iloc[2]
    assert (row["protocol"], row["candidates"], row["matcher"], row["pairs"], row["left_out"]) == (
        *("p", "grid of 4 px", "exact", 5, 1),
    )
    assert row["points"] == pytest.approx((200 + 300 + 400 + 200 + 300) / 5)
    assert row["pck"] == row["pck@3"] == pytest.approx(0.32)
    assert row["pck_low"] == pytest.approx(0.2) and row["pck_high"] == pytest.approx(0.4)
    assert row["pck@1"] == pytest.approx(0.16) and np.isnan(row["pck@5"])
    write_table(table, tmp_path / "pck")
    with open(tmp_path / "pck.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[2]["pck"] == "0.32" and rows[2]["pck@5"] == ""
    assert json.loads((tmp_path / "pck.json").read_text())[2]["pck@10"] is None
    assert list(pck_table([]).columns) == list(table.columns)


def test_the_ablation_table_sets_exact_beside_flann() -> None:
    table = pck_ablation_table([make_ablation()])
    assert table["matcher"].tolist() == ["exact", "flann"] * 3
    assert table["split"].tolist() == ["all", "all", "illumination", "illumination", "viewpoint", "viewpoint"]
    assert table["same_index"].tolist() == pytest.approx([1, 0.675, 1, 0.55, 1, 0.75])
    exact, flann = table["pck"][::2].to_numpy(), table["pck"][1::2].to_numpy()
    np.testing.assert_allclose(exact - flann, 0.1)
