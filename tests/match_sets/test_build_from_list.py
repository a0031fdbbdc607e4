"""Match sets of scenes that bring poses and a list of pairs, and nothing else."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import matchlib.match_sets.build as builder
from matchlib.completion import MARKER, read_marker, verify_folder
from matchlib.datasets import caps_megadepth
from matchlib.datasets.blendedmvs import write_cam
from matchlib.datasets.images import write_image
from matchlib.datasets.types import Camera, Scene, SceneImage
from matchlib.errors import ConfigError, DataError
from matchlib.match_sets.config import DepthSourceConfig, MatchSetConfig
from matchlib.match_sets.index import IMAGES, INDEX, RECORDS, read_images, read_pairs, slots_of
from matchlib.match_sets.inputs import choose_source
from matchlib.match_sets.layout import decode_record, map_records
from matchlib.match_sets.pairs import MatchSetSource, PosePairs
from matchlib.match_sets.tfmatch_files import export_match_sets

SIZE = (64, 48)
K = np.array([[60.0, 0, 31.5], [0, 58, 23.5], [0, 0, 1]])
ANGLES = (0.0, 5.0, 25.0, 90.0, 1.0)
PAIRS = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3))
HEADER_BYTES = 4 * 46


def pose(angle_deg: float, centre: tuple[float, float, float]) -> np.ndarray:
    """World-to-camera pose at `centre`, turned about the vertical axis."""
    a = np.deg2rad(angle_deg)
    T = np.eye(4)
    T[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    T[:3, 3] = -T[:3, :3] @ centre
    return T


def centre_of(index: int) -> tuple[float, float, float]:
    return (0.5 * index, 0.1 * index**2, -0.2 * index)


@pytest.fixture
def posed_scene(tmp_path: Path) -> Scene:
    """Five images with cameras, no depth, no keypoints, six pairs."""
    images = {}
    for index, angle in enumerate(ANGLES):
        path = tmp_path / "root" / "images" / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        write_image(path, pixels)
        camera = Camera(K=K, T_world_to_cam=pose(angle, centre_of(index)), size=SIZE)
        images[index] = SceneImage(index=index, image_path=path, camera=camera)
    return Scene(name="posed", images=images, candidate_pairs=PAIRS)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Build the match set of a scene; keywords are settings."""

    def build_one(scene: Scene, *, out: str = "out", **settings: object) -> Path:
        monkeypatch.setattr(builder, "_read_scene_of", lambda _: lambda root, name: scene)
        builder.build_match_set(
            dataset_format="any",
            root=tmp_path / "root",
            scene=scene.name,
            out=tmp_path / out,
            config=MatchSetConfig(**{"min_rotation_deg": 0.0, **settings}),
            seed=0,
        )
        return tmp_path / out

    return build_one


def with_camera(scene: Scene, index: int, **changes: object) -> Scene:
    """The scene with another camera of one image."""
    image = scene.images[index]
    changed = replace(image, camera=replace(image.camera, **changes))
    return replace(scene, images={**scene.images, index: changed})


def pairs_in(folder: Path) -> list[tuple[int, int]]:
    return [(row.index0, row.index1) for row in read_pairs(folder)]


def source_of(folder: Path) -> MatchSetSource:
    return MatchSetSource(
        dataset_format="any",
        root=folder.parent / "root",
        scene="posed",
        folder=folder,
        min_rotation_deg=0,
    )


def test_records_hold_the_geometry_and_nothing_else(posed_scene: Scene, build: Callable[..., Path]) -> None:
    folder = build(posed_scene)
    assert slots_of(folder) == 0 and (folder / RECORDS).stat().st_size == len(PAIRS) * HEADER_BYTES
    rows = read_pairs(folder)
    assert pairs_in(folder) == list(PAIRS) and [row.pair for row in rows] == list(range(6))
    assert {(row.inliers, row.rows0, row.rows1, row.rot_diff_deg, row.overlap) for row in rows} == {
        (0, 0, 0, 0.0, None)
    }
    for row, (i, j), record in zip(rows, PAIRS, map_records(folder / RECORDS, 0), strict=True):
        decoded = decode_record(record, 0)
        assert decoded.affine0.shape == (0, 6) and decoded.labels.shape == (0,)
        assert row.rotation_deg == pytest.approx(abs(ANGLES[i] - ANGLES[j]), rel=1e-5)
        assert decoded.geometry.size1 == SIZE
        np.testing.assert_allclose(decoded.geometry.K0, K, rtol=1e-6)
        # The centre of camera 0, seen from camera 1, by hand.
        R1 = pose(ANGLES[j], centre_of(j))[:3, :3]
        seen = R1 @ (np.array(centre_of(i)) - centre_of(j))
        np.testing.assert_allclose(decoded.geometry.T_0to1[:3, 3], seen, atol=1e-6)
    assert read_images(folder, folder.parent / "root")[3] == (posed_scene.images[3].image_path, None)
    assert verify_folder(folder) == []
    with pytest.raises(ConfigError, match=r"pairs without keypoints; .* match_sets.source: corr or depth"):
        export_match_sets(folder, folder.parent / "files")


def test_limits_of_rotation_and_number_hold(
    posed_scene: Scene, build: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = build(posed_scene, min_rotation_deg=3, max_rotation_deg=80)
    assert pairs_in(folder) == [(0, 1), (0, 2), (1, 2), (2, 3)]
    assert "1 rotation below 3 deg" in caplog.text and "1 rotation above 80 deg" in caplog.text
    few = build(posed_scene, out="few", max_pairs=2)
    assert len(read_pairs(few)) == 2 and set(pairs_in(few)) < set(PAIRS)
    assert "4 more than 2 pairs" in caplog.text


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def resize(path: Path) -> None:
    write_image(path, np.zeros((SIZE[0], SIZE[1], 3), dtype=np.uint8))


FILE_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "image missing": (Path.unlink, "2.png: not found or empty"),
    "image missing (empty)": (lambda path: path.write_bytes(b""), "2.png: not found or empty"),
    "unreadable image": (cut, "2.png: truncated PNG"),
    "unreadable image (foreign)": (lambda path: path.write_text("<html>"), "2.png: not a readable image"),
    "size of image and camera differ": (resize, "2.png: expected 64 x 48 pixels, .*, got 48 x 64"),
}
CAMERA_FAULTS = {
    "singular intrinsics": {"K": np.diag([60.0, 0, 1])},
    "singular intrinsics (nan)": {"K": np.full((3, 3), np.nan)},
    "non-finite pose": {"T_world_to_cam": np.full((4, 4), np.inf)},
    "pose without a rotation": {"T_world_to_cam": np.diag([0.0, 0, 0, 1])},
    "pose without a rotation (mirrored)": {"T_world_to_cam": np.diag([1.0, 1, -1, 1])},
}


def assert_costs_image_2(
    scene: Scene, build: Callable[..., Path], caplog: pytest.LogCaptureFixture, reason: str, detail: str
) -> None:
    """Image 2 is in three of six pairs."""
    caplog.set_level(logging.INFO)
    with pytest.raises(DataError, match=rf"1 of \d images cannot be used, more than .* = 0.1: .*{detail}"):
        build(scene, out="strict")
    folder = build(scene, max_unreadable_share=0.25)
    assert pairs_in(folder) == [(0, 1), (0, 3), (0, 4)]
    assert f"3 {reason.split(' (')[0]}" in caplog.text and "1 images cannot be used: " in caplog.text
    assert 2 not in read_images(folder, folder.parent / "root")
    pairs = PosePairs([source_of(folder)], size=(32, 32))
    assert all(pairs.load(index, 0).K1.isfinite().all() for index in range(len(pairs)))


@pytest.mark.parametrize("reason", FILE_FAULTS)
def test_an_unusable_image_costs_its_pairs_or_stops_above_the_share(
    posed_scene: Scene, build: Callable[..., Path], caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    harm, detail = FILE_FAULTS[reason]
    harm(posed_scene.images[2].image_path)
    assert_costs_image_2(posed_scene, build, caplog, reason, detail)


@pytest.mark.parametrize("reason", CAMERA_FAULTS)
def test_so_does_an_unusable_camera(
    posed_scene: Scene, build: Callable[..., Path], caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    scene = with_camera(posed_scene, 2, **CAMERA_FAULTS[reason])
    assert_costs_image_2(scene, build, caplog, reason, f"camera of .*2.png: {reason.split(' (')[0]}")


def test_so_does_a_listed_image_without_camera(
    posed_scene: Scene, build: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    rest = {index: image for index, image in posed_scene.images.items() if index != 2}
    scene = replace(posed_scene, images=rest)
    assert_costs_image_2(scene, build, caplog, "image without camera", "image 2: has no camera")


def test_images_that_no_pair_names_are_not_looked_at(posed_scene: Scene, build: Callable[..., Path]) -> None:
    posed_scene.images[4].image_path.unlink()
    folder = build(replace(posed_scene, candidate_pairs=((0, 1), (1, 2))))
    assert pairs_in(folder) == [(0, 1), (1, 2)]


def test_an_empty_list_is_a_finished_set_that_says_so(
    posed_scene: Scene, build: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = build(replace(posed_scene, candidate_pairs=()))
    assert (folder / MARKER).is_file() and read_pairs(folder) == [] and slots_of(folder) == 0
    assert "0 pairs kept, 0 dropped" in caplog.text
    with pytest.raises(DataError, match="no pair in 1 match sets"):
        PosePairs([source_of(folder)], size=(32, 32))


@pytest.mark.parametrize("angle", [5.0, 40.0])
@pytest.mark.parametrize("others", [True, False])
def test_pairs_without_baseline_are_dropped(
    posed_scene: Scene,
    build: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    angle: float,
    others: bool,
) -> None:
    """Equal poses, or a camera that only turned; beside pairs with a baseline, and alone."""
    caplog.set_level(logging.INFO)
    scene = with_camera(posed_scene, 0, T_world_to_cam=pose(angle, centre_of(1)))
    folder = build(scene if others else replace(scene, candidate_pairs=((0, 1),)))
    assert pairs_in(folder) == (list(PAIRS[1:]) if others else [])
    assert "1 cameras at the same place" in caplog.text


def test_auto_takes_the_list_last(posed_scene: Scene) -> None:
    assert choose_source(posed_scene, "auto") == "list"
    images = {i: replace(image, depth_path=Path("d.pfm")) for i, image in posed_scene.images.items()}
    with_depth = replace(posed_scene, images=images)
    assert choose_source(with_depth, "auto") == "depth" and choose_source(with_depth, "list") == "list"
    assert choose_source(replace(with_depth, corr_path=Path("corr.bin")), "auto") == "corr"
    nothing = replace(posed_scene, candidate_pairs=None)
    with pytest.raises(
        DataError, match="posed: expected corr.bin, depth maps or a list of pairs, found none"
    ):
        choose_source(nothing, "auto")
    with pytest.raises(ConfigError, match="source: list, but scene posed has no list of pairs; use auto$"):
        choose_source(nothing, "list")
    with pytest.raises(
        ConfigError, match="source: depth, but scene posed has no depth maps; use auto or list"
    ):
        choose_source(posed_scene, "depth")


def test_a_scene_of_caps_with_sub_models_of_different_units(tmp_path: Path) -> None:
    """From files: sub-models number on, keep their own scale, and only pairs of one of them exist."""
    root = tmp_path / "caps"
    for model, unit in ((0, 1.0), (1, 1e-5)):
        aligned = root / "train" / "0007" / f"dense{model}" / "aligned"
        cameras = {}
        for index, angle in enumerate(ANGLES[:3]):
            write_image(aligned / "images" / f"{index}.jpg", np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8))
            T = pose(angle, centre_of(index))
            T[:3, 3] *= unit
            cameras[f"{index}.jpg"] = Camera(K=K, T_world_to_cam=T, size=SIZE)
        caps_megadepth.write_cameras(aligned / "img_cam.txt", cameras)
        caps_megadepth.write_pairs(aligned / "pairs.txt", [("0.jpg", "1.jpg"), ("2.jpg", "1.jpg")])
    out = tmp_path / "out"
    config = MatchSetConfig(min_rotation_deg=0)
    builder.build_match_set(
        dataset_format="caps_megadepth", root=root, scene="0007", out=out, config=config, seed=0
    )
    assert sorted(pairs_in(out)) == [(0, 1), (1, 2), (3, 4), (4, 5)]
    source = MatchSetSource(
        dataset_format="caps_megadepth", root=root, scene="0007", folder=out, min_rotation_deg=0
    )
    pairs = PosePairs([source], size=(32, 32))
    lengths = [float(pairs.load(index, 0).T_0to1[0, :3, 3].norm()) for index in range(len(pairs))]
    assert lengths == pytest.approx([lengths[0], lengths[1], 1e-5 * lengths[0], 1e-5 * lengths[1]], rel=1e-3)


def test_changed_images_and_lists_are_noticed(posed_scene: Scene, build: Callable[..., Path]) -> None:
    first = read_marker(build(posed_scene))
    assert read_marker(build(posed_scene)) == first
    shorter = read_marker(build(replace(posed_scene, candidate_pairs=PAIRS[1:])))
    assert shorter is not None and first is not None and shorter.fingerprint != first.fingerprint
    write_image(posed_scene.images[0].image_path, np.full((SIZE[1], SIZE[0], 3), 7, dtype=np.uint8))
    repainted = read_marker(build(posed_scene))
    assert repainted is not None and repainted.fingerprint != first.fingerprint
    assert repainted.files[RECORDS] == first.files[RECORDS]


def test_formats_without_poses_have_no_match_sets(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="need pose, depth_pose or tracks, but .* 'hpatches' gives homography"
    ):
        builder._read_scene_of("hpatches")


def test_cameras_are_checked_for_depth_too(
    build_plane: Callable[..., Path], plane_scene: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_cam(
        plane_scene / "plane" / "cams" / "00000002_cam.txt", np.diag([220.0, 0, 1]), np.eye(4), (1.0, 0.1)
    )
    settings = {"depth": DepthSourceConfig(candidates="overlap"), "max_unreadable_share": 0.25}
    assert pairs_in(build_plane(**settings)) == [(0, 1)]
    assert "00000002.jpg: singular intrinsics" in caplog.text


@pytest.mark.parametrize("pairs_before", [0, 1, 4])
def test_an_interrupted_build_goes_on_where_it_was(
    posed_scene: Scene,
    build: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pairs_before: int,
) -> None:
    undisturbed = read_marker(build(posed_scene, out="undisturbed"))
    monkeypatch.setattr(builder, "_CHUNK_BYTES", 1)  # one pair at a time
    monkeypatch.setattr("matchlib.match_sets.progress._CHECKPOINT_S", 0.0)
    fill, calls = builder.fill_record, []

    def interrupted(*args: object, **kwargs: object) -> object:
        if len(calls) == pairs_before:
            raise KeyboardInterrupt
        calls.append(1)
        return fill(*args, **kwargs)

    monkeypatch.setattr(builder, "fill_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(posed_scene)
    assert not (tmp_path / "out" / MARKER).exists()
    calls.clear()
    monkeypatch.setattr(builder, "fill_record", lambda *a, **k: (calls.append(1), fill(*a, **k))[1])
    assert read_marker(build(posed_scene)) == undisturbed
    assert len(calls) == len(PAIRS) - pairs_before


CHILD = """
import sys, time
from pathlib import Path
import matchlib.match_sets.build as b
import matchlib.match_sets.from_list as l
import matchlib.match_sets.progress as p
from matchlib.match_sets.config import MatchSetConfig
b._CHUNK_BYTES = 1
p._CHECKPOINT_S = 0.0
def slowed(function, word):
    def slow(*args, **kwargs):
        print(word, flush=True)
        time.sleep(0.05)
        return function(*args, **kwargs)
    return slow
b.fill_record = slowed(b.fill_record, "pair")
l.read_image = slowed(l.read_image, "image")
b.build_match_set(dataset_format="blendedmvs", root=Path(sys.argv[1]), scene="plane", out=Path(sys.argv[2]),
                  config=MatchSetConfig(source="list"), seed=0)
"""


def test_kill_9_never_leaves_a_folder_that_looks_finished(
    build_plane: Callable[..., Path], plane_scene: Path, tmp_path: Path
) -> None:
    undisturbed = read_marker(build_plane(out="undisturbed", source="list", slots=1024))
    command = [sys.executable, "-c", CHILD, str(plane_scene), str(tmp_path / "out")]
    for word, delay_s in ((b"image", 0.0), (b"pair", 0.0), (b"pair", 0.03)):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout is not None
        assert any(line.strip() == word for line in child.stdout)  # this attempt has come that far
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        assert not (tmp_path / "out" / MARKER).exists()
    folder = build_plane(source="list", slots=1024)
    assert read_marker(folder) == undisturbed and verify_folder(folder) == []
    assert {path.name for path in folder.iterdir()} == {MARKER, RECORDS, INDEX, IMAGES}
