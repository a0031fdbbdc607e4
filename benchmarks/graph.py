"""Cost of planning: our graph on full GL3D (1,073 scenes, both stages, all evaluations) over a bare Snakemake graph.

    python benchmarks/graph.py [--scenes 1073] [--repeats 3]

The bare graph has the same jobs and the same number of inputs per job, but no configuration, parameters or logs: what
Snakemake itself needs. Measured: a dry run before anything exists, and a run after everything is finished. List files
are generated; no image is needed to plan.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from matchlib.datasets.gl3d import write_lists

ROOT = Path(__file__).parents[1]
EVALUATED = ["sift", "rootsift", "aslfeat-initial", "aslfeat-base", "aslfeat-dcn"]
PROTOCOLS = ["original", "superpoint-style", "loftr", "glue-factory-poselib"]

BARE = """
SCENES = [f"{{i:024x}}.set" for i in range({scenes})]
LABELS = {labels}
PROTOCOLS = {protocols}
rule all:
    input: "report.html"
rule extension:
    output: "extension"
    shell: "touch {{output}}"
rule index:
    output: "index/{{dataset}}"
    shell: "touch {{output}}"
rule match_set:
    input: "index/gl3d"
    output: "sets/{{scene}}"
    shell: "touch {{output}}"
rule job:
    input: "index/gl3d"
    output: "job/{{stage}}"
    shell: "touch {{output}}"
rule train:
    input:
        "job/{{stage}}", "extension", expand("sets/{{scene}}", scene=SCENES),
        lambda w: [] if w.stage == "base" else "weights/base"
    output: "weights/{{stage}}", "last/{{stage}}", "initial/{{stage}}", "history/{{stage}}", "marker/{{stage}}"
    shell: "touch {{output}}"
rule extract:
    input:
        "index/hpatches", "extension",
        lambda w: [] if "sift" in w.label else "initial/base" if "initial" in w.label else "weights/" + w.label[8:]
    output: "features/{{label}}"
    shell: "touch {{output}}"
rule evaluate:
    input: "index/hpatches", "features/{{label}}"
    output: "result/{{label}}", expand("homography/{{{{label}}}}/{{p}}", p=PROTOCOLS)
    shell: "touch {{output}}"
rule table:
    input: expand("result/{{l}}", l=LABELS), expand("homography/{{l}}/{{p}}", l=LABELS, p=PROTOCOLS)
    output: "table1", "table2", "table3", "table4"
    shell: "touch {{output}}"
rule report:
    input:
        "table1", "index/hpatches", expand("result/{{l}}", l=LABELS), expand("features/{{l}}", l=LABELS),
        expand("homography/{{l}}/{{p}}", l=LABELS, p=PROTOCOLS), expand("marker/{{s}}", s=["base", "dcn"])
    output: "report.html"
    shell: "touch {{output}}"
"""


def ours(folder: Path, scenes: int) -> list[str]:
    """Our graph on generated GL3D lists; validation scenes are the last five."""
    names = [f"{index:024x}" for index in range(scenes)]
    write_lists(folder / "gl3d", "comb", dict.fromkeys(names, 10), names[:-5], names[-5:])
    (folder / "hpatches").mkdir()
    config = yaml.safe_load((ROOT / "config/gl3d.yaml").read_text())
    config["datasets"]["gl3d"]["root"] = str(folder / "gl3d")
    config["datasets"]["hpatches"]["root"] = str(folder / "hpatches")
    for dataset in config["datasets"].values():
        dataset["source"] = str(ROOT / "config" / dataset["source"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for scene in names:  # the root counts as laid out once every scene has a folder
        (folder / "gl3d/data" / scene).mkdir(parents=True)
    return ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(folder / "config.yaml")]


def bare(folder: Path, scenes: int) -> list[str]:
    """The same jobs without anything around them."""
    text = BARE.format(scenes=scenes, labels=EVALUATED, protocols=PROTOCOLS)
    (folder / "Snakefile").write_text(text)
    return ["--snakefile", str(folder / "Snakefile")]


def finish(folder: Path, options: list[str]) -> None:
    """Make every planned output as if all jobs had run; `--touch` then dates them in the order of the jobs."""
    plan = run(folder, options, "-n", "--detailed-summary")
    for line in plan.splitlines():
        name = line.split("\t")[0]
        if "\t" in line and name != "output_file":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    run(folder, options, "--touch", "--forceall")


def run(folder: Path, options: list[str], *arguments: str) -> str:
    """Snakemake in `folder`; its standard output."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "1",
        "--scheduler",
        "greedy",
        *options,
        *arguments,
    ]
    command += ["--workflow-profile", "none", "--rerun-triggers", "input", "mtime", "params", "software-env"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def seconds(folder: Path, options: list[str], repeats: int, *arguments: str) -> float:
    """Shortest wall time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(folder, options, *arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1073)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measured = {}
        for name, make in (("bare", bare), ("matchlib", ours)):
            folder = Path(temporary) / name
            folder.mkdir()
            options = make(folder, arguments.scenes)
            planned = seconds(folder, options, arguments.repeats, "-n")
            finish(folder, options)
            if "Nothing to be done" not in run(folder, options):
                raise SystemExit(f"{name}: the finished graph still has jobs to run")
            measured[name] = (planned, seconds(folder, options, arguments.repeats))
    print(f"{arguments.scenes} scenes, best of {arguments.repeats}     bare   matchlib   ratio")
    for place, what in enumerate(("dry run, nothing there", "run, all finished")):
        plain, full = measured["bare"][place], measured["matchlib"][place]
        print(f"{what:<28} {plain:8.2f} s {full:8.2f} s {full / plain:7.2f}")


if __name__ == "__main__":
    main()
