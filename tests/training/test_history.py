"""The training history as a file: read in order, and faults named with their line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from matchlib.errors import DataError
from matchlib.training.history import HistoryRow, read_history


def test_history_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(
        '{"step": 1, "split": "train", "values": {"loss": 2.5}}\n\n'
        '{"step": 4, "split": "validation", "values": {"accuracy": 0.5, "loss": NaN}}\n'
    )
    first, second = read_history(path)
    assert first == HistoryRow(step=1, split="train", values={"loss": 2.5})
    assert second.step == 4 and second.values["accuracy"] == 0.5 and math.isnan(second.values["loss"])


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "split": "train"',
        '{"step": 1, "split": "test", "values": {}}',
        '{"step": 1, "split": "train"}',
        '{"step": 1, "split": "train", "values": [1]}',
        '{"step": "one", "split": "train", "values": {}}',
        "[]",
    ],
)
def test_a_broken_history_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 0, "split": "train", "values": {}}\n' + line + "\n")
    with pytest.raises(DataError, match=r"history\.jsonl:2: expected"):
        read_history(path)


def test_a_missing_history_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="history"):
        read_history(tmp_path / "history.jsonl")
