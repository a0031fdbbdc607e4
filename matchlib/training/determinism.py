"""A scope in which equal inputs give equal bits, as far as the device has such kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def reproducible(place: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Keep torch's global random state, and prefer deterministic kernels; everything is as before afterwards.

    Operations without a deterministic kernel run all the same, and torch warns of them once. On the CPU the
    number
    of threads matters too: sums are split by it.
    """
    cudnn = torch.backends.cudnn
    memory: Any = (
        torch.utils.deterministic
    )  # sets its attribute through a module class that stubs do not know
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            if deterministic:
                torch.use_deterministic_algorithms(True, warn_only=True)
                # Filling fresh memory finds bugs, not differences between correct runs, and costs a write of
                # each.
                memory.fill_uninitialized_memory = False
                cudnn.deterministic, cudnn.benchmark = True, False
                os.environ.setdefault(
                    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
                )  # cuBLAS reads it at its first call
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = before[2]
            cudnn.deterministic, cudnn.benchmark = before[3], before[4]
            if before[5] is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
