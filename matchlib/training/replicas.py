"""What the ranks of one training share and what is each one's own.

Weights are equal on all ranks, bit for bit, because their gradients are. Statistics (float buffers, such as
the running means of a batch norm over each process's own share) may differ. They stay as they are while the
training goes on, so that the moment of a checkpoint or of a stop leaves no trace in the result; where the
model is looked at (validation, files of weights), it holds their mean over the ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from matchlib.completion import digest_bytes
from matchlib.errors import TrainingError
from matchlib.training.distributed import all_reduce_sum, gather_objects, rank, world_size


@contextlib.contextmanager
def averaged_statistics(module: nn.Module) -> Iterator[None]:
    """While entered, the float buffers that differ between the ranks hold their mean; each rank's own come
    back afterwards.

    All ranks enter together. A mean of running means is the running mean over the whole batch; a mean of
    variances lacks the part between the shares, which training with each process's own statistics never
    sees either. Raises TrainingError for buffers of other types that differ: a counter has no mean.
    """
    buffers = dict(module.named_buffers())
    names = _different(buffers.items())
    counters = [name for name in names if not buffers[name].is_floating_point()]
    if counters:
        raise TrainingError(
            f"buffer '{counters[0]}' ({buffers[counters[0]].dtype}) differs between the training processes; "
            f"only float statistics may, so count steps, not what one process saw"
        )
    own = {name: buffers[name].clone() for name in names}
    if names:
        _average([buffers[name] for name in names])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in own.items():
                buffers[name].copy_(value)


def own_statistics(module: nn.Module) -> list[dict[str, Tensor]]:
    """By rank, the buffers that differ between the ranks, for a checkpoint; empty if none does.

    All ranks call it together.
    """
    buffers = dict(module.named_buffers())
    names = _different(buffers.items())
    return gather_objects({name: buffers[name].cpu() for name in names}) if names else []


def restore_statistics(module: nn.Module, statistics: Sequence[Mapping[str, Tensor]]) -> None:
    """Take this rank's part of `own_statistics` back. With another number of ranks than there was, the module
    is left with the means that it was loaded with."""
    if len(statistics) != world_size():
        return
    buffers = dict(module.named_buffers())
    for name, value in statistics[rank()].items():
        buffers[name].copy_(value)


def check_equal_weights(module: nn.Module) -> None:
    """Raise TrainingError unless all ranks hold the same weights. All ranks call it together."""
    names = _different(module.named_parameters())
    if names:
        raise TrainingError(
            f"'{names[0]}' differs between the training processes ({len(names)} parameters do); "
            f"start from the last checkpoint, with the same library versions on all machines"
        )


@torch.no_grad()
def _average(tensors: Sequence[Tensor]) -> None:
    """Replace each by its mean over the ranks, in one exchange."""
    # float64: numbers that are equal on all ranks stay what they are, to the last bit.
    means = all_reduce_sum(torch.cat([tensor.double().flatten() for tensor in tensors])) / world_size()
    for tensor, mean in zip(
        tensors, means.split_with_sizes([tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(mean.view_as(tensor))


def _different(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that are not the same bits on all ranks."""
    if world_size() == 1:
        return []
    digests = {name: digest_bytes(_raw(tensor)) for name, tensor in tensors}
    everywhere = gather_objects(digests)
    return [name for name, digest in digests.items() if any(other[name] != digest for other in everywhere)]


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())
