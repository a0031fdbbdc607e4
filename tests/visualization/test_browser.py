"""The page in a real browser: what its script does, what it complains about, how it looks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from matchlib.visualization.page import render_page
from matchlib.visualization.report import Cell, Column, Figure, Report, Row, Section, Table

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="20" viewBox="0 0 100 20">'
    '<text x="0" y="15" style="fill: currentColor">drawing</text></svg>'
)


def page() -> str:
    names = ["b10", "b9", "<i>c</i>", "a"]
    values = [0.5, Cell(value=0.25, low=0.2, high=0.3), None, 0.75]
    rows = [Row(cells=[n, v], group="first") for n, v in zip(names, values, strict=True)]
    rows += [Row(cells=["z", 10.0], group="second"), Row(cells=["y", 9.0], group="second")]
    table = Table(
        columns=[Column(name="method", group=""), Column(name="score", group="MMA", best="highest")],
        rows=rows,
        caption="Scores",
    )
    figure = Figure(kind="svg", data=DRAWING, caption="Drawing", alt="a word")
    return render_page(Report(title="Page", sections=[Section(title="S", tables=[table], figures=[figure])]))


def run_browser(folder: Path, html: str, *options: str) -> subprocess.CompletedProcess[str]:
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        *options,
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def dump(folder: Path, html: str) -> str:
    """The document after its scripts ran. Fails if the browser's console holds anything."""
    done = run_browser(folder, html, "--dump-dom")
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return done.stdout


def with_clicks(html: str, column: int, times: int) -> str:
    """The page with a script that clicks a header; the policy, which would refuse it, is taken out."""
    click = f"document.querySelector('th[data-column=\"{column}\"] button').click();"
    without_policy, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert count == 1
    return without_policy.replace("</body>", f"<script>{click * times}</script></body>")


def names_in_order(dom: str) -> list[str]:
    return re.findall(r'<th scope="row" data-value="([^"]*)"', dom)


def test_the_page_runs_its_script_under_its_own_policy_without_complaint(tmp_path: Path):
    dom = dump(tmp_path, page())
    assert re.search(r"<html[^>]* data-ready=\"true\"", dom)
    assert dom.count('<button type="button">') == 2
    assert names_in_order(dom) == ["b10", "b9", "&lt;i&gt;c&lt;/i&gt;", "a", "z", "y"]


def test_the_policy_stops_scripts_that_are_not_the_pages(tmp_path: Path):
    """Proves that `dump` sees complaints, and that the policy would hold if some text were not escaped."""
    hostile = page().replace("</body>", "<script>document.title = 'taken over'</script></body>")
    done = run_browser(tmp_path, hostile, "--dump-dom")
    assert "<title>Page</title>" in done.stdout
    assert any("CONSOLE" in line and "Content Security Policy" in line for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("column", "times", "order", "state"),
    [
        (1, 1, ["a", "b10", "b9", "&lt;i&gt;c&lt;/i&gt;", "z", "y"], "descending"),
        (1, 2, ["b9", "b10", "a", "&lt;i&gt;c&lt;/i&gt;", "y", "z"], "ascending"),
        (0, 1, ["&lt;i&gt;c&lt;/i&gt;", "a", "b9", "b10", "y", "z"], "ascending"),
    ],
)
def test_a_click_on_a_header_sorts_each_group(tmp_path: Path, column, times, order, state):
    dom = dump(tmp_path, with_clicks(page(), column, times))
    assert names_in_order(dom) == order
    assert re.findall(r'data-column="(\d)"[^>]*aria-sort="(?!none)(\w+)"', dom) == [(str(column), state)]
    groups = re.findall(r'<tbody><tr class="group"><th[^>]*>(\w+)<', dom)
    assert groups == ["first", "second"], "the title of a group stays at its top"


def screenshot(folder: Path, *options: str, size: str = "900,700") -> np.ndarray:
    folder.mkdir()
    picture = folder / "page.png"
    run_browser(
        folder, page(), f"--window-size={size}", "--hide-scrollbars", f"--screenshot={picture}", *options
    )
    return cv2.imread(str(picture))


def test_the_page_is_light_or_dark_as_the_reader_prefers(tmp_path: Path):
    light = screenshot(tmp_path / "light")
    dark = screenshot(tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 220 and np.median(dark) < 50
    # Where the light page has ink, the dark page has light ink: the text did not stay black.
    ink = light.max(axis=-1) < 90
    assert ink.sum() > 500
    assert (dark[ink].min(axis=-1) > 120).mean() > 0.8


def test_nothing_is_wider_than_a_phone_but_what_scrolls_by_itself(tmp_path: Path):
    script = "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page())
    html = html.replace("</body>", f"<script>{script}</script></body>")
    done = run_browser(tmp_path, html, "--window-size=500,800", "--dump-dom")
    wide, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups())
    assert wide <= window <= 500
