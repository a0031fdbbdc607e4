"""Start one training over several GPUs (or CPU processes) of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from matchlib.training.signals import EXIT_INTERRUPTED


def available_cores() -> int:
    """Processor cores that this process may use (fewer than the machine has, under a scheduler)."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shared_environment(environment: Mapping[str, str], *, processes: int, cores: int) -> dict[str, str]:
    """The environment for `processes` on `cores`: an equal share of the threads each, at least one.

    torchrun alone would give each process one thread. A smaller OMP_NUM_THREADS that is already set stays.
    """
    share = max(1, cores // processes)
    wanted = environment.get("OMP_NUM_THREADS", "")
    threads = min(share, int(wanted)) if wanted.isdecimal() and int(wanted) >= 1 else share
    return {**environment, "OMP_NUM_THREADS": str(threads)}


def torchrun_command(command: Sequence[str], *, processes: int) -> list[str]:
    """The command that runs `python <command>` in so many processes that train together (one per GPU)."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    return [*launcher, *command]


def run_processes(command: Sequence[str], *, processes: int) -> int:
    """Run `python <command>` in so many processes and wait; signals are passed on. They share the cores equally.

    Returns the exit status, 75 if it was asked to stop and the state is saved (torchrun itself would say 1).
    """
    is_stopping = False
    child = subprocess.Popen(
        torchrun_command(command, processes=processes),
        env=shared_environment(os.environ, processes=processes, cores=available_cores()),
        start_new_session=True,
    )

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal is_stopping
        is_stopping = True
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_INTERRUPTED if is_stopping and status != 0 else status
