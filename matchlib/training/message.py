"""What the ranks tell each other of a step, carried by the exchange of gradients itself.

A step needs losses, counts and wishes to stop from all ranks, and a NaN on one rank must stop the update on
all. An exchange of their own would be a second synchronisation per step. Instead they are the *gradient* of
a small parameter that belongs to nobody's weights: DistributedDataParallel averages it together with the
others, in a bucket that is sent anyway.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from matchlib.errors import TrainingError

SLOTS = 64
"""Numbers in a message, four of which are not losses."""
_COUNTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One step as all ranks saw it.

    values: losses and figures by name, means over the ranks; NaN if it is one on any rank
    drawn, unreadable: pairs tried, and those of them that could not be read, sums over the ranks
    stop:   some rank was asked to stop
    """

    values: Mapping[str, float]
    drawn: int
    unreadable: int
    stop: bool


def new_carrier(place: torch.device) -> nn.Parameter:
    """The parameter whose gradient is the message. It is in no optimiser and in no checkpoint."""
    return nn.Parameter(torch.zeros(SLOTS, device=place))


def pack(losses: Mapping[str, Tensor], *, drawn: int, unreadable: int, stop: bool) -> Tensor:
    """This rank's part as a vector (SLOTS,), float32, on the device of the losses, detached.

    losses: scalars by name, the same names in the same order on every rank. Raises TrainingError for too many.
    """
    if len(losses) > SLOTS - _COUNTS:
        raise TrainingError(
            f"training_step: expected at most {SLOTS - _COUNTS} losses and figures, got {len(losses)}; "
            f"leave out figures that validation can give"
        )
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    # Padded on the host, so that one copy to the device is enough.
    counts = [float(drawn), float(unreadable), float(stop), float(_checksum(losses))]
    padding = [0.0] * (SLOTS - _COUNTS - len(losses))
    return torch.cat([values, torch.tensor(padding + counts).to(values.device, non_blocking=True)])


def unpack(mean: Sequence[float], names: Sequence[str], *, ranks: int) -> Report:
    """Read the mean of the messages of so many ranks; `names` are this rank's losses, in order.

    Raises TrainingError if another rank has losses of other names: their means would be mixtures.
    """
    drawn, unreadable, stop, checksum = mean[SLOTS - _COUNTS : SLOTS]
    if abs(checksum - _checksum(names)) > 0.5:  # the mean of equal integers may be off by rounding only
        raise TrainingError(
            f"training_step: the processes have different losses, this one {', '.join(names)}; a process "
            f"without a value for one must still give it (a zero with a gradient, or a figure that is NaN)"
        )
    return Report(
        values=dict(zip(names, mean, strict=False)),
        drawn=round(drawn * ranks),
        unreadable=round(unreadable * ranks),
        stop=stop > 0,
    )


def _checksum(names: Iterable[str]) -> int:
    return zlib.crc32("\n".join(names).encode()) >> 12  # 20 bits: exact in float32, with room for a mean
