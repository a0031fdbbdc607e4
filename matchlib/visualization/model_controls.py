"""What stands beside the picture of a reconstruction: sliders, switches, the list of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matchlib.visualization.markup import Markup, element

CameraKind = Literal["mapped", "registered", "truth"]

KINDS: dict[CameraKind, str] = {
    "mapped": "images of the map",
    "registered": "registered queries",
    "truth": "true poses",
}
HINT = (
    "Drag to turn, Shift or two fingers to move. After a click the wheel zooms, arrows turn, + and - zoom, 0 goes "
    "back. Click a camera or a name to select it."
)


def controls(cameras: Sequence[tuple[str, CameraKind]], *, has_errors: bool) -> Markup:
    """What stands beside the canvas; `model_view.js` finds each part by its attribute `data-control` or `data-kind`.

    cameras: name and kind of each, in the order of the packed data
    """
    colour = element(
        "label",
        "Colour",
        element(
            "select",
            element("option", "of the images", value="image"),
            element("option", "reprojection error", value="error"),
            data_control="colour",
        ),
    )
    return element(
        "div",
        colour if has_errors else "",
        _range("Points", "size", low="1", high="6", step="1", value="2"),
        _range("Cameras", "frustum", low="0", high="4", step="0.1", value="1"),
        *(_kind_box(kind, cameras) for kind in KINDS),
        _image_list(cameras),
        element("output", data_control="status"),
        element("button", "Look through it", type="button", data_control="look", disabled=True),
        element("button", "Reset the view", type="button", data_control="reset"),
        element("small", HINT),
        class_="model-controls",
    )


def _range(text: str, control: str, *, low: str, high: str, step: str, value: str) -> Markup:
    slider = element("input", type="range", min=low, max=high, step=step, value=value, data_control=control)
    return element("label", text, slider)


def _kind_box(kind: CameraKind, cameras: Sequence[tuple[str, CameraKind]]) -> Markup:
    count = sum(other == kind for _, other in cameras)
    box = element("input", type="checkbox", checked=True, data_kind=kind)
    key = element("span", class_="model-key", data_key=kind)
    return element("label", box, key, f"{KINDS[kind]} ({count})") if count else Markup("")


def _image_list(cameras: Sequence[tuple[str, CameraKind]]) -> Markup:
    """All names by kind; the value of an option is the place among the cameras."""
    groups = []
    for kind, text in KINDS.items():
        options = [
            element("option", name, value=str(place))
            for place, (name, other) in enumerate(cameras)
            if other == kind
        ]
        groups.append(element("optgroup", *options, label=text) if options else "")
    return element("select", *groups, size="8", aria_label="Images", data_control="image")
