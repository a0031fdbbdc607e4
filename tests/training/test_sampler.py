from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_training import ToySource

from matchlib.errors import TrainingError
from matchlib.training.loading import BatchStream
from matchlib.training.sampler import AddressedSampler, replacement, validation_batches


@given(count=st.integers(1, 60), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 3))
def test_each_epoch_visits_each_pair_once(count: int, seed: int, epoch: int) -> None:
    sampler = AddressedSampler(count=count, seed=seed)
    addresses = [sampler.at(position) for position in range(epoch * count, (epoch + 1) * count)]
    assert sorted(address.index for address in addresses) == list(range(count))
    assert {address.epoch for address in addresses} == {epoch}
    assert len({address.seed for address in addresses}) == count


@given(
    count=st.integers(1, 40),
    share=st.integers(1, 4),
    ranks=st.integers(1, 4),
    first_step=st.integers(0, 50),
)
def test_ranks_together_take_the_sequence_of_one_process_from_any_step(
    count: int, share: int, ranks: int, first_step: int
) -> None:
    batch_size = share * ranks
    one = AddressedSampler(count=count, seed=5)
    alone = [one.at(position) for position in range(first_step * batch_size, (first_step + 3) * batch_size)]
    parts = [
        AddressedSampler(count=count, seed=5).batches(
            first_step=first_step, batch_size=batch_size, rank=rank, world_size=ranks
        )
        for rank in range(ranks)
    ]
    together = [
        address
        for step in zip(*(islice(part, 3) for part in parts), strict=True)
        for b in step
        for address in b
    ]
    assert together == alone


def test_epochs_differ_in_order_and_in_the_seeds_of_the_same_pair() -> None:
    sampler = AddressedSampler(count=50, seed=1)
    first = {sampler.at(p).index: sampler.at(p).seed for p in range(50)}
    second = {sampler.at(p).index: sampler.at(p).seed for p in range(50, 100)}
    assert list(first) != list(second)
    assert all(first[index] != second[index] for index in range(50))
    assert [AddressedSampler(count=50, seed=2).at(p).index for p in range(50)] != list(first)


@given(count=st.integers(1, 30), pairs=st.integers(1, 40), share=st.integers(1, 3), ranks=st.integers(1, 4))
def test_validation_pairs_lie_on_exactly_one_rank(count: int, pairs: int, share: int, ranks: int) -> None:
    def indices(ranks: int) -> list[int]:
        batches = [
            validation_batches(
                count=count, pairs=pairs, seed=2, batch_size=share * ranks, rank=rank, world_size=ranks
            )
            for rank in range(ranks)
        ]
        return sorted(address.index for part in batches for batch in part for address in batch)

    assert len(set(indices(ranks))) == len(indices(ranks)) == min(count, pairs)
    assert indices(ranks) == indices(1)


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(TrainingError, match="at least 1, got 0"):
        AddressedSampler(count=0, seed=0)


def _read(
    source: ToySource, *, workers: int, first_step: int = 0, steps: int = 6
) -> list[tuple[object, ...]]:
    batches = AddressedSampler(count=len(source), seed=9).batches(
        first_step=first_step, batch_size=3, rank=0, world_size=1
    )
    with BatchStream(source, batches, seed=9, workers=workers) as stream:
        loaded = [stream.next() for _ in range(steps)]
    return [
        (x.batch.names, x.batch.seeds, x.drawn, x.unreadable, float(x.batch.image1.sum())) for x in loaded
    ]


def test_batches_do_not_depend_on_the_number_of_workers_nor_on_where_reading_begins() -> None:
    source = ToySource(count=8, broken=frozenset({2, 5}))
    alone = _read(source, workers=0)
    assert _read(source, workers=1) == alone
    assert _read(source, workers=2) == alone
    assert _read(source, workers=2, first_step=4, steps=2) == alone[4:]


def test_an_unreadable_pair_is_replaced_by_the_same_other_one_and_named() -> None:
    batches = _read(ToySource(count=8, broken=frozenset({2})), workers=0, steps=8)
    messages = [message for _, _, _, unreadable, _ in batches for message in unreadable]  # type: ignore[attr-defined]
    assert messages == ["pair 2: pair2.jpg: expected an image, got nothing"] * len(messages)
    assert len(messages) >= 3  # 24 draws are three epochs
    assert all("pair2" not in names and len(names) == 3 for names, *_ in batches)  # type: ignore[arg-type, operator]
    assert sum(drawn for _, _, drawn, _, _ in batches) == 24 + len(messages)  # type: ignore[misc]


@settings(max_examples=20)
@given(attempt=st.integers(1, 9), position=st.integers(0, 100))
def test_replacements_are_addressed(attempt: int, position: int) -> None:
    address = AddressedSampler(count=10, seed=4).at(position)
    first = replacement(address, count=10, seed=4, attempt=attempt)
    assert first == replacement(address, count=10, seed=4, attempt=attempt)
    assert 0 <= first.index < 10
    assert first.seed != address.seed


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_without_any_readable_pair_is_one_clear_error(workers: int) -> None:
    with pytest.raises(TrainingError, match=r"10 training pairs in a row cannot be read, the last: pair \d"):
        _read(ToySource(count=3, broken=frozenset(range(3))), workers=workers)


def test_the_death_of_a_reading_process_surfaces() -> None:
    with pytest.raises(TrainingError, match="reads training pairs died"):
        _read(ToySource(count=3, deadly=frozenset({1})), workers=1)
