"""The verbs of the evaluations that need a camera, on real images where they are at hand."""

from __future__ import annotations

import json

import pytest

from matchlib.cli import main
from matchlib.features.store import FeatureReader
from matchlib.matching.pair_lists import read_pair_list


@pytest.fixture
def box(shared_data, tmp_path):
    """Four real frames with features of ours, and the same as another program's files."""
    folder = shared_data("rgbd_box")
    arguments = ["--images", str(folder), "--out", str(tmp_path / "box.h5"), "max_keypoints=1000"]
    assert main(["extract", "--method", "rootsift", *arguments]) == 0
    assert (
        main(["export", str(tmp_path / "box.h5"), "--format", "posfeat-npz", "--out", str(tmp_path / "npz")])
        == 0
    )
    return folder, tmp_path


def test_features_of_another_program_become_ours(box, capsys):
    folder, place = box
    out = place / "again.h5"
    assert main(["convert-features", str(place / "npz"), "--images", str(folder), "--out", str(out)]) == 0
    with FeatureReader(place / "box.h5") as ours, FeatureReader(out) as theirs:
        assert theirs.names == ours.names
        for name in ours.names:
            assert (theirs.read(name).keypoints == ours.read(name).keypoints).all()


def test_relative_poses_of_our_and_of_foreign_features_are_the_same(box, capsys):
    folder, place = box
    figures = []
    for features in ("box.h5", "npz"):
        arguments = ["--features", str(place / features), "--images", str(folder), "--format", "superglue"]
        arguments += ["--pairs", str(folder / "pairs_with_gt.txt"), "--out", str(place / f"{features}.json")]
        capsys.readouterr()
        assert main(["evaluate-pose", *arguments]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0]["poselib"]["auc@20"] == figures[1]["poselib"]["auc@20"] > 0.5
    assert (place / "npz.features.h5").is_file() and not (place / "box.features.h5").exists()


def test_pairs_are_retrieved_among_all_images_or_for_queries(box, capsys):
    _, place = box
    with FeatureReader(place / "box.h5") as reader:
        first, *others = reader.names
    out = place / "pairs.txt"
    arguments = ["retrieve-pairs", "--features", str(place / "box.h5"), "--out", str(out)]
    assert main([*arguments, "clusters=16"]) == 0
    assert len(read_pair_list(out).pairs) == 6 and read_pair_list(out).duplicates == 0
    (place / "queries.txt").write_text(f"{first} PINHOLE 640 480 1 1 1 1\n")
    assert main([*arguments, "--queries", str(place / "queries.txt"), "--per-image", "2", "clusters=16"]) == 0
    pairs = read_pair_list(out).pairs
    assert len(pairs) == 2 and all(query == first and name in others for query, name in pairs)
    with pytest.raises(SystemExit):
        main([*arguments, "--per-image", "0"])
    assert "per_image: expected at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_scene_is_localised_and_reconstructed(shared_data, tmp_path, capsys):
    root = shared_data("sfm_lund_door")
    features = tmp_path / "lund.h5"
    arguments = ["--images", str(root / "images"), "--out", str(features), "max_keypoints=2000"]
    assert main(["extract", "--method", "rootsift", *arguments]) == 0
    ratio = ["matcher.kind=mutual_ratio", "matcher.ratio=0.85"]
    where = ["--features", str(features), "--root", str(root)]
    capsys.readouterr()
    assert (
        main(["evaluate-localisation", *where, "--out", str(tmp_path / "loc"), "variant=exhaustive", *ratio])
        == 0
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert row["localised"] == 3 and row["median_position"] < 0.02  # of an extent of 3.88
    assert main(["evaluate-reconstruction", *where, "--out", str(tmp_path / "rec"), *ratio]) == 0
    assert "registered_images" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "rec" / "result.json").read_text())["runs"][0]["statistics"][
            "registered_images"
        ]
        == 12
    )
