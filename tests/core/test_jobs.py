"""What a training job hands on: the limits of the configuration, names of photographs, digests of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from matchlib.completion import MARKER, digest_file
from matchlib.config import DatasetConfig, RunConfig
from matchlib.datasets.images import write_image
from matchlib.errors import ConfigError, DataError
from matchlib.jobs import training
from matchlib.jobs.data import index_dataset, read_index
from matchlib.match_sets.config import MatchSetConfig
from matchlib.match_sets.pairs import MatchSetSource
from matchlib.training.config import StageConfig
from matchlib.typed_yaml import merged, parse_overrides, read_yaml

ROOT = Path(__file__).parents[2]


def photographs(folder: Path, count: int) -> Path:
    import numpy as np

    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        write_image(folder / f"{number:03d}.png", pixels)
    return folder


def test_a_folder_of_photographs_is_split_and_named_in_the_job(tmp_path: Path) -> None:
    settings = DatasetConfig(
        source="datasets/photos.yaml", root=str(photographs(tmp_path / "photos", 10)), validation_images=2
    )
    source = ROOT / "config" / "datasets" / "photos.yaml"
    out = tmp_path / "photos.json"
    index_dataset("photos", settings, source=source, unpacked=None, out=out)
    index = read_index(out)
    assert index.validation == ("008.png", "009.png") and len(index.train) == 8
    job = training.describe_training(
        run="r",
        stage="descriptor",
        settings=RunConfig(
            method="msnet",
            train_on=("photos",),
            stages={"descriptor": StageConfig(steps=1, image_size=(32, 24))},
        ),
        datasets=[settings],
        indices=[out],
        match_sets=tmp_path,
        labels=[None],
        initial_weights=None,
    )
    assert job.photos[0].content == digest_file(out) and not job.pairs
    training.write_training_job(job, tmp_path / "job.json")
    assert training.read_training_job(tmp_path / "job.json") == job
    pairs = training._photo_pairs(job.photos, "validation", (32, 24))
    assert pairs is not None and len(pairs) == 2
    assert pairs.load(0, seed=1).to("cpu").size == (32, 24)


def test_limits_of_the_configuration_reach_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[MatchSetSource] = []

    class Pairs:
        def __init__(self, sources: list[MatchSetSource], *, size: tuple[int, int]) -> None:
            seen.extend(sources)

    monkeypatch.setattr("matchlib.match_sets.pairs.DepthPosePairs", Pairs)
    folder = tmp_path / "sets" / "gl3d" / "s.set"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("{}")
    group = training.PairsOf(
        dataset="gl3d",
        format="gl3d",
        root=str(tmp_path),
        match_sets=str(tmp_path / "sets" / "gl3d"),
        train=("s",),
        validation=(),
        min_rotation_deg=7.0,
        max_rot_diff_deg=11.0,
    )
    training._match_set_pairs([group], "train", (8, 8))
    assert (seen[0].min_rotation_deg, seen[0].max_rot_diff_deg) == (7.0, 11.0)
    assert MatchSetConfig().min_rotation_deg != 7.0
    assert training._match_set_pairs([group], "validation", (8, 8)) is None


def test_a_job_of_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    job = training.TrainingJob(run="r", method="msnet", stage="desc", seed=0, config=StageConfig(steps=1))
    with pytest.raises(ConfigError, match=r"unknown stage 'desc' of msnet \(known: descriptor\)"):
        training.run_training(job, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_changed_weights_file_changes_the_job(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "backbone.safetensors"
    settings: dict[str, Any] = {
        "network": {"backbone_weights": str(path), "loss_weights": [1.0]},
        "weights": "x",
    }
    with pytest.raises(DataError, match="backbone_weights: no such weights file"):
        training._digests_of_files(settings)
    save_file({"a": torch.zeros(1)}, path)
    first = training._digests_of_files(settings)
    save_file({"a": torch.ones(1)}, path)
    assert list(first) == [str(path)] and first != training._digests_of_files(settings)


def test_overrides_change_only_what_they_name() -> None:
    config = {"runs": {"a": {"seed": 1, "stages": {"s": {"steps": 5}}}}, "mirror": None}
    changed = merged(config, parse_overrides(["runs.a.stages.s.steps=7", "mirror.seed=2"]))
    assert changed == {"runs": {"a": {"seed": 1, "stages": {"s": {"steps": 7}}}}, "mirror": {"seed": 2}}
    assert config["mirror"] is None
    for wrong in ("a", "=1", "a=[1"):
        with pytest.raises(ConfigError, match="'"):
            parse_overrides([wrong])


def test_json_is_read_fast_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1,\n 2')
    with pytest.raises(ConfigError, match=r"a.json:2: not readable as JSON"):
        read_yaml(path)
