"""One training over several processes: who am I, how many are we, and what do we agree on.

Ranks come from the environment that `torchrun` sets. With one process everything here is the identity.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from matchlib.errors import ConfigError
from matchlib.ops.reduce import all_reduce_max, all_reduce_sum, is_distributed

__all__ = [
    "all_reduce_max",
    "all_reduce_sum",
    "barrier",
    "gather_objects",
    "is_main",
    "local_world_size",
    "process_group",
    "rank",
    "share_object",
    "world_size",
]

T = TypeVar("T")


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if is_distributed() else 1


def local_world_size() -> int:
    """Number of those processes that run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_distributed() else 1


def is_main() -> bool:
    """True for the one process that writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        dist.barrier()


def share_object(value: T | None) -> T:
    """The value that process 0 passes, in every process; the others pass None. It must be picklable."""
    box: list[Any] = [value]
    if is_distributed():
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def gather_objects(value: T) -> list[T]:
    """The values of all processes, by rank. They must be picklable."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started; yield the device of this one. Without torchrun: just the
    device.

    device: "cpu" (gloo) or "cuda" (nccl; each process takes the GPU of its LOCAL_RANK). Raises ConfigError
    for a device that this machine lacks.
    """
    place = _own_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield place
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    # Naming the GPU lets barriers run before the first tensor reaches it; gloo refuses the argument.
    bound = {"device_id": place} if place.type == "cuda" else {}
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", **bound)  # type: ignore[arg-type]
    try:
        yield place
    finally:
        dist.destroy_process_group()


def _own_device(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device: expected cpu, cuda or cuda:<number>, got '{device}'") from error
    if place.type != "cuda":
        return place
    index = place.index if place.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device: '{device}' asks for GPU {index}, but this machine offers {torch.cuda.device_count()}; "
            f"use device cpu or fewer processes"
        )
    return torch.device("cuda", index)
