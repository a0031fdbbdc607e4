"""The `matchlib` command and the Python entrance: one call each, and errors that are one line."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import skimage.data

import matchlib
from matchlib.api import choose_device
from matchlib.cli import main, parse
from matchlib.datasets.hpatches import write_homography
from matchlib.datasets.images import read_image, write_image
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.pck_points import read_points
from matchlib.evaluation.pck_result import read_pck_result
from matchlib.methods.spec import METHODS
from matchlib.typed_yaml import load_typed, parse_overrides


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops of a photograph, 20 px apart, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    image = skimage.data.astronaut()
    write_image(folder / "a.png", np.ascontiguousarray(image[50:350, 50:350]))
    write_image(folder / "more" / "b.png", np.ascontiguousarray(image[50:350, 70:370]))
    return folder


def test_settings_are_read_as_nested_keys() -> None:
    words = ["inference.max_keypoints=20", "inference.multi_scale=true", "loss.descriptor=circle"]
    assert parse_overrides(words) == {
        "inference": {"max_keypoints": 20, "multi_scale": True},
        "loss": {"descriptor": "circle"},
    }
    for wrong in (["novalue"], ["=3"], ["a=1", "a.b=2"]):
        with pytest.raises(ConfigError):
            parse_overrides(wrong)


@pytest.mark.parametrize(
    "words",
    [
        ["import-weights", "v1.pth", "--method", "superpoint", "--out", "o", "network.layout=vgg", "a.b=1"],
        ["import-weights", "v1.pth", "network.layout=vgg", "--method", "superpoint", "--out", "o", "a.b=1"],
        ["match", "1.jpg", "2.jpg", "--method", "superpoint", "network.layout=vgg", "--out", "o", "a.b=1"],
        ["label", "--weights", "w", "network.layout=vgg", "a.b=1", "--index", "i", "--out", "o"],
    ],
)
def test_settings_may_stand_anywhere_behind_the_verb(words: list[str]) -> None:
    options = parse(words)
    assert options.settings == ["network.layout=vgg", "a.b=1"]
    assert str(options.out) == "o"


@pytest.mark.parametrize(
    "words", [["methods", "a=1"], ["match", "1.jpg", "2.jpg", "--out", "o", "3.jpg"], ["methods", "--b=1"]]
)
def test_words_that_belong_nowhere_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err


def test_examples_of_settings_in_the_help_are_settings() -> None:
    config = METHODS.get("superpoint").config
    load_typed(config, parse_overrides(["adaptation.views=50"]), "superpoint")
    assert "adaptation.views=50" in _help_of("label")


def _help_of(verb: str) -> str:
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        parse([verb, "--help"])
    return text.getvalue()


def test_extract_writes_one_file_with_a_group_per_relative_path(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    arguments = ["extract", "--images", str(photos), "--out", str(out), "max_keypoints=100"]
    assert main(arguments) == 0
    with h5py.File(out) as file:
        assert set(file) == {"a.png", "more"}
        group = file["more/b.png"]
        assert group["keypoints"].shape == (100, 2) and group["descriptors"].shape == (128, 100)
        keypoints = group["keypoints"][()]
    assert main(["export", str(out), "--out", str(tmp_path / "npz")]) == 0
    with np.load(tmp_path / "npz/more/b.png.npz") as exported:
        np.testing.assert_array_equal(exported["keypoints"], keypoints)
        assert exported["descriptors"].shape == (100, 128)


def test_match_finds_the_shift_and_draws_it(photos: Path, tmp_path: Path) -> None:
    picture = tmp_path / "m.png"
    first, second = photos / "a.png", photos / "more/b.png"
    assert main(["match", str(first), str(second), "--method", "sift", "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    features0, features1, matches = matchlib.match(first, second, "sift", settings={"max_keypoints": 200})
    shift = features0.keypoints[matches.index[:, 0]] - features1.keypoints[matches.index[:, 1]]
    np.testing.assert_allclose(np.median(shift, axis=0), [20, 0], atol=0.05)
    again = matchlib.match(features0, features1)[2]
    np.testing.assert_array_equal(again.index, matches.index)


def test_features_of_an_array_are_those_of_the_file(photos: Path) -> None:
    extractor = matchlib.build_extractor("rootsift", settings={"max_keypoints": 50})
    from_file = matchlib.extract(photos / "a.png", extractor)
    image = np.ascontiguousarray(skimage.data.astronaut()[50:350, 50:350])
    np.testing.assert_array_equal(from_file.descriptors, matchlib.extract(image, extractor).descriptors)


def test_trained_methods_need_their_weights_and_others_have_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give its weights file"):
        matchlib.build_extractor("aslfeat")
    with pytest.raises(ConfigError, match="sift has no weights"):
        matchlib.build_extractor("sift", weights=tmp_path)
    with pytest.raises(DataError, match="no such weights file"):
        matchlib.build_extractor("aslfeat", weights=tmp_path / "absent.safetensors")
    with pytest.raises(ConfigError, match="did you mean max_keypoints"):
        matchlib.build_extractor("sift", settings={"max_keypoint": 3})


@pytest.mark.parametrize(
    ("device", "expected"), [("gpu", "expected auto, cpu, cuda"), ("cuda:99", "'cuda:99' asks for a GPU")]
)
def test_devices_that_are_not_there_are_refused(device: str, expected: str, photos: Path) -> None:
    with pytest.raises(ConfigError, match=f"^device: .*{expected}"):
        matchlib.extract(photos / "a.png", "sift", device=device)
    assert choose_device("cpu") == "cpu" and choose_device("auto") in ("cpu", "cuda")


def test_an_error_is_one_line_and_status_one(
    capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path
) -> None:
    for arguments, expected in (
        (["match", str(tmp_path / "x.png"), str(photos / "a.png")], "x.png: cannot be read"),
        (["extract", "--method", "sfit", "--images", str(photos), "--out", "f.h5"], "did you mean 'sift'"),
        (["extract", "--images", str(tmp_path), "--out", str(tmp_path / "f.h5")], "expected image files"),
        (["verify", str(tmp_path)], "not finished"),
        (["train", str(tmp_path / "job.json"), "--out", str(tmp_path / "o"), "--processes", "1"], "job.json"),
        (
            ["train", "job.json", "--out", str(tmp_path / "o"), "--processes", "two"],
            "--processes: expected auto",
        ),
        (
            ["train", "job.json", "--out", str(tmp_path / "o"), "--processes", "0"],
            "--processes: expected auto",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and expected in lines[0], lines


def test_pck_points_are_kept_for_the_next_method(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = read_image(photos / "a.png")[:120, :160]
    for k in range(1, 7):
        write_image(tmp_path / "hp" / "i_one" / f"{k}.ppm", image)
    for k in range(2, 7):
        write_homography(tmp_path / "hp" / "i_one" / f"H_1_{k}", np.eye(3))
    points = tmp_path / "points.h5"
    arguments = ["evaluate-pck", "--root", str(tmp_path / "hp"), "--points", str(points)]
    arguments += ["--set", "sequences=all_present", "--set", "longer_side=160", "--set", "points=30"]
    assert main([*arguments, "--method", "sift"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["pck"] == 1.0
    before = points.stat()
    assert main([*arguments, "--method", "rootsift", "--out", str(tmp_path / "r.json")]) == 0
    assert (points.stat().st_ino, points.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert read_pck_result(tmp_path / "r.json").points_digest == read_points(points).digest


def test_download_fetches_and_unpacks_a_description(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    write_image(payload / "i_one" / "1.ppm", np.zeros((8, 8, 3), np.uint8))
    archive = shutil.make_archive(str(tmp_path / "sequences"), "gztar", payload)
    (tmp_path / "source.yaml").write_text(
        f"""
name: few
format: hpatches
licence: none
homepage: https://h.example
status: available
archives: [{{name: sequences, kind: tar, urls: ["file://{archive}"]}}]
"""
    )
    arguments = ["download", str(tmp_path / "source.yaml"), "--data", str(tmp_path / "data")]
    assert main(arguments) == 0
    assert (tmp_path / "data/few/i_one/1.ppm").is_file() and (tmp_path / "data/few/.complete").is_file()
    assert main(["verify", str(tmp_path / "data/few")]) == 0


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        (["methods"], "aslfeat: base (needs depth_pose)"),
        (["settings", "aslfeat"], "max_keypoints: 5000"),
        (["schema"], '"additionalProperties": false'),
    ],
)
def test_listings(capsys: pytest.CaptureFixture[str], verb: list[str], expected: str) -> None:
    assert main(verb) == 0
    assert expected in capsys.readouterr().out


def test_the_plan_names_sizes_hosts_and_licences(capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parents[2] / "config" / "blendedmvs.yaml"
    assert main(["plan", "--configfile", str(config)]) == 0
    text = capsys.readouterr().out
    assert "CC BY 4.0" in text and "27.5 GB" in text and "github.com" in text


def test_weights_and_their_story_stay_together(tmp_path: Path) -> None:
    from matchlib.methods.aslfeat.config import ASLFeatConfig
    from matchlib.methods.aslfeat.training import build
    from matchlib.training.checkpoint import read_about, save_weights

    path = tmp_path / "w.safetensors"
    save_weights(path, build(ASLFeatConfig(), "base", 0).state_dict(), about={"seed": 0})
    assert read_about(path) == {"seed": 0}
    features = matchlib.extract(
        skimage.data.astronaut()[:96, :96],
        "aslfeat",
        weights=path,
        settings={"inference": {"max_keypoints": 9}},
    )
    assert len(features) == 9 and json.dumps(features.image_size) == "[96, 96]"
