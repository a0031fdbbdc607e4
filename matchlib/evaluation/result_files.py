"""Results as JSON files: a layout name, no infinities, errors that name the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matchlib.completion import atomic_write
from matchlib.errors import DataError
from matchlib.evaluation.config import HomographyProtocol


def write_layout(path: Path, layout: str, body: Mapping[str, Any]) -> None:
    """Write a result of finite numbers, atomically. Equal results give equal bytes."""
    content = {"layout": layout, **body}
    atomic_write(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_layout(path: Path, layout: str) -> dict[str, Any]:
    """The body that `write_layout` wrote.

    Raises DataError naming the file if it is absent, not JSON, or of another layout.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; run the evaluation that writes it") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); delete it and evaluate again") from error
    found = body.get("layout") if isinstance(body, dict) else None
    if found != layout:
        raise DataError(f"{path}: expected layout {layout}, got {found}; evaluate again with this version")
    return {key: value for key, value in body.items() if key != "layout"}


def write_result_file(path: Path, layout: str, body: Mapping[str, Any]) -> None:
    """As `write_layout`; infinite `corner_error_px` of its `pairs` become null: JSON has no infinity."""
    rows = [row | {"corner_error_px": _finite_or_none(row["corner_error_px"])} for row in body["pairs"]]
    write_layout(path, layout, {**body, "pairs": rows})


def read_result_file(path: Path, layout: str) -> dict[str, Any]:
    """The body that `write_result_file` wrote, null errors infinite again. Raises DataError naming the file."""
    body = read_layout(path, layout)
    try:
        for row in body["pairs"]:
            row["corner_error_px"] = math.inf if row["corner_error_px"] is None else row["corner_error_px"]
    except (KeyError, TypeError) as error:
        raise incomplete(path, error) from error
    return body


def homography_protocol_from(body: Mapping[str, Any]) -> HomographyProtocol:
    """The protocol that was stored as JSON; raises KeyError or TypeError if it is none."""
    lists = {"correct_px": tuple(body["correct_px"]), "auc_px": tuple(body["auc_px"])}
    return HomographyProtocol(**(dict(body) | lists))


def incomplete(path: Path, error: Exception) -> DataError:
    """The error for a result file that lacks a key or has one too many."""
    return DataError(f"{path}: incomplete or foreign result ({error}); delete it and evaluate again")


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
