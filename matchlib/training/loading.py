"""Reading pairs ahead of the training step, in other processes, in an order that is fixed beforehand."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset

from matchlib.errors import DataError, TrainingError
from matchlib.training.sampler import SampleAddress, replacement

_ATTEMPTS = 10  # below the allowed share of unreadable pairs, ten failures in a row do not happen by chance


class Batch(Protocol):
    """What the trainer asks of a batch; `matchlib.datasets.batch.PairBatch` is one. Must be picklable."""

    @property
    def names(self) -> tuple[str, ...]:
        """One name per pair, for messages."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: Any, *, non_blocking: bool = False) -> Any:
        """The same batch on a device."""
        ...

    @staticmethod
    def stack(batches: list[Any]) -> Any:
        """Join batches."""
        ...


class PairSource(Protocol):
    """Pairs by index. Must be picklable and free of open files, because other processes read from it.

    digest: changes whenever the pairs change; a run is not resumed on other data
    """

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def load(self, index: int, seed: int) -> Any:
        """A batch of one pair. All random draws come from `seed`. Raises DataError for an unreadable pair."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBatch:
    """A batch and what it took to read it.

    batch:      None if a pair and all its replacements were unreadable; `BatchStream` raises then
    drawn:      pairs that were tried
    unreadable: one message for each of them that could not be read
    """

    batch: Any
    drawn: int
    unreadable: tuple[str, ...]


class BatchStream:
    """Batches in the order of their addresses, read ahead by `workers` processes (0: read when asked for).

    The processes start with the stream, not with the first batch: they are forks, and must be taken before
    the training has threads of its own. Use as a context manager. Raises TrainingError if a process dies or
    no pair can be read, and whatever else `source.load` raises.
    """

    def __init__(
        self, source: PairSource, addresses: Iterable[Sequence[SampleAddress]], *, seed: int, workers: int
    ) -> None:
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", _Reader(source, seed)),
            batch_sampler=cast("Any", addresses),
            collate_fn=_collate,
            num_workers=workers,
            worker_init_fn=_prepare_worker if workers else None,
            prefetch_factor=2 if workers else None,
        )
        self._batches: Iterator[LoadedBatch] | None = iter(loader)

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._batches = None  # the last reference: torch ends the processes

    def next(self) -> LoadedBatch:
        """The next batch; waits for it."""
        if self._batches is None:
            raise TrainingError("the stream of batches is closed")
        try:
            loaded = next(self._batches)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):  # torch's wording for a dead process
                raise
            raise TrainingError(
                f"a process that reads training pairs died ({error}); the usual cause is too little memory: "
                f"lower `workers` or `image_size`, and run again to resume"
            ) from error
        if loaded.batch is None:
            raise TrainingError(
                f"{_ATTEMPTS} training pairs in a row cannot be read, the last: {loaded.unreadable[-1]}; "
                f"check the dataset (matchlib verify) before training again"
            )
        return loaded


class _Reader:
    """One pair per address, another one where it cannot be read. A map-style dataset over addresses."""

    def __init__(self, source: PairSource, seed: int) -> None:
        self._source = source
        self._seed = seed

    def __getitem__(self, address: SampleAddress) -> LoadedBatch:
        unreadable: list[str] = []
        chosen = address
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                batch = self._source.load(chosen.index, chosen.seed)
                return LoadedBatch(batch=batch, drawn=attempt, unreadable=tuple(unreadable))
            except DataError as error:
                unreadable.append(f"pair {chosen.index}: {error}")
                chosen = replacement(address, count=len(self._source), seed=self._seed, attempt=attempt)
        return LoadedBatch(batch=None, drawn=_ATTEMPTS, unreadable=tuple(unreadable))


def _collate(samples: list[LoadedBatch]) -> LoadedBatch:
    batches = [sample.batch for sample in samples]
    is_whole = all(batch is not None for batch in batches)
    return LoadedBatch(
        batch=type(batches[0]).stack(batches) if is_whole else None,
        drawn=sum(sample.drawn for sample in samples),
        unreadable=tuple(message for sample in samples for message in sample.unreadable),
    )


def _prepare_worker(_: int) -> None:
    """One thread per process, and stopping is left to the trainer: Ctrl-C signals the whole group, but the step
    in hand needs its data."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
