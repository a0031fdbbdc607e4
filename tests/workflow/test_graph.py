"""The graph itself, on a tiny world: from archives to a page, nothing to do twice, and kill -9 at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from graph import command, environment, snakemake, tiny_config, write_config

pytestmark = pytest.mark.slow

STAGES = [
    "aslfeat/base",
    "aslfeat/dcn",
    "msnet/descriptor",
    "posfeat/desc",
    "posfeat/kp",
    "superpoint/shapes",
    "superpoint/magicpoint",
    "superpoint/superpoint",
]
WEIGHTS = [f"results/train/{stage}/{name}.safetensors" for stage in STAGES for name in ("weights", "last")]


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in WEIGHTS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder in which the whole graph has run once, and its configuration."""
    folder = tmp_path_factory.mktemp("graph")
    path = write_config(folder, tiny_config())
    snakemake(folder, path)
    return folder, path


def test_the_graph_runs_from_archives_to_a_page(finished: tuple[Path, Path]) -> None:
    folder, _ = finished
    table = json.loads((folder / "results/hpatches/table.json").read_text())
    text = json.dumps(table)
    assert all(label in text for label in ("rootsift", "aslfeat-initial", "aslfeat-base", "aslfeat-dcn"))
    page = (folder / "results/report/index.html").read_text()
    pck = json.loads((folder / "results/pck/table.json").read_text())
    labels = {row["method"] for row in pck}
    assert {"rootsift", "msnet-descriptor", "msnet-descriptor-set", "superpoint-superpoint"} <= labels
    assert {row["protocol"] for row in pck} == {"as-coded", "as-described"}
    assert json.loads((folder / "results/pck/ablation.json").read_text())
    poses = json.loads((folder / "results/pose/table.json").read_text())
    assert {row["method"] for row in poses} == {"rootsift", "posfeat-kp"}
    assert {row["features_resize"] for row in poses} == {"long side 160"}
    assert "Matches of the best and the worst pairs" in page
    assert "aslfeat-dcn" in page and "<svg" in page and "data:image" in page
    assert (folder / "build/extension/build_info.json").is_file()
    assert not list(folder.glob("results/**/work"))


def test_a_second_run_has_nothing_to_do(finished: tuple[Path, Path]) -> None:
    assert "Nothing to be done" in (done := snakemake(*finished)).stdout + done.stderr


def test_a_changed_setting_of_extraction_extracts_again_and_trains_nothing(
    finished: tuple[Path, Path],
) -> None:
    settings = "runs={aslfeat: {settings: {inference: {max_keypoints: 150}}}}"
    plan = snakemake(*finished, "-n", "--config", settings).stdout
    assert "rule extract_features" in plan
    assert "rule train_stage" not in plan and "rule training_job" not in plan


def test_a_changed_setting_of_stage_two_leaves_stage_one_alone(finished: tuple[Path, Path]) -> None:
    plan = snakemake(*finished, "-n", "--config", "runs={aslfeat: {stages: {dcn: {steps: 5}}}}").stdout
    assert "dcn" in plan
    trained = [
        line
        for line in plan.splitlines()
        if "results/train/aslfeat/base/.complete" in line and "output" in line
    ]
    assert not trained


def test_what_verify_finds_missing_is_made_again_and_nothing_else(finished: tuple[Path, Path]) -> None:
    folder, path = finished
    place = next(folder.glob("results/match_sets/gl3d/*.set"))
    records = place / "records.f32"
    before = records.read_bytes()
    records.unlink()
    done = subprocess.run(
        ["matchlib", "verify", str(place)], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 1 and "records.f32: missing" in done.stdout
    marker = done.stdout.split()[-1]
    assert marker == str(place / ".complete")
    snakemake(folder, path, str(Path(marker).relative_to(folder)))
    assert records.read_bytes() == before
    again = snakemake(folder, path)
    assert "Nothing to be done" in again.stdout + again.stderr  # equal content: nothing is trained anew


def kill_at_random(folder: Path, path: Path, after_s: float) -> bool:
    """Start the graph and kill -9 its whole process group after a while; whether it was still running."""
    run = subprocess.Popen(
        command(folder, path, ["--nolock"]),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        run.wait(timeout=after_s)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_killed_again_and_again_it_ends_with_the_same_weights(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """kill -9 of the whole workflow at random moments, MATCHLIB_TEST_KILLS times (20 by default).

    Where it gets to its end in between, its weights are compared, thrown away, and made again.
    """
    kills = int(os.environ.get("MATCHLIB_TEST_KILLS", "20"))
    path = write_config(tmp_path, tiny_config())
    # Compiling takes longer than any of these lives, so nothing behind it would ever be reached.
    shutil.copytree(finished[0] / "build", tmp_path / "build")
    draw = random.Random(0)
    expected = digests(finished[0])
    done = 0
    while done < kills:
        if kill_at_random(tmp_path, path, draw.uniform(2.0, 12.0)):
            done += 1
        else:
            assert digests(tmp_path) == expected
            shutil.rmtree(tmp_path / "results" / "train")
            shutil.rmtree(tmp_path / "results" / "labels")
    snakemake(tmp_path, path, "--nolock")
    assert digests(tmp_path) == expected
    assert not list(tmp_path.glob("results/**/lease.json"))
