"""Start one training over several GPUs (or CPU processes) of this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from matchlib.training.signals import EXIT_INTERRUPTED


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
    """Run `python <command>` in so many processes and wait; signals are passed on.

    Returns the exit status, 75 if it was asked to stop and the state is saved (torchrun itself would say 1).
    """
    is_stopping = False
    child = subprocess.Popen(torchrun_command(command, processes=processes), start_new_session=True)

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
