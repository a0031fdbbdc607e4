"""A report as HTML."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import groupby

from matchlib.visualization.markup import Markup, element
from matchlib.visualization.report import (
    Cell,
    CellValue,
    Column,
    Figure,
    Headline,
    Report,
    Row,
    Section,
    Table,
    number_of,
)


class _Numbers:
    """Gives out 1, 2, 3, … for names that must be unique in the page."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last += 1
        return self._last


def render_page(report: Report) -> str:
    """The whole HTML file."""
    names = ["page", *(["model_view"] if any(map(_has_model, report.sections)) else [])]
    style = "".join(_asset(f"{name}.css") for name in names)
    script = "".join(_asset(f"{name}.js") for name in names)
    number = _Numbers()
    ids = [f"section-{position}" for position in range(1, len(report.sections) + 1)]
    sections = [_section(section, 2, number, id_) for section, id_ in zip(report.sections, ids, strict=True)]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", report.title),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("a", "Skip to the content", class_="skip", href="#content"),
        _header(report),
        _contents(report.sections, ids),
        element("main", *sections, id="content"),
        element("script", Markup(script)),
    )
    return "<!doctype html>\n" + element("html", head, "\n", body, lang="en") + "\n"


def _policy(script: str) -> str:
    """Only this page's script runs and nothing is fetched, even if some label escaped the escaping."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _has_model(section: Section) -> bool:
    return any(figure.kind == "model" for figure in section.figures) or any(map(_has_model, section.sections))


def _asset(name: str) -> str:
    return resources.files("matchlib.visualization").joinpath(name).read_text(encoding="utf-8")


def _header(report: Report) -> Markup:
    summary = element("p", report.summary, class_="summary") if report.summary else ""
    tiles = [_headline(headline) for headline in report.headlines]
    return element(
        "header",
        element("h1", report.title),
        summary,
        element("dl", *tiles, class_="headlines") if tiles else "",
    )


def _headline(headline: Headline) -> Markup:
    note = element("dd", headline.note, class_="note") if headline.note else ""
    return element("div", element("dt", headline.name), element("dd", headline.value, class_="value"), note)


def _contents(sections: Sequence[Section], ids: Sequence[str]) -> Markup:
    links = [
        element("li", element("a", section.title, href=f"#{id_}"))
        for section, id_ in zip(sections, ids, strict=True)
    ]
    return element("nav", element("ol", *links), aria_label="Contents")


def _section(section: Section, level: int, number: Callable[[], int], id_: str | None = None) -> Markup:
    wide = [_figure(figure, number()) for figure in section.figures if figure.kind in ("svg", "model")]
    photographs = [_figure(figure, number()) for figure in section.figures if figure.kind in ("png", "jpeg")]
    return element(
        "section",
        element(f"h{min(level, 6)}", section.title),
        *(element("p", paragraph) for paragraph in section.text),
        *(_table(table) for table in section.tables),
        *wide,
        element("div", *photographs, class_="pictures") if photographs else "",
        *(_section(part, level + 1, number) for part in section.sections),
        id=id_,
    )


# ---------------------------------------------------------------- figures
def _figure(figure: Figure, number: int) -> Markup:
    if isinstance(figure.data, Markup):
        return element("figure", figure.data, element("figcaption", figure.caption), aria_label=figure.alt)
    if isinstance(figure.data, str):
        return element(
            "figure", _drawing(figure.data, figure.alt, number), element("figcaption", figure.caption)
        )
    source = f"data:image/{figure.kind};base64,{base64.b64encode(figure.data).decode()}"
    id_ = f"picture-{number}"
    return element(
        "figure",
        element(
            "a",
            element("img", src=source, alt=figure.alt, decoding="async"),
            href=f"#{id_}",
            class_="enlarge",
        ),
        element("figcaption", figure.caption),
        element("a", "Close", href=f"#{id_}-closed", class_="close"),
        element("span", id=f"{id_}-closed"),
        class_="picture",
        id=id_,
    )


def _drawing(svg: str, alt: str, number: int) -> Markup:
    """The SVG as a part of the page: named for screen readers, its identifiers made unique in the page."""
    prefix = f"d{number}-"
    svg = re.sub(r'(\sid=")', rf"\g<1>{prefix}", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    label = html.escape(alt, quote=True)
    svg = f'<svg role="img" aria-label="{label}" class="drawing"{svg.removeprefix("<svg")}'
    return element("div", Markup(svg), class_="scroll", tabindex="0", role="group", aria_label=alt)


# ---------------------------------------------------------------- tables
def _table(table: Table) -> Markup:
    groups = [(name, list(rows)) for name, rows in groupby(table.rows, key=lambda row: row.group)]
    bodies = [_table_body(name, rows, table.columns) for name, rows in groups]
    inner = element(
        "table",
        element("caption", element("span", table.caption)),
        element("thead", *_table_head(table)),
        *bodies,
        data_sortable=table.sortable,
    )
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=table.caption)


def _table_head(table: Table) -> list[Markup]:
    columns, rows = table.columns, []
    if any(column.group for column in columns):
        spans = [
            (name, len(list(members))) for name, members in groupby(columns, key=lambda column: column.group)
        ]
        cells = [
            element("th", name, colspan=str(span), scope="colgroup")
            if name
            else element("td", colspan=str(span))
            for name, span in spans
        ]
        rows.append(element("tr", *cells, class_="groups"))
    names = []
    for place, column in enumerate(columns):
        has_numbers = any(number_of(row.cells[place]) is not None for row in table.rows)
        names.append(
            element(
                "th",
                column.name,
                scope="col",
                class_="number" if has_numbers else None,
                data_column=str(place),
                title=column.help or None,
            )
        )
    rows.append(element("tr", *names))
    return rows


def _table_body(name: str, rows: Sequence[Row], columns: Sequence[Column]) -> Markup:
    best = [_best(column, [row.cells[place] for row in rows]) for place, column in enumerate(columns)]
    title = element("tr", element("th", name, colspan=str(len(columns)), scope="rowgroup"), class_="group")
    lines = [
        element(
            "tr", *(_cell(row.cells[i], columns[i], best[i], is_header=i == 0) for i in range(len(columns)))
        )
        for row in rows
    ]
    return element("tbody", title if name else "", *lines)


def _best(column: Column, cells: Sequence[CellValue]) -> float | None:
    """The number to mark; None where nothing is to be compared."""
    numbers = [round(number, column.decimals) for cell in cells if (number := number_of(cell)) is not None]
    if column.best is None or len(numbers) < 2:
        return None
    return max(numbers) if column.best == "highest" else min(numbers)


def _cell(cell: CellValue, column: Column, best: float | None, *, is_header: bool) -> Markup:
    if isinstance(cell, str):
        text = element("code", cell) if column.code else cell
        if is_header:
            return element("th", text, scope="row", data_value=cell)
        return element("td", text, data_value=cell)
    number = number_of(cell)
    if number is None:
        return element("td", "–", class_="number", data_value="")
    shown = f"{number:.{column.decimals}f}"
    is_best = best is not None and round(number, column.decimals) == best
    content: list[str] = [element("strong", shown, title="best of its group") if is_best else shown]
    if isinstance(cell, Cell) and _is_finite(cell.low) and _is_finite(cell.high):
        interval = f"{cell.low:.{column.decimals}f}–{cell.high:.{column.decimals}f}"
        content.append(element("span", interval, class_="interval"))
    return element("td", *content, class_="number best" if is_best else "number", data_value=repr(number))


def _is_finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)
