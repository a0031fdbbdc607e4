"""The graph as a plan: every target resolves, faults stop before it, and a finished graph has nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from graph import ROOT, snakemake, tiny_config, write_config

from matchlib.datasets.gl3d import write_lists

TARGETS = [
    "all",
    "download_all",
    "match_sets_all",
    "build_extension",
    "train_all",
    "extract_all",
    "evaluate_hpatches",
    "evaluate_pck",
    "evaluate_all",
    "report",
]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_planned(tmp_path: Path, target: str) -> None:
    done = snakemake(tmp_path, write_config(tmp_path, tiny_config()), "-n", target)
    assert "total" in done.stdout


@pytest.mark.parametrize("name", ["config.yaml", "blendedmvs.yaml", "gl3d.yaml"])
def test_every_shipped_configuration_can_be_planned(tmp_path: Path, name: str) -> None:
    assert "write_report" in snakemake(tmp_path, ROOT / "config" / name, "-n").stdout


def test_an_unknown_key_stops_with_one_line_before_anything_runs(tmp_path: Path) -> None:
    config = tiny_config()
    config["runs"]["aslfeat"]["stages"]["base"]["lr"] = 0.1
    done = snakemake(tmp_path, write_config(tmp_path, config), check=False)
    assert done.returncode != 0
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "unknown key" in line]
    assert len(complaints) == 1 and "runs.aslfeat.stages.base.lr" in complaints[0]
    assert "learning_rate" in complaints[0]
    assert not (tmp_path / "results").exists()


def test_a_single_key_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    path = write_config(tmp_path, tiny_config())
    change = "runs={aslfeat: {stages: {base: {steps: none}}}}"
    done = snakemake(tmp_path, path, "-n", "--config", change, check=False)
    assert "runs.aslfeat.stages.base.steps: expected an integer" in done.stdout + done.stderr
    assert snakemake(
        tmp_path, path, "-n", "--config", change.replace("none", "'7'"), "regenerate=true"
    ).stdout


def test_any_key_can_be_set_by_its_dotted_name(tmp_path: Path) -> None:
    path = write_config(tmp_path, tiny_config())
    change = "set=runs.msnet.stages.descriptor.steps=none runs.superpoint.label_shards=3"
    done = snakemake(tmp_path, path, "-n", "--config", change, check=False)
    assert "runs.msnet.stages.descriptor.steps: expected an integer" in done.stdout + done.stderr
    plan = snakemake(tmp_path, path, "-n", "--config", change.replace("none", "9")).stdout
    assert "results/labels/superpoint/shapes/coco_superpoint/3-shards/2/.complete" in plan
    done = snakemake(tmp_path, path, "-n", "--config", "set=runs.msnet.seed", check=False)
    assert "expected KEY=VALUE" in done.stdout + done.stderr


def test_photographs_are_labelled_between_the_stages(tmp_path: Path) -> None:
    plan = snakemake(
        tmp_path, write_config(tmp_path, tiny_config()), "-n", "results/train/superpoint/magicpoint/.complete"
    ).stdout
    labelled = [line for line in plan.splitlines() if "output: results/labels/" in line]
    assert sorted(line.split("/")[-2] for line in labelled) == ["0", "1"]
    assert all("superpoint/shapes/coco_superpoint/2-shards" in line for line in labelled)
    assert "results/train/superpoint/superpoint" not in plan and "match_sets" not in plan


def test_retrieved_pairs_come_after_the_features_of_one_label(tmp_path: Path) -> None:
    config = tiny_config()
    config["baselines"]["sift"] = {"method": "sift"}
    config["evaluate_eth"] |= {"protocol": {"pairs": "retrieval"}, "retrieval": {"features": "sift"}}
    config["evaluate_aachen"] |= {"protocol": {"variant": "retrieval"}, "retrieval": {"features": "sift"}}
    path = write_config(tmp_path, config)
    plan = snakemake(tmp_path, path, "-n", "evaluate_eth", "evaluate_aachen").stdout
    assert " eth_pairs " not in plan and " localisation_plan " not in plan
    for made, needed in (
        ("results/eth/Fountain/pairs.txt", "results/features/eth-Fountain/sift.h5"),
        ("results/aachen/retrieved.txt", "results/features/localisation-aachen/sift.h5"),
        ("results/aachen/plan/.complete", "results/aachen/retrieved.txt"),
    ):
        (job,) = [job for job in plan.split("\n\n") if f"output: {made}" in job]
        assert needed in job
    assert "output: results/eth/Fountain/sift/" not in plan  # extracted, not evaluated
    del config["evaluate_eth"]["protocol"], config["evaluate_eth"]["retrieval"]
    before = snakemake(tmp_path, write_config(tmp_path, config), "-n", "evaluate_eth").stdout
    assert "eth_images" not in before and "eth_pairs " in before


def test_gl3d_used_in_place_is_planned_from_its_lists_alone(tmp_path: Path) -> None:
    names = [f"{index:024x}" for index in range(12)]  # 24 zeros is a real scene, and Snakemake dislikes it
    write_lists(tmp_path / "gl3d", "comb", dict.fromkeys(names, 10), names[:-2], names[-2:])
    config = yaml.safe_load((ROOT / "config" / "gl3d.yaml").read_text())
    config["datasets"]["gl3d"]["root"] = str(tmp_path / "gl3d")
    plan = snakemake(tmp_path, write_config(tmp_path, config), "-n", "match_sets_all").stdout
    assert all(f"results/match_sets/gl3d/{name}.set/.complete" in plan for name in names)
    assert "download_archive" not in plan
