"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import matchlib


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Folder of real sample data by name, below $MATCHLIB_SHARED_DATA or ../shared/data; skips where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("MATCHLIB_SHARED_DATA", default))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real sample data not found: {root / name} (set MATCHLIB_SHARED_DATA)")
        return root / name

    return folder


@pytest.fixture
def two_processes() -> Callable[[str, Path], list[Any]]:
    """Run a script in two processes, with rank and folder as arguments; what each saved as `<rank>.pt`."""

    def run(script: str, folder: Path) -> list[Any]:
        import torch

        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(matchlib.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
        }
        commands = [[sys.executable, script, str(rank), str(folder)] for rank in range(2)]
        workers = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
        for worker in workers:
            _, errors = worker.communicate(timeout=100)
            assert worker.returncode == 0, errors
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return run
