"""A small world of its own for tests of the graph: a configuration, and Snakemake started in a folder beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def tiny_config() -> dict[str, Any]:
    """The configuration in `tiny.yaml`, to change at will."""
    config: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text(encoding="utf-8"))
    return config


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """Write a configuration beside the repository's dataset descriptions; returns its path."""
    place = folder / "config"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "datasets").exists():
        (place / "datasets").symlink_to(ROOT / "config" / "datasets")
    path = place / "test.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command(folder: Path, configfile: Path, arguments: Sequence[str], *, cores: int = 2) -> list[str]:
    """Snakemake on the repository's graph, working in `folder`."""
    return [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(folder),
        "--workflow-profile",
        str(ROOT / "profiles" / "default"),
        "--configfile",
        str(configfile),
        "--cores",
        str(cores),
        *arguments,
    ]


def environment() -> dict[str, str]:
    """Like a shell in which the project's environment is active."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def snakemake(
    folder: Path, configfile: Path, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake to its end; with `check`, a failure shows its output."""
    done = subprocess.run(
        command(folder, configfile, arguments), capture_output=True, text=True, env=environment(), check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
