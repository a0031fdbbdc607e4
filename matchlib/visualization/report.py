"""The report page: what may stand in it, and its writing as one HTML file that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matchlib.completion import atomic_write
from matchlib.errors import DataError, ShapeError
from matchlib.visualization.markup import Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table.

    name:     header
    group:    header above it, shared by neighbours of the same group
    help:     what the numbers are, shown when the pointer rests on the header
    decimals: of numbers
    best:     whether the highest or the lowest number of each row group is marked; None marks nothing
    code:     text in a fixed-width font that may break anywhere (digests, paths)
    """

    name: str
    group: str = ""
    help: str = ""
    decimals: int = 3
    best: Literal["highest", "lowest"] | None = None
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A number with its interval. A value that is not finite is shown as a dash and sorted last."""

    value: float
    low: float | None = None
    high: float | None = None


CellValue = str | float | int | Cell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. Rows of one group can be compared: sorting and the mark of the best stay inside a group."""

    cells: Sequence[CellValue]
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; the first column names the rows. Raises ShapeError for a row that does not fit the header."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str
    sortable: bool = True

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row.cells) != len(self.columns):
                raise ShapeError(
                    f"table '{self.caption}', row {number}: expected {len(self.columns)} cells, "
                    f"got {len(row.cells)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture.

    kind:    "svg" for drawings, whose text takes the colours of the page; "png" or "jpeg" for photographs; "model" for
             what `model_view` makes
    data:    the file: text for svg, markup for model, bytes for the others
    caption: shown below
    alt:     what a reader who does not see the picture should know
    Raises DataError if the data is not of that kind, or is a drawing with scripts or links to elsewhere.
    """

    kind: Literal["svg", "png", "jpeg", "model"]
    data: str | bytes
    caption: str
    alt: str

    def __post_init__(self) -> None:
        where = f"figure '{self.caption}'"
        if (self.kind == "model") != isinstance(self.data, Markup):
            raise DataError(f"{where}: expected markup for kind model and for no other, got {self.kind}")
        if self.kind == "model":
            return
        if self.kind == "svg":
            if not isinstance(self.data, str) or not self.data.startswith("<svg"):
                raise DataError(f'{where}: expected text that begins with "<svg", got {self.data[:20]!r}')
            _check_drawing(where, self.data)
        else:
            magic = b"\x89PNG" if self.kind == "png" else b"\xff\xd8\xff"
            if not isinstance(self.data, bytes) or not self.data.startswith(magic):
                raise DataError(f"{where}: expected the bytes of a {self.kind} file, got {self.data[:8]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page: paragraphs, then tables, figures and smaller sections."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One number for the top of the page, e.g. "0.763", "MMA@3 px", "aslfeat, 108 sequences"."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole page."""

    title: str
    summary: str = ""
    headlines: Sequence[Headline] = ()
    sections: Sequence[Section] = ()


def write_report(out: Path, report: Report) -> None:
    """Write the report as one HTML file, atomically. Equal reports give equal bytes."""
    from matchlib.visualization.page import render_page

    atomic_write(out, render_page(report))


def number_of(value: CellValue) -> float | None:
    """The number in a cell, or None for text, for an empty cell and for what is not finite."""
    number = value.value if isinstance(value, Cell) else value
    if isinstance(number, str) or number is None or not math.isfinite(number):
        return None
    return float(number)


def _check_drawing(where: str, svg: str) -> None:
    """Refuse drawings that would do anything but draw: the page promises to need nothing from outside."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise DataError(f"{where}: expected a well-formed SVG drawing, got {error}") from error
    for node in root.iter():
        tag = str(node.tag).rpartition("}")[2].lower()
        if tag in ("script", "foreignobject", "style", "iframe"):
            raise DataError(f"{where}: expected only shapes and text, got an element <{tag}>")
        for name, value in node.attrib.items():
            name = name.rpartition("}")[2].lower()
            if name.startswith("on") or (name in ("href", "src") and not value.startswith("#")):
                raise DataError(f"{where}: expected no scripts and no links, got {name}={value[:60]!r}")
