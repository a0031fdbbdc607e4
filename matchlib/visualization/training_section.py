"""Finished training stages as parts of the report: what the validation figures became, curves, pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matchlib.completion import require_complete
from matchlib.training.history import HistoryRow, read_history
from matchlib.visualization.curves import training_figure
from matchlib.visualization.draw import decode_image, encode_jpeg, fit_into
from matchlib.visualization.report import Column, Figure, Row, Section, Table

HISTORY = "history.jsonl"
PICTURES = "pictures"
_MAX_SIDE_PX = 1000
_PNG_BYTES = 200_000  # larger pictures are photographs and go into the page as JPEG


def training_section(folders: Sequence[Path]) -> Section:
    """All stages, in the order given: one table, then curves and pictures of each stage.

    A folder holds `history.jsonl`, may hold `pictures/*.png` (of the last validation), and is finished.
    Raises DataError naming the file otherwise.
    """
    names = stage_names(folders)
    histories = [read_history(folder / HISTORY) for folder in folders]
    rows = [
        row for name, history in zip(names, histories, strict=True) for row in _progress_rows(name, history)
    ]
    stages = [
        _stage(name, folder, history) for name, folder, history in zip(names, folders, histories, strict=True)
    ]
    return Section(
        title="Training",
        tables=[_progress_table(rows)] if rows else [],
        sections=stages,
        text=_introduction(rows),
    )


def stage_names(folders: Sequence[Path]) -> list[str]:
    """The last two parts of each path, or as many more as it takes to tell them apart."""
    longest = max((len(folder.parts) for folder in folders), default=0)
    for count in range(2, longest + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            return names
    return [folder.as_posix() for folder in folders]


def weights_table(folders: Sequence[Path]) -> Table:
    """Digests of the weights of each stage, from its completion marker. Raises DataError if unfinished."""
    rows = []
    for name, folder in zip(stage_names(folders), folders, strict=True):
        marker = require_complete(folder, hint="run the training stage again")
        weights = sorted(file for file in marker.files if file.endswith(".safetensors"))
        rows += [Row(cells=[name, file, marker.files[file]]) for file in weights]
    return Table(
        columns=[Column(name="stage"), Column(name="file"), Column(name="sha256", code=True)],
        rows=rows,
        caption="Weights",
        sortable=False,
    )


def _introduction(rows: Sequence[Row]) -> tuple[str, ...]:
    if not rows:
        return ()
    return (
        "Validation figures at the first and at the last validation of each stage. Of the weights seen at "
        "the validations, the stage keeps the best.",
    )


def _progress_rows(name: str, history: Sequence[HistoryRow]) -> list[Row]:
    validations = [row for row in history if row.split == "validation"]
    figures = sorted({figure for row in validations for figure in row.values})
    rows = []
    for figure in figures:
        points = [(row.step, row.values[figure]) for row in validations if figure in row.values]
        (first_step, first), (last_step, last) = points[0], points[-1]
        values = [value for _, value in points]
        rows.append(Row(cells=[name, figure, first_step, first, last_step, last, min(values), max(values)]))
    return rows


def _progress_table(rows: Sequence[Row]) -> Table:
    columns = [
        Column(name="stage"),
        Column(name="figure"),
        Column(name="step", group="first validation", decimals=0),
        Column(name="value", group="first validation"),
        Column(name="step", group="last validation", decimals=0),
        Column(name="value", group="last validation"),
        Column(name="lowest", group="of all validations"),
        Column(name="highest", group="of all validations"),
    ]
    return Table(columns=columns, rows=rows, caption="Validation figures by stage.")


def _stage(name: str, folder: Path, history: Sequence[HistoryRow]) -> Section:
    steps = max((row.step for row in history), default=0)
    drawing = training_figure(history)
    figures = []
    if drawing is not None:
        alt = f"Training and validation figures of {name} over {steps} steps. {_last_values(history)}"
        figures.append(
            Figure(kind="svg", data=drawing, caption=f"{name}: figures over {steps} steps.", alt=alt)
        )
    figures += [_picture(name, path) for path in sorted((folder / PICTURES).glob("*.png"))]
    return Section(title=name, figures=figures, text=() if history else ("No step was logged.",))


def _last_values(history: Sequence[HistoryRow]) -> str:
    last = next((row for row in reversed(history) if row.split == "validation"), None)
    if last is None:
        return "There was no validation."
    values = ", ".join(f"{figure} {value:.3g}" for figure, value in sorted(last.values.items()))
    return f"At the last validation: {values}."


def _picture(name: str, path: Path) -> Figure:
    what = path.stem.replace("_", " ").replace("-", " ")
    content = path.read_bytes()
    image = decode_image(content, where=os.fspath(path))
    caption, alt = what, f"{what} of {name} on a validation pair, at the last validation."
    small = fit_into(image, _MAX_SIDE_PX)
    if len(content) <= _PNG_BYTES and small is image and content.startswith(b"\x89PNG"):
        return Figure(kind="png", data=content, caption=caption, alt=alt)
    return Figure(kind="jpeg", data=encode_jpeg(small), caption=caption, alt=alt)
