from __future__ import annotations

import html.parser
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchlib.errors import DataError, ShapeError
from matchlib.visualization.curves import Curve, accuracy_figure
from matchlib.visualization.draw import encode_png
from matchlib.visualization.page import Markup, element, render_page
from matchlib.visualization.report import (
    Cell,
    Column,
    Figure,
    Headline,
    Report,
    Row,
    Section,
    Table,
    write_report,
)

HOSTILE = "<script>alert('1')</script>\"&<b onload=x>"


class Page(html.parser.HTMLParser):
    """Every element with its attributes, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements are closed in order"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def drawing(label: str = "a") -> str:
    pixels = np.arange(1.0, 4.0)
    return accuracy_figure({"all": [Curve(label=label, thresholds_px=pixels, accuracy=pixels / 4)]})


def scores(*values: float | Cell | None, best="highest") -> Table:
    columns = [Column(name="method"), Column(name="score", best=best)]
    return Table(
        columns=columns, rows=[Row(cells=[f"m{i}", v]) for i, v in enumerate(values)], caption="Scores"
    )


def page_of(*sections: Section, **more) -> Page:
    return Page(render_page(Report(title="T", sections=sections, **more)))


def hostile_report() -> Report:
    picture = encode_png(np.zeros((4, 4, 3), dtype=np.uint8))
    return Report(
        title=HOSTILE,
        summary=HOSTILE,
        headlines=[Headline(value=HOSTILE, name=HOSTILE, note=HOSTILE)],
        sections=[
            Section(
                title=HOSTILE,
                text=[HOSTILE],
                tables=[
                    Table(
                        columns=[
                            Column(name=HOSTILE, group=HOSTILE, help=HOSTILE),
                            Column(name="digest", code=True),
                        ],
                        rows=[Row(cells=[HOSTILE, HOSTILE], group=HOSTILE)],
                        caption=HOSTILE,
                    )
                ],
                figures=[
                    Figure(kind="svg", data=drawing(HOSTILE), caption=HOSTILE, alt=HOSTILE),
                    Figure(kind="png", data=picture, caption=HOSTILE, alt=HOSTILE),
                ],
                sections=[Section(title=HOSTILE)],
            )
        ],
    )


def test_hostile_text_stays_text_everywhere():
    page = Page(render_page(hostile_report()))
    assert len(page.named("script")) == 1, "only the page's own script"
    assert not page.named("b")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 10
    assert page.named("img")[0]["alt"] == HOSTILE


def test_the_page_refers_to_nothing_outside_itself():
    page = Page(render_page(hostile_report()))
    targets = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("src", "href", "xlink:href", "action", "data")
        if name in attributes
    ]
    assert targets and all(target.startswith(("#", "data:image/")) for target in targets)
    assert not page.named("link") and not page.named("iframe")
    assert "url(http" not in render_page(hostile_report()) and "@import" not in render_page(hostile_report())


def test_the_policy_allows_this_script_and_no_other():
    import base64
    import hashlib
    import re

    text = render_page(Report(title="T"))
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(
        attributes["content"]
        for attributes in Page(text).named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_every_link_inside_the_page_has_a_target_and_names_are_unique():
    figures = [Figure(kind="svg", data=drawing(), caption="c", alt="a") for _ in range(2)]
    picture = encode_png(np.zeros((4, 4, 3), dtype=np.uint8))
    figures.append(Figure(kind="png", data=picture, caption="c", alt="a"))
    page = page_of(Section(title="A", figures=figures), Section(title="B"))
    names = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(names) == len(set(names))
    links = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("href", "xlink:href") and value.startswith("#")
    ]
    assert len(links) > 5 and {link[1:] for link in links} <= set(names)


def test_equal_reports_give_equal_bytes(tmp_path: Path):
    write_report(tmp_path / "a.html", hostile_report())
    write_report(tmp_path / "b.html", hostile_report())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.html", "b.html"], (
        "no temporary file is left"
    )


def test_numbers_carry_their_full_value_for_sorting():
    page = page_of(Section(title="S", tables=[scores(0.12345678, Cell(value=2.0, low=1.5, high=2.5), None)]))
    values = [attributes["data-value"] for attributes in page.named("td") if "data-value" in attributes]
    assert values == ["0.12345678", "2.0", ""]
    assert "0.123" in page.text and "1.500–2.500" in page.text and "–" in page.text
    assert [attributes.get("data-column") for attributes in page.named("th")][:2] == ["0", "1"]
    assert "data-sortable" in page.named("table")[0]


def best_cells(table: Table) -> list[str]:
    page = page_of(Section(title="S", tables=[table]))
    return [
        attributes["data-value"]
        for attributes in page.named("td")
        if "best" in (attributes.get("class") or "")
    ]


def test_the_best_of_each_group_is_marked():
    assert best_cells(scores(0.2, 0.9, 0.5)) == ["0.9"]
    assert best_cells(scores(0.2, 0.9, 0.5, best="lowest")) == ["0.2"]
    assert best_cells(scores(0.2, 0.9, best=None)) == []
    assert best_cells(scores(0.9)) == [], "one row alone is not better than anything"
    assert best_cells(scores(math.nan, None, 0.4)) == []
    assert best_cells(scores(0.12341, 0.1234, 0.1)) == ["0.12341", "0.1234"], "equal as printed, so both"
    grouped = Table(
        columns=[Column(name="m"), Column(name="s", best="highest")],
        rows=[Row(cells=["a", v], group=g) for v, g in ((0.1, "x"), (0.2, "x"), (0.8, "y"), (0.7, "y"))],
        caption="c",
    )
    assert best_cells(grouped) == ["0.2", "0.8"]


def test_infinite_values_and_intervals_without_ends_are_dashes():
    page = page_of(
        Section(title="S", tables=[scores(math.inf, Cell(value=0.5, low=math.nan, high=math.nan))])
    )
    assert not any("nan" in text or "inf" in text for text in page.text)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ShapeError, match="'c', row 0: expected 1 cells, got 2"):
        Table(columns=[Column(name="a")], rows=[Row(cells=["x", 1])], caption="c")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("png", b"\xff\xd8\xff"),
        ("jpeg", b"\x89PNG"),
        ("png", "<svg></svg>"),
        ("svg", b"<svg></svg>"),
        ("svg", "<svg><g></svg>"),
        ("svg", "<p></p>"),
        ("svg", "<svg><script>1</script></svg>"),
        ("svg", "<svg><style>@import 'x'</style></svg>"),
        ("svg", '<svg onload="x"></svg>'),
        ("svg", '<svg><a href="http://example.org"><path/></a></svg>'),
        (
            "svg",
            '<svg xmlns:l="http://www.w3.org/1999/xlink"><image l:href="data:image/png;base64,x"/></svg>',
        ),
    ],
)
def test_figures_that_are_not_what_they_say_are_refused(kind, data):
    with pytest.raises(DataError, match="figure 'c'"):
        Figure(kind=kind, data=data, caption="c", alt="a")


def test_drawings_are_named_for_readers_who_do_not_see_them():
    page = page_of(Section(title="S", figures=[Figure(kind="svg", data=drawing(), caption="c", alt="rises")]))
    svg = page.named("svg")[0]
    assert svg["role"] == "img" and svg["aria-label"] == "rises"


@given(st.text())
def test_what_element_is_given_comes_back_when_parsed(text: str):
    # The HTML parser, as browsers do, reads a carriage return as it stands but drops NUL.
    page = Page(element("p", text, title=text))
    assert "".join(page.text) == text
    assert page.named("p")[0]["title"] == text


def test_markup_is_not_escaped_again():
    assert element("p", Markup("<b>x</b>"), hidden=True, id=None) == "<p hidden><b>x</b></p>"
