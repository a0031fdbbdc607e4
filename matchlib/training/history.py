"""`history.jsonl`: a line per logged or validated step; without times, so equal runs give equal bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matchlib.errors import DataError

Split = Literal["train", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """One line of a training history: the figures logged at one step (optimiser updates so far)."""

    step: int
    split: Split
    values: Mapping[str, float]


def read_history(path: Path) -> tuple[HistoryRow, ...]:
    """The rows of a `history.jsonl`, in file order. Raises DataError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected a training history, got {error}; run the training stage again"
        ) from error
    return tuple(
        _history_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()
    )


def _history_row(path: Path, number: int, line: str) -> HistoryRow:
    try:
        body = json.loads(line)
        if body["split"] not in ("train", "validation"):
            raise ValueError(f"unknown split {body['split']!r}")
        values = {str(name): float(value) for name, value in body["values"].items()}
        return HistoryRow(step=int(body["step"]), split=body["split"], values=values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}:{number}: expected {{"step", "split": "train" or "validation", "values"}}, '
            f"got {line[:60]!r} ({error}); run the training stage again"
        ) from error


def append_line(path: Path, *, step: int, split: Split, values: Mapping[str, float]) -> None:
    """Add `{"step": ..., "split": ..., "values": {name: float}}`."""
    line = json.dumps({"step": step, "split": split, "values": dict(values)}, sort_keys=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def sync(path: Path) -> None:
    """Force what was written to disk: a checkpoint must not outlive the lines before it."""
    if path.exists():
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def truncate_after(path: Path, step: int) -> None:
    """Forget lines of later steps and a torn last line: a resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
