"""Query points: frames, scale maps, the draw, and the file that all methods share."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.completion import digest_file
from matchlib.datasets.images import write_image
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.metrics import warp_points
from matchlib.evaluation.pck_config import PCK_PROTOCOLS, HarrisQueries, PCKProtocol, point_settings
from matchlib.evaluation.pck_frames import frame_scaling, frame_size, resize_image, true_scale
from matchlib.evaluation.pck_points import read_points, strong_pixels, true_positions, write_points
from matchlib.typed_yaml import dump_typed, load_typed

from .pck_world import SIZE, textured_image, translation, write_world

AS_CODED, AS_DESCRIBED = (replace(protocol, sequences="all_present") for protocol in PCK_PROTOCOLS)
ALL_PIXELS = PCKProtocol(sequences="all_present", longer_side=None, points_from="uniform", points=10**6)
I5 = [np.eye(3)] * 5
TILTED = np.array([[0.9, 0.08, 6], [-0.06, 0.95, 4], [4e-4, -3e-4, 1]])


# ---------------------------------------------------------------- settings
def test_the_two_named_protocols() -> None:
    coded, described = PCK_PROTOCOLS
    assert (coded.name, coded.threshold_px, coded.candidates, coded.truncate) == (
        "as-coded",
        3,
        "partners",
        True,
    )
    assert (described.name, described.threshold_px, described.candidates) == ("as-described", 5, "grid")
    assert not described.truncate
    assert coded.matcher == described.matcher == "exact"
    assert coded.longer_side == described.longer_side == 640


@pytest.mark.parametrize(
    "key, value",
    [
        ("name", ""),
        ("longer_side", 3),
        ("points", 0),
        ("grid_step", 0),
        ("threshold_px", 0.0),
        ("curve_px", []),
        ("curve_px", [2.0, 1.0]),
        ("curve_px", [0.0, 1.0]),
        ("matcher", "faiss"),
        ("sequences", "117"),
    ],
)
def test_impossible_settings_are_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"where: {key}: expected"):
        load_typed(PCKProtocol, {key: value}, "where")


@pytest.mark.parametrize(
    "key, value", [("block_size", 0), ("sobel_size", 4), ("k", 0.3), ("percentile", 100.0)]
)
def test_impossible_harris_settings_are_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"where: harris.{key}: expected"):
        load_typed(PCKProtocol, {"harris": {key: value}}, "where")


def test_protocols_survive_yaml_and_the_command_line() -> None:
    for protocol in PCK_PROTOCOLS:
        assert load_typed(PCKProtocol, dump_typed(protocol), "where") == protocol
    assert load_typed(PCKProtocol, {"threshold_px": "3", "points": "10"}, "where") == PCKProtocol(
        threshold_px=3.0, points=10
    )


def test_points_depend_on_what_draws_them_and_on_nothing_else() -> None:
    same = replace(AS_CODED, name="x", matcher="flann", threshold_px=5.0, candidates="grid", curve_px=(1.0,))
    assert point_settings(same) == point_settings(AS_CODED)
    for change in ({"seed": 1}, {"truncate": False}, {"harris": HarrisQueries(percentile=50)}, {"points": 9}):
        assert point_settings(replace(AS_CODED, **change)) != point_settings(AS_CODED)
    uniform = replace(AS_CODED, points_from="uniform")
    assert point_settings(uniform) == point_settings(replace(uniform, harris=HarrisQueries(k=0.05)))


def test_settings_and_results_need_no_torch() -> None:
    modules = "matchlib.evaluation.pck_config, matchlib.evaluation.pck_result, matchlib.evaluation.pck_table"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- frames
@settings(max_examples=60, deadline=None)
@given(width=st.integers(20, 4000), height=st.integers(20, 4000), side=st.integers(16, 800))
def test_scaling_keeps_borders_and_reaches_the_longer_side(width: int, height: int, side: int) -> None:
    scaled = frame_size((width, height), side)
    assert max(scaled) == side
    assert min(scaled) >= 1
    assert abs(min(scaled) - min(width, height) * side / max(width, height)) <= 1
    size = np.array([width, height])
    centre = frame_scaling((width, height), scaled, "centre")
    np.testing.assert_allclose(
        warp_points([[-0.5, -0.5], size - 0.5], centre), [[-0.5, -0.5], np.array(scaled) - 0.5]
    )
    corner = frame_scaling((width, height), scaled, "corner")
    np.testing.assert_allclose(warp_points([[0, 0], size], corner), [[0, 0], scaled])


@pytest.mark.parametrize("scaled", [(600, 450), (57, 43)])
def test_centred_scaling_is_what_happens_to_the_picture(scaled: tuple[int, int]) -> None:
    width, height = 120, 90
    ramp = np.broadcast_to(2 * np.arange(width)[None, :, None], (height, width, 3)).astype(np.uint8)
    shown = resize_image(ramp, scaled)[5, :, 0].astype(float) / 2
    pixels = np.stack([np.arange(scaled[0]), np.full(scaled[0], 5)], axis=1)
    back = np.linalg.inv(frame_scaling((width, height), scaled, "centre"))
    expected = warp_points(pixels, back)[:, 0]
    inside = (expected > 0) & (expected < width - 1)
    assert np.abs(shown - expected)[inside].max() < 0.5, "less than the half pixel of one grey level"
    assert np.abs((shown - expected)[inside].mean()) < 0.1
    corner = warp_points(pixels, np.linalg.inv(frame_scaling((width, height), scaled, "corner")))[:, 0]
    assert np.abs(shown - corner)[inside].mean() > 0.3, "the upstream rule differs measurably"


@settings(max_examples=40, deadline=None)
@given(
    entries=st.lists(st.floats(-0.2, 0.2), min_size=4, max_size=4),
    tilt=st.tuples(st.floats(-1e-3, 1e-3), st.floats(-1e-3, 1e-3)),
    factor=st.floats(-3, 3).filter(lambda value: abs(value) > 0.1),
)
def test_scale_is_the_inverse_root_of_the_jacobian(
    entries: list[float], tilt: tuple[float, float], factor: float
) -> None:
    a, b, c, d = entries
    H = factor * np.array([[1 + a, b, 5], [c, 1 + d, -3], [*tilt, 1]])
    scale = true_scale(H, (60, 40))
    assert scale.shape == (40, 60) and scale.dtype == np.float32
    step = 1e-4
    for x, y in ((0, 0), (59, 0), (31, 17), (59, 39)):
        around = np.array([[x + step, y], [x - step, y], [x, y + step], [x, y - step]])
        warped = warp_points(around, H)
        jacobian = np.stack([warped[0] - warped[1], warped[2] - warped[3]], axis=1) / (2 * step)
        assert scale[y, x] == pytest.approx(abs(np.linalg.det(jacobian)) ** -0.5, rel=1e-4)


def test_scales_of_both_images_are_reciprocal() -> None:
    scale0, scale1 = true_scale(TILTED, SIZE), true_scale(np.linalg.inv(TILTED), SIZE)
    pixels = np.array([[20, 20], [50, 40], [70, 60]])
    partners = warp_points(pixels, TILTED)
    read = cv2.remap(
        scale1, partners[:, 0].astype(np.float32), partners[:, 1].astype(np.float32), cv2.INTER_LINEAR
    )
    np.testing.assert_allclose(scale0[pixels[:, 1], pixels[:, 0]] * read.ravel(), 1, rtol=1e-4)
    assert true_scale(np.diag([0.5, 0.5, 1.0]), SIZE) == pytest.approx(2.0)


# ---------------------------------------------------------------- positions
def test_truncation_moves_points_and_lets_some_more_in() -> None:
    pixels = np.array([[0, 0], [3, 1], [95, 2], [4, 71]])
    H = translation(0.5, -0.9)
    positions, inside = true_positions(pixels, H, SIZE, truncate=False)
    np.testing.assert_allclose(positions, pixels + [0.5, -0.9])
    assert inside.tolist() == [False, True, False, True]
    positions, inside = true_positions(pixels, H, SIZE, truncate=True)
    assert positions.tolist() == [[0, 0], [3, 0], [95, 1], [4, 70]]
    assert inside.all()
    assert not np.signbit(positions).any()


def test_truncation_does_not_hang_on_the_last_bit() -> None:
    positions, _ = true_positions([[10, 10]], translation(-1e-9, 1e-9), SIZE, truncate=True)
    assert positions.tolist() == [[10, 10]]


def test_points_beyond_the_horizon_are_outside() -> None:
    H = np.array([[1.0, 0, 0], [0, 1, 0], [0.1, 0, -1]])  # the horizon is x = 10; beyond it w > 0
    _, inside = true_positions([[40, 0], [10, 0], [0, 0]], H, SIZE, truncate=False)
    assert inside.tolist() == [False, False, True]


def test_strong_pixels_are_the_top_tenth_and_none_in_a_flat_image() -> None:
    image = textured_image(1, margin=20)
    strong = strong_pixels(image, HarrisQueries())
    assert strong.mean() == pytest.approx(0.1, abs=0.001)
    assert not strong[:15].any() and not strong[:, :15].any()
    assert not strong_pixels(np.full((20, 30, 3), 77, np.uint8), HarrisQueries()).any()


# ---------------------------------------------------------------- the draw
def test_all_valid_pixels_are_drawn_where_there_are_fewer_than_asked(tmp_path: Path) -> None:
    root = write_world(tmp_path / "hp", {"v_a": [translation(0.5, -0.9)] * 5})
    exact = write_points(root, ALL_PIXELS, tmp_path / "exact.h5").pairs[0]
    assert {tuple(p) for p in exact.points0} == {(x, y) for x in range(95) for y in range(1, 72)}
    np.testing.assert_allclose(exact.points1, exact.points0 + np.float32([0.5, -0.9]), atol=1e-5)
    cut = write_points(root, replace(ALL_PIXELS, truncate=True), tmp_path / "cut.h5").pairs[0]
    assert len(cut.points0) == SIZE[0] * SIZE[1]
    expected = np.stack([cut.points0[:, 0], np.maximum(cut.points0[:, 1] - 1, 0)], axis=1)
    np.testing.assert_array_equal(cut.points1, expected)


@pytest.mark.parametrize("protocol", [AS_CODED, AS_DESCRIBED], ids=lambda p: p.name)
def test_equal_draws_give_equal_bytes(tmp_path: Path, protocol: PCKProtocol) -> None:
    root = write_world(tmp_path / "hp", {"i_a": I5, "v_b": [TILTED] * 5})
    first = write_points(root, protocol, tmp_path / "1.h5")
    write_points(root, protocol, tmp_path / "2.h5")
    assert digest_file(tmp_path / "1.h5") == digest_file(tmp_path / "2.h5")
    again = read_points(tmp_path / "1.h5")
    assert again.digest == first.digest
    assert again.settings == point_settings(protocol)
    for mine, theirs in zip(first.pairs, again.pairs, strict=True):
        np.testing.assert_array_equal(mine.points0, theirs.points0)
        np.testing.assert_array_equal(mine.points1, theirs.points1)
        assert (mine.sequence, mine.k, mine.size0, mine.size1) == (
            theirs.sequence,
            theirs.k,
            theirs.size0,
            theirs.size1,
        )
    other = write_points(root, replace(protocol, seed=1), tmp_path / "3.h5")
    assert other.digest != first.digest


def test_a_pair_is_drawn_alike_whatever_else_is_in_the_folder(tmp_path: Path) -> None:
    alone = write_points(write_world(tmp_path / "1", {"v_b": [TILTED] * 5}), AS_CODED, tmp_path / "1.h5")
    both = write_points(
        write_world(tmp_path / "2", {"i_a": I5, "v_b": [TILTED] * 5}), AS_CODED, tmp_path / "2.h5"
    )
    for mine, theirs in zip(alone.pairs, both.pairs[5:], strict=True):
        np.testing.assert_array_equal(mine.points0, theirs.points0)
    draws = [pair.points0.tobytes() for pair in alone.pairs]
    assert len(set(draws)) == 5, "each pair has a draw of its own"


def test_points_are_pixels_of_the_scaled_images_and_obey_the_homography(tmp_path: Path) -> None:
    root = write_world(tmp_path / "hp", {"v_a": [TILTED] * 5})
    write_image(root / "v_a" / "3.ppm", textured_image(3, size=(150, 110)))
    for pair in write_points(root, replace(AS_DESCRIBED, points=200), tmp_path / "p.h5").pairs:
        original1 = (150, 110) if pair.k == 3 else SIZE
        assert max(pair.size0) == max(pair.size1) == 640
        assert len(pair.points0) == 200 and len({tuple(p) for p in pair.points0}) == 200
        assert (pair.points0 == np.round(pair.points0)).all()
        there = warp_points(pair.points0, np.linalg.inv(frame_scaling(SIZE, pair.size0, "centre")))
        partner = warp_points(warp_points(there, TILTED), frame_scaling(original1, pair.size1, "centre"))
        np.testing.assert_allclose(pair.points1, partner, atol=1e-3)
        assert (pair.points1 >= 0).all() and (pair.points1 <= np.array(pair.size1) - 1).all()


def test_grey_images_are_read(tmp_path: Path) -> None:
    root = write_world(tmp_path / "hp", {"i_a": I5})
    for k in range(1, 7):
        grey = np.ascontiguousarray(textured_image(k)[..., 0])
        (root / "i_a" / f"{k}.ppm").write_bytes(b"P5\n%d %d\n255\n" % SIZE + grey.tobytes())
    pairs = write_points(root, replace(AS_CODED, longer_side=None), tmp_path / "p.h5").pairs
    assert [len(pair.points0) for pair in pairs] == [pytest.approx(SIZE[0] * SIZE[1] * 0.1, abs=5)] * 5


def test_pairs_without_points_are_left_out_and_named(tmp_path: Path) -> None:
    away = translation(5000, 0)
    root = write_world(tmp_path / "hp", {"v_a": [np.eye(3), away, np.eye(3), np.eye(3), away]})
    points = write_points(root, AS_CODED, tmp_path / "p.h5")
    assert points.left_out == read_points(tmp_path / "p.h5").left_out == ("v_a 1-3", "v_a 1-6")
    assert [pair.k for pair in points.pairs] == [2, 4, 5]


def test_no_points_at_all_are_an_error_and_no_file(tmp_path: Path) -> None:
    root = write_world(tmp_path / "hp", {"v_a": [translation(5000, 0)] * 5})
    with pytest.raises(DataError, match="none of 5 pairs"):
        write_points(root, AS_CODED, tmp_path / "p.h5")
    assert not list(tmp_path.glob("*.h5"))


def test_an_incomplete_set_is_refused(tmp_path: Path) -> None:
    root = write_world(tmp_path / "hp", {"i_a": I5})
    with pytest.raises(DataError, match="lacks 116 of 116"):
        write_points(root, PCK_PROTOCOLS[0], tmp_path / "p.h5")


# ---------------------------------------------------------------- broken files
def test_broken_points_files_are_refused(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "p.h5"
    with pytest.raises(DataError, match="not found"):
        read_points(path)
    write_points(write_world(tmp_path / "hp", {"i_a": I5}), AS_CODED, path)
    whole = path.read_bytes()
    for broken in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"p\.h5: not a readable points file"):
            read_points(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["points1"][3, 0] += 1
    with pytest.raises(DataError, match="not those that were written"):
        read_points(path)
    with h5py.File(path, "r+") as file:
        del file["count"]
    with pytest.raises(DataError, match="not a readable points file"):
        read_points(path)
    with h5py.File(path, "r+") as file:
        file.attrs["layout"] = "other"
    with pytest.raises(DataError, match="expected layout"):
        read_points(path)
