"""What benchmarks measure memory with, and how they write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def growth_mib(work: Callable[[], object]) -> int:
    """Growth of the resident high-water mark while `work` runs, in MiB; what came before is forgotten."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _high_water_kb()
    work()
    return (_high_water_kb() - before) // 1024


def _high_water_kb() -> int:
    """Of this program only; getrusage's figure is inherited from the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def own_process(script: str, *arguments: str) -> str:
    """What a Python script prints, in a process of its own."""
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write(text: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
