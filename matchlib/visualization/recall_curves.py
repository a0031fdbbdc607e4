"""Recall over error thresholds, and histograms of errors, as SVG in the style of `curves`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from matchlib.errors import ShapeError, check_shape
from matchlib.visualization.curves import COLOURS, STYLE, to_svg

Float64 = npt.NDArray[np.float64]
BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorSample:
    """Errors of one method: (N,), 0 or more, inf for a failure. Raises ShapeError, for nan and negative errors too."""

    label: str
    errors: Float64

    def __post_init__(self) -> None:
        check_shape(f"{self.label}: errors", self.errors, "N")
        if np.isnan(self.errors).any() or (self.errors < 0).any():
            raise ShapeError(
                f"{self.label}: errors: expected 0 or more, inf for failures, got nan or a negative one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPanel:
    """One panel: samples on an axis from 0 to `limit`, named with its unit; marks are drawn as upright lines."""

    title: str
    axis: str
    limit: float
    samples: Sequence[ErrorSample]
    marks: Sequence[float] = ()


def recall_figure(panels: Sequence[ErrorPanel], *, name: str = "recall") -> str:
    """Share of the errors up to each threshold, exact steps, as SVG; one panel beside the other, one legend.

    A label has the same colour in all panels. A sample without errors is left out. Raises ShapeError without panels.
    """
    return _panels(panels, name, _draw_recall)


def histogram_figure(panels: Sequence[ErrorPanel], *, name: str = "share") -> str:
    """Shares of the errors in 20 equal bins up to the limit as SVG; a last bin, set apart, holds what is above.

    Otherwise as `recall_figure`.
    """
    return _panels(panels, name, _draw_histogram)


def recall_steps(errors: Float64, limit: float) -> tuple[Float64, Float64]:
    """Corners of the curve of recall: thresholds from 0 to `limit`, and the share of errors <= each of them."""
    inside = np.sort(errors[errors <= limit])
    thresholds, last = (
        np.unique(inside, return_index=False),
        np.unique(inside, return_counts=True)[1].cumsum(),
    )
    shares = last / max(1, len(errors))
    at = np.concatenate([[0.0], thresholds, [limit]])
    height = np.concatenate([[0.0], shares, [shares[-1] if len(shares) else 0.0]])
    return at, height


def histogram_shares(errors: Float64, limit: float, bins: int = BINS) -> Float64:
    """(bins + 1,) shares of the errors: equal bins over [0, limit], then those above; sums to 1."""
    inside, _ = np.histogram(errors[errors <= limit], bins=bins, range=(0.0, limit))
    shares: Float64 = np.append(inside, (errors > limit).sum()) / max(1, len(errors))
    return shares


# ---------------------------------------------------------------- drawing
def _panels(panels: Sequence[ErrorPanel], name: str, draw: Any) -> str:
    if not panels:
        raise ShapeError("expected at least one panel, got none")
    labels = list(dict.fromkeys(sample.label for panel in panels for sample in panel.samples))
    legend_rows = math.ceil(len(labels) / 3)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(3.6 * columns + 0.4, 3.1 * rows + 0.3 + 0.24 * legend_rows), layout="constrained"
        )
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        lines: dict[str, Any] = {}
        for ax, panel in zip(grid, panels, strict=False):
            for mark in panel.marks:
                ax.axvline(mark, color=STYLE["grid.color"], linewidth=1.2, linestyle=(0, (2, 2)))
            for sample in panel.samples:
                if len(sample.errors):
                    line = draw(ax, sample, panel.limit, COLOURS[labels.index(sample.label) % len(COLOURS)])
                    lines.setdefault(sample.label, line)
            ax.set(title=panel.title, xlabel=panel.axis)
            ax.set_ylim(bottom=0.0)
        for ax in grid[::columns]:
            ax.set_ylabel(name)
        for ax in grid[len(panels) :]:
            ax.set_axis_off()
        if lines:
            figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(3, len(lines)))
        return to_svg(figure)


def _draw_recall(ax: Axes, sample: ErrorSample, limit: float, colour: str) -> Any:
    at, height = recall_steps(sample.errors, limit)
    (line,) = ax.plot(at, height, color=colour, linewidth=2.0, drawstyle="steps-post")
    ax.set(xlim=(0.0, limit), ylim=(0.0, 1.0))
    return line


def _draw_histogram(ax: Axes, sample: ErrorSample, limit: float, colour: str) -> Any:
    shares = histogram_shares(sample.errors, limit)
    width = limit / BINS
    line = ax.stairs(shares[:-1], np.linspace(0.0, limit, BINS + 1), color=colour, linewidth=1.8)
    ax.stairs(shares[-1:], limit + width * np.array([1.5, 4.5]), color=colour, linewidth=1.8)
    ticks = np.linspace(0.0, limit, 5)
    ax.set_xticks([*ticks, limit + 3 * width], [*(f"{tick:g}" for tick in ticks), f">{limit:g}"])
    return line
