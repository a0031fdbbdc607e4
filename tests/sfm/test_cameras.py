"""Intrinsics and the lists that they come in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.datasets.colmap_camera import (
    CAMERA_MODELS,
    ColmapCamera,
    guessed_camera,
    read_intrinsics_list,
    require_cameras,
    write_intrinsics_list,
)
from matchlib.errors import DataError

LINE = "query/night/1.jpg SIMPLE_RADIAL 1600 1200 1199.91 800 600 -0.0324314\n"


@pytest.mark.parametrize("model", sorted(CAMERA_MODELS))
def test_parameters_of_every_model_are_those_of_colmap(model: str) -> None:
    import pycolmap

    theirs = pycolmap.Camera.create_from_model_id(1, getattr(pycolmap.CameraModelId, model), 100.0, 64, 48)
    assert theirs.params_info.replace(",", "").split() == CAMERA_MODELS[model].split()


@st.composite
def cameras(draw: st.DrawFn) -> ColmapCamera:
    model = draw(st.sampled_from(sorted(CAMERA_MODELS)))
    number = st.floats(allow_nan=False, allow_infinity=False)
    focal = st.floats(min_value=1e-3, max_value=1e6)
    params = tuple(draw(focal if name.startswith("f") else number) for name in CAMERA_MODELS[model].split())
    side = st.integers(1, 10_000)
    return ColmapCamera(model=model, width=draw(side), height=draw(side), params=params)


@settings(max_examples=50, deadline=None)
@given(known=st.dictionaries(st.from_regex(r"[a-z0-9/_.]{1,12}", fullmatch=True), cameras(), max_size=4))
def test_a_written_list_reads_back_to_the_same_bits(
    known: dict[str, ColmapCamera], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    write_intrinsics_list(path, known)
    assert read_intrinsics_list(path) == known


def test_a_line_of_a_published_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# comment\n\n" + LINE + LINE)
    assert read_intrinsics_list(path) == {
        "query/night/1.jpg": ColmapCamera(
            model="SIMPLE_RADIAL", width=1600, height=1200, params=(1199.91, 800, 600, -0.0324314)
        )
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.jpg SIMPLE_RADIAL 1600 1200 1199.91 800 600\n", "expected 4 parameters"),
        ("a.jpg PINHOLE 1600 1200 1199.91 800 600\n", "expected 4 parameters (fx fy cx cy), got 3"),
        ("a.jpg BROWN 1600 1200 1199.91 800 600 0\n", "'BROWN'"),
        ("a.jpg SIMPLE_RADIAL 1600 1200 x 800 600 0\n", "expected numbers"),
        ("a.jpg SIMPLE_RADIAL 1600 12.5 1199 800 600 0\n", "height"),
        ("a.jpg SIMPLE_RADIAL 1600 1200 -3 800 600 0\n", "focal length above 0"),
        ("a.jpg SIMPLE_RADIAL 1600 1200 nan 800 600 0\n", "finite"),
        ("a.jpg 1600 1200\n", "name MODEL width"),
        (LINE.replace("1199.91", "1000"), "comes twice"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(LINE + line)
    with pytest.raises(DataError) as caught:
        read_intrinsics_list(path)
    assert f"{path}:2:" in str(caught.value)
    assert said in str(caught.value)


def test_missing_intrinsics_are_named_and_counted(tmp_path: Path) -> None:
    camera = guessed_camera(640, 480)
    assert require_cameras(["b"], {"a": camera, "b": camera}, source=tmp_path) == {"b": camera}
    with pytest.raises(DataError, match=r"no intrinsics of 2 of 3 images: q1, q2"):
        require_cameras(["a", "q1", "q2"], {"a": camera}, source=tmp_path)


def test_a_guess_is_marked_as_one() -> None:
    camera = guessed_camera(480, 640)
    assert (camera.params, camera.is_calibrated) == ((768.0, 240.0, 320.0, 0.0), False)
    with pytest.raises(DataError, match="'LENS'"):
        guessed_camera(480, 640, model="LENS")
