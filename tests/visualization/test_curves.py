from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from matchlib.errors import ShapeError
from matchlib.training.history import HistoryRow
from matchlib.visualization.curves import (
    Curve,
    accuracy_figure,
    training_figure,
)

PIXELS = np.arange(1.0, 11.0)


def curve(label: str, level: float = 0.5, **more) -> Curve:
    return Curve(label=label, thresholds_px=PIXELS, accuracy=np.full(10, level), **more)


def texts(svg: str) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if "}text" in node.tag
    ]


def test_equal_curves_give_equal_bytes():
    draw = [accuracy_figure({"all": [curve("a"), curve("b", 0.7, published=True)]}) for _ in range(2)]
    assert draw[0] == draw[1]


def test_settings_of_matplotlib_are_left_as_they_were():
    before = dict(matplotlib.rcParams)
    accuracy_figure({"all": [curve("a")]})
    assert dict(matplotlib.rcParams) == before


def test_labels_are_text_and_nothing_else():
    label = '<script>alert("1")</script> $x_1$ & more'
    svg = accuracy_figure({"all": [curve(label)]})
    assert "<script" not in svg
    assert label in texts(svg)


def test_published_curves_are_dashed_and_ours_are_solid():
    assert "stroke-dasharray" not in accuracy_figure({"all": [curve("ours")]})
    assert "stroke-dasharray" in accuracy_figure({"all": [curve("theirs", published=True)]})


def test_a_method_has_one_colour_in_all_panels_and_one_entry_in_the_legend():
    panels = {"illumination": [curve("a"), curve("b")], "viewpoint": [curve("b")]}
    svg = accuracy_figure(panels)
    assert texts(svg).count("b") == 1
    colours = re.findall(r"stroke: (#d55e00)", svg)
    assert len(colours) >= 3, "second colour: one line in each panel and one in the legend"


def test_a_band_reaches_from_low_to_high():
    """The band is as high as the distance between the labels 0.2 and 0.8 of the axis."""
    svg = accuracy_figure({"all": [curve("a", 0.5, low=np.full(10, 0.2), high=np.full(10, 0.8))]})
    nodes = list(ElementTree.fromstring(svg).iter())
    label_y = {
        "".join(node.itertext()).strip(): node.get("y") for node in nodes if node.tag.endswith("}text")
    }
    band = next(node for node in nodes if "fill-opacity: 0.15" in (node.get("style") or ""))
    name = band.get("{http://www.w3.org/1999/xlink}href").removeprefix("#")
    path = next(node for node in nodes if node.get("id") == name)
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path.get("d"))]
    expected = float(label_y["0.2"]) - float(label_y["0.8"])
    assert max(heights) - min(heights) == pytest.approx(expected, abs=0.01)


def test_colours_of_text_and_grid_are_left_to_the_page():
    svg = accuracy_figure({"all": [curve("a")]})
    assert "currentColor" in svg and "var(--grid" in svg
    assert "#ffffff" not in svg and "#000000" not in svg


def test_no_panel_is_refused_and_an_empty_panel_is_drawn():
    with pytest.raises(ShapeError, match="at least one panel"):
        accuracy_figure({})
    assert "viewpoint" in texts(accuracy_figure({"all": [curve("a")], "viewpoint": []}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"accuracy": np.zeros(9)},
        {"accuracy": np.zeros(10), "low": np.zeros(10)},
        {"accuracy": np.zeros(10), "low": np.zeros(3), "high": np.zeros(10)},
    ],
)
def test_curves_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ShapeError):
        Curve(label="a", thresholds_px=PIXELS, **wrong)


def rows(name: str, split: str, values: list[float]) -> list[HistoryRow]:
    return [HistoryRow(step=step, split=split, values={name: value}) for step, value in enumerate(values)]


def test_training_figures_have_a_panel_for_each_name_validated_ones_first():
    history = rows("a_loss", "train", [3.0, 2.0]) + rows("z_accuracy", "validation", [0.1, 0.4])
    svg = training_figure(history)
    titles = [text for text in texts(svg) if text in ("a_loss", "z_accuracy")]
    assert titles == ["z_accuracy", "a_loss"]
    assert training_figure(history) == svg


def test_values_that_are_not_finite_leave_a_gap():
    svg = training_figure(rows("loss", "validation", [1.0, 2.0, math.nan, 3.0, math.inf]))
    line = next(
        path
        for path in re.findall(r'<path d="([^"]*)"[^>]*stroke: #d55e00; stroke-width: 1.8', svg)
        if path.count("L") >= 1
    )
    assert (line.count("M"), line.count("L")) in {(1, 1), (2, 1)}, (
        "the third and fifth point are not connected"
    )


def test_nothing_logged_gives_no_figure():
    assert training_figure([]) is None
    assert training_figure(rows("loss", "train", [math.nan])) is None


def test_at_most_the_asked_number_of_panels_is_drawn():
    history = [HistoryRow(step=1, split="train", values={f"loss{i}": 1.0 for i in range(9)})]
    drawn = [text for text in texts(training_figure(history, max_panels=4)) if text.startswith("loss")]
    assert drawn == ["loss0", "loss1", "loss2", "loss3"]
