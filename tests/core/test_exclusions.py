"""Scenes that benchmarks test on: never trained on unless the configuration says so aloud."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchlib.config import DatasetConfig
from matchlib.datasets.caps_megadepth import write_cameras, write_pairs
from matchlib.datasets.images import write_image
from matchlib.datasets.types import Camera
from matchlib.downloads.config import DatasetSource, read_source
from matchlib.errors import ConfigError
from matchlib.jobs.data import DatasetIndex, index_dataset, read_index
from matchlib.subsets import list_subsets, select_scenes
from matchlib.workflow_checks import load_workflow

ROOT = Path(__file__).parents[2]
DESCRIPTION = ROOT / "config" / "datasets" / "caps_megadepth.yaml"
# Written down here once more, from the benchmarks' own lists.
IMC = {"0008", "0021", "0024", "0063", "1589"}
MEGADEPTH_1500 = {"0015", "0022"}
ALL = IMC | MEGADEPTH_1500 | {"0019", "0025", "0078"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All excluded scenes and eight others, as upstream's archive has them."""
    root = tmp_path_factory.mktemp("caps")
    names = sorted(ALL | {f"{number:04d}" for number in range(1, 8)} | {"5000"})
    one = Camera(K=np.eye(3), T_world_to_cam=np.eye(4), size=(16, 12))
    for name in names:
        aligned = root / "train" / name / "dense0" / "aligned"
        write_cameras(aligned / "img_cam.txt", {"a.jpg": one, "b.jpg": one})
        write_pairs(aligned / "pairs.txt", [("a.jpg", "b.jpg")])
        write_image(aligned / "images" / "a.jpg", np.zeros((12, 16, 3), np.uint8))
    return root


def index(root: Path, tmp_path: Path, source: Path = DESCRIPTION, **settings: Any) -> DatasetIndex:
    config = DatasetConfig(source=str(source), root=str(root), train_split="train", **settings)
    index_dataset("caps", config, source=source, unpacked=None, out=tmp_path / "caps.json")
    return read_index(tmp_path / "caps.json")


def described(tmp_path: Path, extra: str) -> Path:
    path = tmp_path / "described.yaml"
    path.write_text(DESCRIPTION.read_text() + extra)
    return path


def test_by_default_no_benchmark_scene_is_used(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = index(root, tmp_path)
    assert set(found.train) & (IMC | MEGADEPTH_1500) == set()
    assert set(found.train) | set(found.validation) == {f"000{n}" for n in range(1, 8)} | {"5000"}
    assert set(found.excluded["imc"]) == IMC
    assert set(found.excluded["megadepth_1500"]) == MEGADEPTH_1500
    assert set().union(*found.excluded.values()) == ALL
    assert (
        "caps: 10 scenes are never used: imc 5, phototourism 6, glue_factory_clean 7, megadepth_1500 2"
        in caplog.text
    )
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_lists_are_chosen_by_name_and_none_only_with_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_upstream = index(root, tmp_path, exclude=("imc",))
    assert set(as_upstream.train) | set(as_upstream.validation) >= MEGADEPTH_1500
    assert not set(as_upstream.train) & IMC
    assert list(as_upstream.excluded) == ["imc"]
    assert "exclude leaves off phototourism, glue_factory_clean, megadepth_1500" in caplog.text
    nothing = index(root, tmp_path, exclude=())
    assert set(nothing.train) | set(nothing.validation) >= ALL
    assert nothing.excluded == {}
    assert "exclude leaves off imc, phototourism" in caplog.text


def test_unknown_lists_are_refused_before_anything_runs(root: Path) -> None:
    dataset = {"source": "datasets/caps_megadepth.yaml", "root": str(root), "exclude": ["ims"]}
    with pytest.raises(ConfigError, match=r"datasets\.caps\.exclude: .* no list 'ims' \(known: imc, photo"):
        load_workflow({"datasets": {"caps": dataset}}, where="config.yaml", folder=ROOT / "config")
    with pytest.raises(ConfigError, match="this name is taken"):
        DatasetSource(
            name="a",
            format="gl3d",
            licence="",
            homepage="",
            status="gone",
            exclusions={"exclude_scenes": ("s",)},
        )


def test_a_written_list_with_a_benchmark_scene_is_an_error_that_names_it(root: Path, tmp_path: Path) -> None:
    source = described(tmp_path, 'scenes: ["0001", "0015", "0002"]\n')
    dataset = {"source": source.name, "root": str(root)}
    config = {"datasets": {"caps": dataset}}
    workflow = load_workflow(config, where="config.yaml", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"holds 0015, which the exclusions 'megadepth_1500' keep"):
        workflow.static_scenes("caps")
    dataset["exclude"] = ["imc"]  # type: ignore[assignment]
    allowed = load_workflow(config, where="config.yaml", folder=tmp_path).static_scenes("caps")
    assert allowed == {"train": ("0001", "0002", "0015"), "validation": ()}


def test_a_split_file_with_a_benchmark_scene_is_an_error_too(tmp_path: Path) -> None:
    for name in ("s1", "s2", "s3"):
        (tmp_path / name / "cams").mkdir(parents=True)
        (tmp_path / name / "cams" / "pair.txt").write_text("0\n")
    (tmp_path / "BlendedMVS_training.txt").write_text("s1\ns2\n")
    source = DatasetSource(
        name="a", format="blendedmvs", licence="", homepage="", status="gone", exclusions={"test": ("s2",)}
    )

    def subsets(split: str) -> dict[str, tuple[str, ...]]:
        return list_subsets(
            source,
            tmp_path,
            format_name="blendedmvs",
            train_split=split,
            validation_split=None,
            max_validation=1,
        )

    with pytest.raises(ConfigError, match=r"training scenes holds s2, which the exclusions 'test'"):
        subsets("train")
    assert subsets("all")["train"] == ("s1", "s3")  # folders that are there were not chosen by anybody


def test_named_lists_do_not_validate_and_the_old_key_works_as_before() -> None:
    def source(**lists: Any) -> DatasetSource:
        return DatasetSource(name="a", format="gl3d", licence="", homepage="", status="gone", **lists)

    named = select_scenes(source(exclusions={"test": ("s2",)}), ["s1", "s3"], ["s2", "s3"], 5)
    assert named == {"train": ("s1",), "validation": ("s3",)}
    old = source(exclude_scenes=("s2",))
    assert select_scenes(old, ["s1", "s2"], ["s2"], 5, is_list=True) == {
        "train": ("s1",),
        "validation": ("s2",),
    }
    assert select_scenes(old, ["s1", "s2"], [], 5, exclude=())["train"] == ("s1", "s2")
    assert select_scenes(old, ["s1", "s2"], [], 5, exclude=("exclude_scenes",))["train"] == ("s1",)


def test_the_description_names_what_to_do_when_the_archive_is_gone() -> None:
    source = read_source(DESCRIPTION)
    assert source.status == "unverified"
    assert "matchlib caps-dataset --colmap" in (source.substitute or "")
    (archive,) = source.archives
    assert archive.file_names() == ("CAPS-MegaDepth-release-light.tar",)
    assert archive.total_bytes() == 13_000_000_000
