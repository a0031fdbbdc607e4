"""The view of a reconstruction: what is packed into the page, and what the page's script makes of it in a browser."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import DataError, ShapeError
from matchlib.visualization.markup import Markup
from matchlib.visualization.model_view import (
    ModelPicture,
    ViewCamera,
    model_figure,
    model_view,
    read_model_points,
)
from matchlib.visualization.page import render_page
from matchlib.visualization.report import Figure, Report, Section

K = np.array([[100.0, 0, 49.5], [0, 100.0, 29.5], [0, 0, 1]])
SIZE = (100, 60)
HOSTILE = "<script>alert(1)</script>\"'&"


def pose_at(centre: tuple[float, float, float]) -> np.ndarray:
    """Upright (world y is down), looking along the world's z."""
    T = np.eye(4)
    T[:3, 3] = -np.array(centre)
    return T


def camera(name: str, centre=(0.0, 0.0, -4.0), kind="mapped") -> ViewCamera:
    return ViewCamera(name=name, K=K, size=SIZE, T_world_to_cam=pose_at(centre), kind=kind)


def cloud(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, 3))
    return points, random.integers(0, 256, (count, 3), dtype=np.uint8)


def picture_of(points: np.ndarray, colours: np.ndarray, cameras: list[ViewCamera]) -> ModelPicture:
    return ModelPicture(title="Map", points=points, colours=colours, cameras=cameras)


class Elements(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.all: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("input", "meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def view(self) -> dict[str, str]:
        return next(attributes for _, attributes in self.all if attributes.get("class") == "model-view")


# ---------------------------------------------------------------- what is packed
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 50),
    log_scale=st.floats(-3, 5),
    offset=st.floats(-1e6, 1e6),
)
def test_points_come_back_to_half_a_step_wherever_the_world_lies(seed, count, log_scale, offset):
    points, colours = cloud(count, seed)
    points = points * 10**log_scale + offset
    attributes = Elements(model_view(points, colours, [], "t")).view()
    found, found_colours = read_model_points(attributes)
    step = float(attributes["data-step"]) * float(attributes["data-scale"])
    kept = len(found)
    if kept == count:
        np.testing.assert_allclose(found, points, rtol=0, atol=0.51 * step + 1e-9 * abs(offset))
        np.testing.assert_array_equal(found_colours, colours)
    spread = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    assert step <= 4e-4 * max(np.quantile(spread, 0.9), 1e-300) or spread.max() == 0


def test_more_points_are_thinned_evenly_and_the_caption_says_so():
    points, colours = cloud(1000)
    points[::100] *= 1e6
    figure = model_figure(picture_of(points, colours, [camera("a")]), max_points=100)
    assert figure.caption == "Map. 100 of 1000 points drawn, 10 left out that lie far from the others."
    found, found_colours = read_model_points(Elements(figure.data).view())
    assert len(found) == 100 == len(found_colours) and np.abs(found).max() < 10
    whole = model_figure(picture_of(points[1:99], colours[1:99], []))
    assert whole.caption == "Map. 98 points."


def test_twenty_thousand_points_stay_below_400_kilobytes():
    points, colours = cloud(50_000)
    text = model_view(
        points, colours, [camera(f"{i}.jpg") for i in range(200)], "t", errors_px=points[:, 0] ** 2
    )
    assert len(read_model_points(Elements(text).view())[0]) == 20_000
    assert len(text) < 400_000


def test_cameras_are_packed_as_centre_and_rays_that_project_to_the_corners():
    points, colours = cloud()
    R = cv2.Rodrigues(np.array([0.3, -0.8, 0.5]))[0]
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, [1.0, 2.0, 3.0]
    given = ViewCamera(name="a", K=K, size=SIZE, T_world_to_cam=T, kind="registered")
    attributes = Elements(model_view(points, colours, [given], "t")).view()
    packed = np.frombuffer(base64.b64decode(attributes["data-cameras"]), "<f4").reshape(-1, 15)
    scale, middle = float(attributes["data-scale"]), np.array(json.loads(attributes["data-centre"]))
    centre = packed[0, :3] * scale + middle
    np.testing.assert_allclose(R @ centre + T[:3, 3], 0, atol=1e-5)
    corners = centre + packed[0, 3:].reshape(4, 3)
    projected, _ = cv2.projectPoints(corners, cv2.Rodrigues(R)[0], T[:3, 3], K, None)
    expected = [[-0.5, -0.5], [99.5, -0.5], [99.5, 59.5], [-0.5, 59.5]]
    np.testing.assert_allclose(projected[:, 0], expected, atol=1e-3)
    assert json.loads(attributes["data-names"]) == [["a", "registered"]]


def test_the_first_view_is_upright_and_looks_where_the_cameras_look():
    points, colours = cloud()
    around = [np.diag([1.0, 1, 1]), np.diag([-1.0, 1, -1])]  # facing each other, both upright
    for rotations, forward in ((around, None), (around[:1], [0, 0, 1]), ([], [0, 0, 1])):
        cameras = [
            ViewCamera(
                name=f"{i}", K=K, size=SIZE, T_world_to_cam=np.block([[R, np.zeros((3, 1))], [0, 0, 0, 1]])
            )
            for i, R in enumerate(rotations)
        ]
        attributes = Elements(model_view(points, colours, cameras, "t")).view()
        frame = np.array(json.loads(attributes["data-view"])["frame"]).reshape(3, 3)
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(frame) == pytest.approx(1)
        np.testing.assert_allclose(frame[1], [0, 1, 0], atol=1e-6)
        if forward is not None:
            np.testing.assert_allclose(frame[2], forward, atol=1e-6)


def test_only_a_view_with_errors_can_be_coloured_by_them():
    points, colours = cloud(3)
    plain = Elements(model_view(points, colours, [], "t"))
    assert "data-error" not in plain.view()
    assert not [a for _, a in plain.all if a.get("data-control") == "colour"]
    coloured = Elements(model_view(points, colours, [], "t", errors_px=np.array([0.5, 9.0, np.nan])))
    assert [a for _, a in coloured.all if a.get("data-control") == "colour"]
    packed = np.frombuffer(base64.b64decode(coloured.view()["data-error"]), np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(packed, [[0, 158, 115], [213, 94, 0], [150, 150, 150]])


def test_names_are_text_whatever_they_hold_and_stand_under_their_kind():
    points, colours = cloud(3)
    text = model_view(points, colours, [camera(HOSTILE), camera("q", kind="registered")], HOSTILE)
    elements = Elements(text)
    assert not [tag for tag, _ in elements.all if tag == "script"]
    assert ("option", HOSTILE) in elements.texts and ("option", "q") in elements.texts
    assert [a["label"] for tag, a in elements.all if tag == "optgroup"] == [
        "images of the map",
        "registered queries",
    ]
    assert json.loads(elements.view()["data-names"])[0][0] == HOSTILE


def test_what_cannot_be_drawn_is_refused():
    points, colours = cloud(3)
    with pytest.raises(DataError, match="points or cameras"):
        model_view(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), [], "t")
    with pytest.raises(ShapeError, match="colours: expected shape"):
        model_view(points, colours[:2], [], "t")
    with pytest.raises(ShapeError, match="uint8"):
        model_view(points, colours / 255, [], "t")
    with pytest.raises(ShapeError, match="finite"):
        model_view(points * np.inf, colours, [], "t")
    with pytest.raises(ShapeError, match="K with an inverse"):
        ViewCamera(name="a", K=np.zeros((3, 3)), size=SIZE, T_world_to_cam=np.eye(4))
    with pytest.raises(ShapeError, match="kind"):
        camera("a", kind="other")
    with pytest.raises(DataError, match="markup for kind model"):
        Figure(kind="model", data="<div></div>", caption="c", alt="a")
    with pytest.raises(DataError, match="markup for kind model"):
        Figure(kind="svg", data=Markup("<svg></svg>"), caption="c", alt="a")


def test_a_model_of_cameras_only_and_of_one_point_only():
    none = (np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    assert Elements(model_view(*none, [camera("a")], "t")).view()["data-points"] == ""
    found, _ = read_model_points(
        Elements(model_view(np.ones((1, 3)), np.ones((1, 3), np.uint8), [], "t")).view()
    )
    np.testing.assert_allclose(found, 1, atol=1e-3)


def page_of(points: np.ndarray, colours: np.ndarray, cameras: list[ViewCamera]) -> str:
    figure = model_figure(picture_of(points, colours, cameras))
    return render_page(
        Report(title="T", sections=[Section(title="S", sections=[Section(title="M", figures=[figure])])])
    )


def test_pages_carry_the_script_only_where_there_is_a_model():
    points, colours = cloud(20)
    with_model = page_of(points, colours, [camera("a")])
    assert ".model-view" in with_model and "quantised" in with_model
    assert len([tag for tag, _ in Elements(with_model.partition("\n")[2]).all if tag == "script"]) == 1
    assert "model-view" not in render_page(Report(title="T"))
    assert with_model == page_of(points, colours, [camera("a")])


# ---------------------------------------------------------------- in a browser
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
RED, GREEN = (255, 0, 0), (0, 255, 0)


def run_browser(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run "
    flags += (
        "--disable-background-networking --disable-component-update --disable-sync --enable-logging=stderr "
    )
    flags += "--window-size=1300,900 --hide-scrollbars --virtual-time-budget=1000"
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={folder / 'profile'}", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return done


def with_script(text: str, script: str) -> str:
    """The page with another script at its end; the policy, which would refuse it, is taken out."""
    text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert count == 1
    return text.replace("</body>", f"<script>{script}</script></body>")


def drag(dx: int, dy: int, *, shift: bool = False) -> str:
    """A drag of the mouse over the canvas."""
    keys = f"bubbles: true, pointerId: 1, button: 0, buttons: 1, shiftKey: {str(shift).lower()}"
    return f"""
    (() => {{
      const canvas = document.querySelector(".model-view canvas"), box = canvas.getBoundingClientRect();
      const send = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {{ {keys},
        clientX: box.left + 200 + x, clientY: box.top + 200 + y }}));
      send("pointerdown", 0, 0); send("pointermove", {dx}, {dy}); send("pointerup", {dx}, {dy});
    }})();"""


def states_after(folder: Path, *scripts: str) -> list[dict]:
    """The state of the view at the beginning, then after each of the scripts."""
    points, colours = cloud(50)
    cameras = [camera("a.jpg", (1.0, 0.0, -4.0)), camera("b.jpg", (0.0, 0.0, -4.0), "registered")]
    keep = "states.push(JSON.parse(document.querySelector('.model-view').dataset.state));"
    script = f"const states = []; {keep} " + " ".join(f"{{ {part} }} {keep}" for part in scripts)
    text = with_script(
        page_of(points, colours, cameras), script + " document.title = JSON.stringify(states);"
    )
    done = run_browser(folder, text, "--dump-dom")
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1)))


@needs_browser
def test_the_script_runs_under_the_policy_and_draws_the_points(tmp_path: Path):
    points, colours = cloud(500)
    dom = run_browser(tmp_path, page_of(points, colours, [camera("a")]), "--dump-dom").stdout
    assert int(re.search(r'data-drawn="(\d+)"', dom).group(1)) > 450
    assert 'data-ready="true"' in dom


@needs_browser
def test_nearer_points_hide_farther_ones_and_colours_are_right(tmp_path: Path):
    """A red wall before a green one, seen in the mean direction of the cameras, tilted from above."""
    x, y = np.meshgrid(np.linspace(-1, 1, 90), np.linspace(-1, 1, 90))
    wall = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    points = np.concatenate([wall, wall + [0, 0, 0.05]])
    colours = np.repeat(np.array([RED, GREEN], np.uint8), x.size, axis=0)
    text = with_script(
        page_of(points, colours, [camera("a", (0.0, 0.0, -1.0))]),
        "document.querySelector('[data-kind=mapped]').click();"
        "const size = document.querySelector('[data-control=size]'); size.value = 6;"
        "size.dispatchEvent(new Event('input'));"
        "document.querySelector('.model-view').scrollIntoView();",
    )
    picture = tmp_path / "page.png"
    run_browser(tmp_path, text, f"--screenshot={picture}")
    shot = cv2.imread(str(picture))[..., ::-1].astype(int)
    red = ((shot - RED) ** 2).sum(axis=-1) < 300
    green = ((shot - GREEN) ** 2).sum(axis=-1) < 300
    assert red.sum() > 20_000, "the near wall fills a good part of the canvas"
    assert green.sum() < 0.15 * red.sum(), "the far wall shows at the edge only"


@needs_browser
def test_a_drag_turns_and_a_drag_with_shift_moves(tmp_path: Path):
    back = "document.querySelector('[data-control=reset]').click();"
    before, turned, _, moved = states_after(tmp_path, drag(100, 20), back, drag(100, 0, shift=True))
    assert turned["yaw"] == pytest.approx(before["yaw"] - 0.6)
    assert turned["pitch"] == pytest.approx(before["pitch"] + 0.12)
    assert turned["target"] == before["target"]
    assert moved["yaw"] == before["yaw"]
    assert moved["target"][0] < before["target"][0] - 0.05, (
        "what is looked at moves to the left, so the scene to the right"
    )


@needs_browser
def test_two_fingers_zoom_and_the_wheel_only_after_a_click(tmp_path: Path):
    touch = """
    const canvas = document.querySelector(".model-view canvas"), box = canvas.getBoundingClientRect();
    const send = (type, id, x) => canvas.dispatchEvent(new PointerEvent(type, { bubbles: true, pointerId: id,
      pointerType: "touch", buttons: 1, clientX: box.left + x, clientY: box.top + 100 }));
    send("pointerdown", 5, 100); send("pointerdown", 6, 200); send("pointermove", 6, 300);
    send("pointerup", 6, 300); send("pointerup", 5, 100); canvas.blur();"""
    wheel = """
    document.querySelector(".model-view canvas").dispatchEvent(
      new WheelEvent("wheel", { deltaY: -400, cancelable: true }));"""
    before, zoomed, unmoved, focused, wheeled = states_after(tmp_path, touch, wheel, drag(0, 0), wheel)
    assert zoomed["distance"] == pytest.approx(before["distance"] / 2)
    assert unmoved == focused == zoomed
    assert wheeled["distance"] == pytest.approx(zoomed["distance"] * np.exp(-0.6))


@needs_browser
def test_looking_through_a_camera_stands_where_it_stood(tmp_path: Path):
    """The third number of a view's frame is its direction; the eye is `distance` before the target."""
    choose = """
    const list = document.querySelector("[data-control=image]");
    list.value = "0"; list.dispatchEvent(new Event("change"));
    document.querySelector("[data-control=look]").click();"""
    _, state = states_after(tmp_path, choose)
    frame = np.array(state["frame"]).reshape(3, 3)
    np.testing.assert_allclose(frame, np.eye(3), atol=1e-5)
    points, colours = cloud(50)
    cameras = [camera("a.jpg", (1.0, 0.0, -4.0)), camera("b.jpg", (0.0, 0.0, -4.0), "registered")]
    attributes = Elements(model_view(points, colours, cameras, "t")).view()
    eye = np.array(state["target"]) - state["distance"] * frame[2]
    eye = eye * float(attributes["data-scale"]) + json.loads(attributes["data-centre"])
    np.testing.assert_allclose(eye, [1.0, 0.0, -4.0], atol=1e-4)


@needs_browser
def test_a_click_on_a_camera_selects_it_and_reset_goes_back(tmp_path: Path):
    """The pinhole projection of the camera's centre is computed here, from the state, and clicked."""
    points, colours = cloud(50)
    cameras = [camera("a.jpg", (2.0, 0.0, 0.0)), camera("b.jpg", (-2.0, 0.0, 0.0), "registered")]
    text = page_of(points, colours, cameras)
    attributes = Elements(model_view(points, colours, cameras, "t")).view()
    view = json.loads(attributes["data-view"])
    scale, middle = float(attributes["data-scale"]), np.array(json.loads(attributes["data-centre"]))
    pitch = np.array([[1, 0, 0], [0, np.cos(0.4), -np.sin(0.4)], [0, np.sin(0.4), np.cos(0.4)]])
    place = (
        pitch
        @ np.array(view["frame"]).reshape(3, 3)
        @ ((np.array([-2.0, 0, 0]) - middle) / scale - view["target"])
    )
    x, y = place[:2] / (place[2] + view["distance"])
    script = f"""
    {drag(40, 30)} document.querySelector("[data-control=reset]").click();
    const canvas = document.querySelector(".model-view canvas"), box = canvas.getBoundingClientRect();
    const side = Math.min(box.width, box.height);
    const at = {{ bubbles: true, pointerId: 3, button: 0, clientX: box.left + box.width / 2 + side * {x},
      clientY: box.top + box.height / 2 + side * {y} }};
    canvas.dispatchEvent(new PointerEvent("pointerdown", at)); canvas.dispatchEvent(new PointerEvent("pointerup", at));
    document.title = document.querySelector("[data-control=status]").textContent;"""
    done = run_browser(tmp_path, with_script(text, script), "--dump-dom")
    assert "<title>b.jpg (registered)</title>" in done.stdout
