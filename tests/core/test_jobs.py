"""What a training job hands on: the limits of the configuration, names of photographs, digests of files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from matchlib.completion import MARKER, digest_file
from matchlib.config import DatasetConfig, RunConfig
from matchlib.datasets.images import write_image
from matchlib.datasets.types import Supervision
from matchlib.errors import ConfigError, DataError
from matchlib.jobs import training
from matchlib.jobs.data import index_dataset, read_index
from matchlib.match_sets.config import MatchSetConfig
from matchlib.match_sets.opened import MatchSetSource
from matchlib.methods.spec import StageSpec
from matchlib.training.config import StageConfig
from matchlib.typed_yaml import merged, parse_overrides, read_yaml
from matchlib.workflow import match_set_folder

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


def pairs_of(tmp_path: Path, dataset: str = "gl3d", **fields: Any) -> training.PairsOf:
    """A dataset with finished match sets (in name only) of the scenes that it trains and validates on."""
    group = training.PairsOf(
        dataset=dataset,
        format="gl3d",
        root=str(tmp_path),
        match_sets=str(tmp_path / "sets" / dataset),
        min_rotation_deg=7.0,
        max_rot_diff_deg=11.0,
        **{"train": ("s",), "validation": (), **fields},
    )
    for scene in (*group.train, *group.validation):
        folder = Path(group.match_sets) / match_set_folder(scene)
        folder.mkdir(parents=True)
        (folder / MARKER).write_text("{}")
    return group


class SeenPairs:
    """Stands for a kind of pairs, and keeps what it was given."""

    def __init__(self, sources: list[MatchSetSource], *, size: tuple[int, int]) -> None:
        self.sources, self.size = sources, size


class SeenPosePairs(SeenPairs):
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchlib.match_sets.pairs.DepthPosePairs", SeenPairs)
    monkeypatch.setattr("matchlib.match_sets.pairs.PosePairs", SeenPosePairs)


def job_of(*pairs: training.PairsOf, method: str = "m", stage: str = "s") -> training.TrainingJob:
    config = StageConfig(steps=1, image_size=(8, 16))
    return training.TrainingJob(run="r", method=method, stage=stage, seed=0, config=config, pairs=pairs)


@dataclass(frozen=True)
class Settings:
    max_rotation_deg: float


def test_nothing_to_validate_on_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = DatasetConfig(source="photos.yaml", root=str(photographs(tmp_path / "photos", 4)))
    index_dataset(
        "photos",
        settings,
        source=ROOT / "config/datasets/photos.yaml",
        unpacked=None,
        out=tmp_path / "i.json",
    )
    assert not read_index(tmp_path / "i.json").validation
    assert "photos: nothing to validate on" in caplog.text


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(
    ("needs", "settings", "kind", "limit"),
    [
        ("depth_pose", None, SeenPairs, 180.0),
        ("depth_pose", Settings(50.0), SeenPairs, 180.0),
        ("pose", None, SeenPosePairs, 80.0),
        ("pose", Settings(50.0), SeenPosePairs, 50.0),
    ],
)
def test_limits_reach_the_pairs_that_a_stage_needs(
    tmp_path: Path, needs: Supervision, settings: Settings | None, kind: type, limit: float
) -> None:
    job, stage = job_of(pairs_of(tmp_path)), StageSpec(needs=needs, metric="x")
    pairs: Any = training.pairs_of(job, stage, settings, "train")
    assert type(pairs) is kind and pairs.size == (8, 16)
    (source,) = pairs.sources
    assert (source.min_rotation_deg, source.max_rot_diff_deg) == (7.0, 11.0)
    assert source.max_rotation_deg == limit and source.folder.name == "s.set"
    assert MatchSetConfig().min_rotation_deg != 7.0
    assert training.pairs_of(job, stage, settings, "validation") is None


def test_unfinished_match_sets_are_named(tmp_path: Path) -> None:
    group = replace(pairs_of(tmp_path), train=("s", "other"))
    stage = StageSpec(needs="pose", metric="x")
    with pytest.raises(DataError, match=r"other.set: match set not finished; run: snakemake match_sets_all"):
        training.pairs_of(job_of(group), stage, None, "train")


def test_no_scene_is_trained_and_validated_on(tmp_path: Path) -> None:
    both = {"train": ("a", "b"), "validation": ("c",)}
    first, second = pairs_of(tmp_path, "one", **both), pairs_of(tmp_path, "two", **both)
    assert job_of(first, second).pairs == (first, second)
    swapped = replace(second, train=("a",), validation=("c", "b"))
    with pytest.raises(
        ConfigError, match="scene b of .*: .* 'one' trains and dataset 'two' validates; give both"
    ):
        job_of(first, swapped)
    with pytest.raises(ConfigError, match="'one' trains and dataset 'one' validates"):
        job_of(replace(first, validation=("a",)))
    elsewhere = replace(swapped, root=str(tmp_path / "other"))
    assert job_of(first, elsewhere).pairs[1] is elsewhere
    good = tmp_path / "job.json"
    training.write_training_job(job_of(first, second), good)
    assert training.read_training_job(good) == job_of(first, second)
    bad = tmp_path / "bad.json"
    bad.write_text(good.read_text().replace('"c"', '"a"'))
    with pytest.raises(ConfigError, match=r"bad.json: .*scene a of"):
        training.read_training_job(bad)


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
