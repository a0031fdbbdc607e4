"""A stage gets the supervision that it needs, or the configuration is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from matchlib.datasets import blendedmvs
from matchlib.datasets.types import FORMATS, DatasetFormat
from matchlib.errors import ConfigError
from matchlib.methods.spec import METHODS, MethodSpec, StageSpec
from matchlib.workflow import Workflow
from matchlib.workflow_checks import load_workflow

_LISTS = {"list_scenes": "x:y", "read_scene": "x:y"}


@pytest.fixture(autouse=True)
def formats_and_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format of each kind, and a method with a stage of each need."""
    formats = (
        DatasetFormat(name="posed", gives=frozenset({"pose"}), **_LISTS),
        DatasetFormat(name="deep", gives=frozenset({"depth_pose", "tracks"}), **_LISTS),
        DatasetFormat(name="flat", gives=frozenset({"homography"}), list_scenes="x:y"),
    )
    stages = {name: StageSpec(needs=name, metric="m") for name in ("pose", "depth_pose", "tracks")}
    method = MethodSpec(
        name="learner",
        config=type(METHODS.get("sift").config()),
        extractor="x:y",
        stages=stages,
        weights="trained",
    )
    monkeypatch.setattr(FORMATS, "_entries", {f.name: f for f in formats})
    monkeypatch.setattr(METHODS, "_entries", {"learner": method})


def load(tmp_path: Path, form: str, stage: str, **match_sets: Any) -> Workflow:
    (tmp_path / "d.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "d",
                "format": form,
                "licence": "l",
                "homepage": "https://h.example",
                "status": "available",
            }
        )
    )
    run = {"method": "learner", "train_on": ["d"], "stages": {stage: {"steps": 1}}}
    dataset = {"source": "d.yaml", "root": str(tmp_path), "match_sets": match_sets}
    mapping = {"datasets": {"d": dataset}, "runs": {"r": run}}
    return load_workflow(mapping, where="c.yaml", folder=tmp_path)


@pytest.mark.parametrize(
    ("form", "stage"), [("posed", "pose"), ("deep", "pose"), ("deep", "depth_pose"), ("deep", "tracks")]
)
def test_what_fits_is_accepted(tmp_path: Path, form: str, stage: str) -> None:
    """Depth and pose include the pose."""
    assert load(tmp_path, form, stage).has_scenes("d")


@pytest.mark.parametrize(
    ("form", "stage", "expected"),
    [
        (
            "posed",
            "depth_pose",
            "'depth_pose' pairs, but dataset 'd' gives pose; train on a dataset of format deep",
        ),
        ("posed", "tracks", "'tracks' pairs, but dataset 'd' gives pose; train on a dataset of format deep"),
        ("flat", "pose", "'pose' pairs, but dataset 'd' gives homography; .* of format deep or posed"),
    ],
)
def test_what_does_not_is_refused_with_what_would(
    tmp_path: Path, form: str, stage: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=rf"c.yaml: runs.r.stages.{stage}: learner needs {expected}$"):
        load(tmp_path, form, stage)


@pytest.mark.parametrize(
    ("form", "stage", "source", "expected"),
    [
        ("posed", "pose", "depth", "auto or list"),
        ("posed", "pose", "corr", "auto or list"),
        ("deep", "tracks", "list", "auto or corr or depth"),
    ],
)
def test_so_is_a_source_that_cannot_supervise(
    tmp_path: Path, form: str, stage: str, source: str, expected: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"datasets.d.match_sets.source: '{source}' .*; expected {expected}$"
    ):
        load(tmp_path, form, stage, source=source)


@pytest.mark.parametrize("source", ["auto", "corr", "depth", "list"])
def test_poses_come_from_any_source_of_a_dataset_with_depth(tmp_path: Path, source: str) -> None:
    assert load(tmp_path, "deep", "pose", source=source).config.datasets["d"].match_sets.source == source


def test_every_shipped_format_with_depth_supervises_pose_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FORMATS, "_entries", None)
    with_depth = [name for name in FORMATS.names() if "depth_pose" in FORMATS.get(name).gives]
    assert blendedmvs.SPECS[0].name in with_depth and len(with_depth) >= 4
    for name in with_depth:
        assert "pose" in FORMATS.get(name).gives
