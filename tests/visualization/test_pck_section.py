from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from matchlib.evaluation.pck_config import PCK_PROTOCOLS, PCKProtocol
from matchlib.evaluation.pck_result import PCKAblation, PCKPair, PCKResult
from matchlib.visualization.page import render_page
from matchlib.visualization.pck_section import pck_section, protocol_text
from matchlib.visualization.report import Cell, Report, Table

AS_CODED, AS_DESCRIBED = PCK_PROTOCOLS


def make_result(label: str, level: float, protocol: PCKProtocol = AS_CODED, **changes: object) -> PCKResult:
    pairs = tuple(
        PCKPair(
            sequence=name,
            k=k,
            points=900,
            candidates=900,
            correct=level + offset,
            curve=tuple((level + offset) * t / 15 for t in range(1, 16)),
        )
        for name, offset in (("i_a", 0.1), ("i_b", 0.2), ("v_c", -0.1), ("v_d", -0.2))
        for k in range(2, 7)
    )
    result = PCKResult(
        label=label,
        protocol=protocol,
        members=("only",),
        member_pairs="all",
        uses_truth=False,
        fingerprint="f" * 64,
        points_digest="d" * 64,
        pairs=pairs,
    )
    return replace(result, **changes)


def cell_of(table: Table, row: int, column: str, group: str = "") -> object:
    place = next(i for i, c in enumerate(table.columns) if c.name == column and group in c.group)
    return table.rows[row].cells[place]


def test_one_part_for_each_protocol_then_the_ablation() -> None:
    exact = make_result("msnet", 0.5)
    flann = make_result("msnet", 0.4, replace(AS_CODED, matcher="flann"))
    ablation = PCKAblation(exact=exact, flann=flann, same_index=(0.7,) * 20)
    described = make_result("msnet", 0.3, AS_DESCRIBED)
    section = pck_section([exact, described, make_result("daisy", 0.45)], [ablation])
    assert [part.title for part in section.sections] == [
        "Protocol as-coded",
        "Protocol as-described",
        "Descriptor or search?",
        "Origin of the PCK figures",
    ]
    coded, _, search, origin = section.sections
    assert [row.cells[0] for row in coded.tables[0].rows] == ["msnet", "daisy"]
    value = cell_of(coded.tables[0], 0, "illumination")
    assert isinstance(value, Cell) and value.value == pytest.approx(0.65)
    assert value.low == pytest.approx(0.6) and value.high == pytest.approx(0.7)
    assert search.tables[0].rows[0].cells[:5] == pytest.approx(["msnet", 0.5, 0.4, 0.1, 0.7])
    (provenance,) = origin.tables
    assert [row.cells[2] for row in provenance.rows] == ["d" * 64] * 3


def test_oracles_and_other_points_do_not_compete() -> None:
    results = [
        make_result("a", 0.5),
        make_result("b", 0.7, uses_truth=True),
        make_result("c", 0.6, points_digest="e" * 64),
        make_result("d", 0.4),
    ]
    (table,) = pck_section(results).sections[0].tables
    groups = [row.group for row in table.rows]
    assert [row.cells[0] for row in table.rows] == ["a", "d", "b (oracle)", "c"]
    assert groups[0] == groups[1] and len(set(groups)) == 3
    assert "oracle" in groups[2] and "other points" in groups[3]


def test_texts_name_the_facts_of_a_protocol() -> None:
    coded, described = protocol_text(AS_CODED), protocol_text(AS_DESCRIBED)
    assert "within 3 px" in coded and "nothing else" in coded and "toward zero" in coded
    assert "within 5 px" in described and "grid of 4 px" in described and "2.8 px off" in described
    assert "cut" not in described
    uniform = protocol_text(replace(AS_DESCRIBED, points_from="uniform", longer_side=None))
    assert "all pixels" in uniform and "original size" in uniform


def test_curves_have_a_panel_for_each_split_and_name_what_they_show() -> None:
    section = pck_section([make_result("a", 0.5), make_result("b <i>", 0.6)])
    (figure,) = section.sections[0].figures
    texts = [
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(figure.data).iter()
        if "}text" in node.tag
    ]
    for expected in ("all", "illumination", "viewpoint", "share of correct keypoints", "a", "b <i>"):
        assert expected in texts
    assert "mean matching accuracy" not in texts
    assert "b <i> 0.600" in figure.alt


def test_a_single_sequence_and_a_missing_split_leave_dashes() -> None:
    result = make_result("a", 0.5)
    only = replace(result, pairs=result.pairs[:5])
    (table,) = pck_section([only]).sections[0].tables
    value = cell_of(table, 0, "all", "threshold")
    assert isinstance(value, Cell) and value.low is None and value.high is None
    assert cell_of(table, 0, "viewpoint") is None
    assert "1 sequence, 5 pairs" in table.rows[0].group


def test_the_section_is_part_of_a_page() -> None:
    section = pck_section([make_result("<script>", 0.5), make_result("b", 0.4)])
    page = render_page(Report(title="t", sections=[section]))
    assert "&lt;script&gt;" in page and "Protocol as-coded" in page
    again = render_page(
        Report(title="t", sections=[pck_section([make_result("<script>", 0.5), make_result("b", 0.4)])])
    )
    assert page == again
    assert not pck_section([]).sections
