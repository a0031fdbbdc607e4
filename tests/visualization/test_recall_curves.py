from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.visualization.recall_curves import (
    BINS,
    ErrorPanel,
    ErrorSample,
    histogram_figure,
    histogram_shares,
    recall_figure,
    recall_steps,
)
from matchlib.visualization.report import Figure

errors_of_pairs = st.lists(st.floats(0, 50) | st.just(float("inf")), max_size=30).map(np.array)


@given(errors_of_pairs, st.floats(0.1, 30))
def test_the_steps_are_the_recall_at_every_threshold(errors, limit):
    at, height = recall_steps(errors, limit)
    assert at[0] == 0 and at[-1] == limit and (np.diff(at) >= 0).all() and (np.diff(height) >= 0).all()
    for threshold in [*at, limit / 3]:
        drawn = height[np.searchsorted(at, threshold, side="right") - 1]
        expected = np.mean(errors <= threshold) if len(errors) else 0.0
        assert drawn == pytest.approx(expected)


@given(errors_of_pairs.filter(len), st.floats(0.1, 30))
def test_a_histogram_counts_every_error_once(errors, limit):
    shares = histogram_shares(errors, limit)
    assert len(shares) == BINS + 1 and shares.sum() == pytest.approx(1)
    assert shares[-1] == pytest.approx(np.mean(errors > limit))


def panel(*samples: tuple[str, list[float]], title: str = "all", limit: float = 20.0) -> ErrorPanel:
    return ErrorPanel(
        title=title,
        axis="error (degrees)",
        limit=limit,
        samples=[ErrorSample(label=label, errors=np.array(errors)) for label, errors in samples],
        marks=[5.0],
    )


@pytest.mark.parametrize("draw", [recall_figure, histogram_figure])
def test_figures_are_drawings_that_a_page_accepts_and_name_everything(draw):
    panels = [
        panel(("a $x$ & <b>", [1, 2, np.inf]), ("none", []), title="first set"),
        panel(("c", [3.0]), title="second set"),
        panel(title="no samples"),
        panel(("c", [np.inf]), title="fourth"),
    ]
    svg = draw(panels, name="share of pairs")
    Figure(kind="svg", data=svg, caption="c", alt="a")
    texts = [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if "}text" in node.tag
    ]
    for expected in (
        "a $x$ & <b>",
        "c",
        "first set",
        "second set",
        "no samples",
        "error (degrees)",
        "share of pairs",
    ):
        assert expected in texts
    assert "none" not in texts
    assert svg == draw(panels, name="share of pairs")


def test_what_is_no_error_is_refused():
    for bad in ([np.nan], [-1.0]):
        with pytest.raises(ShapeError, match="0 or more"):
            ErrorSample(label="a", errors=np.array(bad))
    with pytest.raises(ShapeError, match="a: errors"):
        ErrorSample(label="a", errors=np.zeros((2, 2)))
    with pytest.raises(ShapeError, match="at least one panel"):
        recall_figure([])
