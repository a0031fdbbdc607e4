"""Which pair is seen when: a function of (seed, position), so that order needs no state and no replay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from matchlib.errors import TrainingError
from matchlib.randomness import address_seed, generator_for


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAddress:
    """One draw of one pair.

    epoch: pass over the data, from 0; the validation set is epoch -1
    index: pair within the source
    seed:  63-bit seed of every random draw for this pair in this epoch
    """

    epoch: int
    index: int
    seed: int


@dataclass(slots=True, kw_only=True)
class AddressedSampler:
    """The order of `count` pairs: in each epoch a permutation drawn from (seed, epoch).

    Position p of the endless sequence of pairs lies in epoch p // count. The global batch of step s takes the
    positions s*batch_size ... (s+1)*batch_size - 1, of which each rank takes a contiguous part: the sequence
    does not depend on the number of ranks or workers. A batch may span two epochs, so no pair is dropped.
    Raises TrainingError if there are no pairs.
    """

    count: int
    seed: int
    _epoch: int = field(default=-1, init=False, repr=False)
    _order: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, np.int64), init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.count < 1:
            raise TrainingError(
                "training pairs: expected at least 1, got 0; look for dropped pairs in the match sets"
            )

    def at(self, position: int) -> SampleAddress:
        """The pair at a position of the endless sequence."""
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:  # one permutation is kept: a batch touches two epochs at most
            self._order = generator_for(self.seed, epoch, "order").permutation(self.count)
            self._epoch = epoch
        index = int(self._order[place])
        return SampleAddress(epoch=epoch, index=index, seed=address_seed(self.seed, epoch, index, "sample"))

    def batches(
        self, *, first_step: int, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[SampleAddress, ...]]:
        """This rank's part of the batches of steps first_step, first_step + 1, ... without end."""
        share = batch_size // world_size
        step = first_step
        while True:
            start = step * batch_size + rank * share
            yield tuple(self.at(position) for position in range(start, start + share))
            step += 1


def validation_batches(
    *, count: int, pairs: int, seed: int, batch_size: int, rank: int, world_size: int
) -> list[tuple[SampleAddress, ...]]:
    """This rank's batches of one validation: `pairs` of `count` pairs, drawn once from the seed.

    Every pair lies on exactly one rank; a rank may get fewer batches than another, even none.
    """
    chosen = generator_for(seed, "validation").permutation(count)[:pairs]
    addresses = [
        SampleAddress(epoch=-1, index=int(index), seed=address_seed(seed, "validation", int(index)))
        for index in chosen
    ]
    share = batch_size // world_size
    batches = [tuple(addresses[start : start + share]) for start in range(0, len(addresses), share)]
    return batches[rank::world_size]


def replacement(address: SampleAddress, *, count: int, seed: int, attempt: int) -> SampleAddress:
    """Another pair for one that cannot be read; attempt counts from 1. The same one on every machine."""
    index = int(generator_for(seed, address.epoch, address.index, "replacement", attempt).integers(count))
    sample_seed = address_seed(seed, address.epoch, address.index, "replacement", attempt, "sample")
    return SampleAddress(epoch=address.epoch, index=index, seed=sample_seed)
