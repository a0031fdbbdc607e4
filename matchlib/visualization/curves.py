"""Curves as SVG text: accuracy over thresholds, and training figures over steps.

Matplotlib is used through its object interface (no pyplot, so no figure is remembered anywhere). Equal input
gives equal bytes: identifiers are hashed with a fixed salt, and there is no date. Text stays text, with the
font and the colours of the page (`currentColor`, `var(--grid)`), so curves can be read on light and dark;
opened on their own the files are black on transparent.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from matchlib.errors import ShapeError, check_shape
from matchlib.training.history import HistoryRow

Float64 = npt.NDArray[np.float64]

# Colours of Okabe & Ito (2008) without the yellow, too pale for a line on white, and with grey for black,
# which is lost on a dark page. The eighth curve starts again with another marker.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Matplotlib wants real colours; these two are looked up in its output and replaced by what the page says.
_INK, _GRID = "#010203", "#c1c2c3"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "matchlib",
    "text.parse_math": False,  # a "$" in a label is a dollar sign
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One method's accuracy over thresholds.

    label:         name in the legend
    thresholds_px: (T,) increasing
    accuracy:      (T,) shares, 0 to 1
    low, high:     (T,) borders of the interval drawn as a band, or None for none
    published:     somebody else's numbers: drawn dashed
    Raises ShapeError.
    """

    label: str
    thresholds_px: Float64
    accuracy: Float64
    low: Float64 | None = None
    high: Float64 | None = None
    published: bool = False

    def __post_init__(self) -> None:
        count = str(check_shape("thresholds_px", self.thresholds_px, "T")["T"])
        check_shape("accuracy", self.accuracy, count)
        if (self.low is None) != (self.high is None):
            raise ShapeError(f"curve '{self.label}': expected both borders of the interval or none, got one")
        if self.low is not None and self.high is not None:
            check_shape("low", self.low, count)
            check_shape("high", self.high, count)


def accuracy_figure(panels: Mapping[str, Sequence[Curve]], *, name: str = "mean matching accuracy") -> str:
    """Accuracy over thresholds as SVG, one panel for each title, one legend for all; `name` says what it is.

    A label has the same colour in all panels. Panels without curves are drawn empty. Raises ShapeError
    if there is no panel.
    """
    if not panels:
        raise ShapeError("accuracy_figure: expected at least one panel, got none")
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    legend_rows = math.ceil(len(labels) / 3)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(panels) + 0.4, 3.4 + 0.24 * legend_rows), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        lines: dict[str, Any] = {}
        for ax, (title, curves) in zip(axes, panels.items(), strict=True):
            for curve in curves:
                lines.setdefault(curve.label, _draw_curve(ax, curve, labels.index(curve.label)))
            ax.set(title=title, xlabel="threshold (px)", ylim=(0.0, 1.0))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel(name)
        if lines:
            figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(3, len(lines)))
        return to_svg(figure)


def training_figure(rows: Iterable[HistoryRow], *, max_panels: int = 6) -> str | None:
    """Training and validation figures over steps as SVG, one panel for each name.

    Names with validation values come first, then the others, each by name; `max_panels` are drawn. Values
    that are not finite leave a gap in the curve. None if there is no value at all.
    """
    series = _series(rows)
    validated = {name for name, split in series if split == "validation"}
    names = sorted({name for name, _ in series}, key=lambda name: (name not in validated, name))[:max_panels]
    if not names:
        return None
    columns = min(3, len(names))
    row_count = math.ceil(len(names) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns + 0.4, 2.5 * row_count + 0.3), layout="constrained")
        grid = figure.subplots(row_count, columns, squeeze=False).ravel()
        for ax, name in zip(grid, names, strict=False):
            _draw_training_panel(ax, name, series)
        for ax in grid[len(names) :]:
            ax.set_axis_off()
        return to_svg(figure)


# ---------------------------------------------------------------- panels
def _draw_curve(ax: Axes, curve: Curve, place: int) -> Any:
    colour, marker = (
        COLOURS[place % len(COLOURS)],
        MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
    )
    if curve.low is not None and curve.high is not None:
        ax.fill_between(curve.thresholds_px, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    (line,) = ax.plot(
        curve.thresholds_px,
        curve.accuracy,
        color=colour,
        marker=marker,
        markersize=3.5,
        linewidth=1.4 if curve.published else 2.0,
        linestyle=(0, (4, 2)) if curve.published else "-",
    )
    return line


def _draw_training_panel(
    ax: Axes, name: str, series: Mapping[tuple[str, str], tuple[Float64, Float64]]
) -> None:
    if (name, "train") in series:
        steps, values = series[name, "train"]
        ax.plot(steps, values, color=COLOURS[0], linewidth=0.8, alpha=0.4 if len(values) > 20 else 1.0)
        if len(values) > 20:
            ax.plot(steps, _smooth(values), color=COLOURS[0], linewidth=1.8)
        ax.plot([], [], color=COLOURS[0], linewidth=1.8, label="training")
    if (name, "validation") in series:
        steps, values = series[name, "validation"]
        ax.plot(
            steps, values, color=COLOURS[1], marker="o", markersize=3.5, linewidth=1.8, label="validation"
        )
    ax.set(title=name, xlabel="step")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.legend(fontsize=8.5)


def _smooth(values: Float64) -> Float64:
    """Running mean over a tenth of the curve, ignoring nan; shorter windows at both ends."""
    half = max(1, len(values) // 20)
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    weight = count[last] - count[first]
    return np.where(weight > 0, (total[last] - total[first]) / np.maximum(weight, 1), np.nan)


def _series(rows: Iterable[HistoryRow]) -> dict[tuple[str, str], tuple[Float64, Float64]]:
    """(name, split) -> steps and values, without names that never have a finite value."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.values.items():
            points.setdefault((name, row.split), []).append(
                (row.step, value if math.isfinite(value) else math.nan)
            )
    arrays = {key: np.array(pairs, dtype=np.float64) for key, pairs in points.items()}
    return {
        key: (array[:, 0], array[:, 1]) for key, array in arrays.items() if np.isfinite(array[:, 1]).any()
    }


# ---------------------------------------------------------------- output
def to_svg(figure: Figure) -> str:
    """A figure drawn in STYLE as the text of an SVG file."""
    stream = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=metadata)
    svg = stream.getvalue()
    # A style element would reach beyond the drawing inside a page: its two rules move to the root.
    svg = '<svg stroke-linejoin="round" stroke-linecap="butt"' + svg[svg.index("<svg") + len("<svg") :]
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    return svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid, #c1c2c3)")
