"""The finished folder of a stage: what is in it, and how it is declared finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matchlib.completion import MARKER, atomic_path, atomic_write_json, close_work, read_marker, write_marker
from matchlib.errors import DataError
from matchlib.training.checkpoint import save_weights
from matchlib.training.run import Run, best_path

INITIAL, LAST, BEST = "initial.safetensors", "last.safetensors", "weights.safetensors"
HISTORY, SUMMARY, PICTURES = "history.jsonl", "summary.json", "pictures"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A finished stage; `summary.json` holds the same.

    step:           steps made, fewer than configured after an early stop
    metric:         name of the validation figure that chose the weights
    best_step:      step of `weights.safetensors`; the last one if there was no validation
    metric_initial, metric_best: before the first step, and of the chosen weights; None without validation
    nonfinite, drawn, unreadable: skipped steps, pairs tried, and those of them that could not be read
    """

    step: int
    metric: str
    best_step: int
    metric_initial: float | None
    metric_best: float | None
    nonfinite: int
    drawn: int
    unreadable: int


def finished_result(out: Path, fingerprint: str) -> TrainResult | None:
    """The result in `out` if finished and of this fingerprint, else None; a marker of another is removed."""
    marker = read_marker(out)
    if marker is None:
        return None
    if marker.fingerprint != fingerprint:
        (out / MARKER).unlink()
        return None
    return read_result(out)


def read_result(out: Path) -> TrainResult:
    """Read `summary.json`. Raises DataError."""
    path = out / SUMMARY
    try:
        return TrainResult(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: expected the summary of a training ({error}); delete {out / MARKER}, run again"
        ) from error


def finish(run: Run, *, out: Path, stage: str, fingerprint: str, manifest: Mapping[str, Any]) -> TrainResult:
    """Put the results of a run that reached its end into `out`, the marker last, and remove the work folder.

    Everything is copied from the work folder or made from the model, so that a run killed in here does it
    again.
    """
    state, spec = run.state, run.spec
    best_step = state.step if state.best_step is None else state.best_step
    about = {"manifest": dict(manifest), "stage": stage}
    save_weights(out / LAST, run.weights(), about={**about, "step": state.step})
    if state.best_step is None:
        save_weights(out / BEST, run.weights(), about={**about, "step": state.step})
    else:
        save_weights(
            out / BEST, _weights_in(best_path(run.work, best_step)), about={**about, "step": best_step}
        )
    save_weights(out / INITIAL, _weights_in(run.work / INITIAL), about={**about, "step": 0})
    result = TrainResult(
        step=state.step,
        metric=spec.metric,
        best_step=best_step,
        metric_initial=state.metric_initial,
        metric_best=state.best_metric,
        nonfinite=state.nonfinite,
        drawn=state.drawn,
        unreadable=state.unreadable,
    )
    atomic_write_json(out / SUMMARY, asdict(result))
    _copy(run.work / HISTORY, out / HISTORY)
    shutil.rmtree(out / PICTURES, ignore_errors=True)
    pictures = sorted((run.work / PICTURES).glob("*.png"))
    for picture in pictures:
        _copy(picture, out / PICTURES / picture.name)
    names = [BEST, LAST, INITIAL, HISTORY, SUMMARY, *(f"{PICTURES}/{picture.name}" for picture in pictures)]
    write_marker(out, stage=stage, fingerprint=fingerprint, files=[out / name for name in names])
    close_work(out)
    return result


def _weights_in(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
