"""Checkpoints that are whole or not there, and that refuse to continue somebody else's run.

A checkpoint is a folder `step-XXXXXXXX`: `model.safetensors`, `optimiser.pt` (read without pickle),
`state.json` (counters, identity, and the digests of the other two). It is written under a temporary name,
synced, renamed; only then is the one before it removed.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from matchlib.completion import atomic_write, digest_bytes, digest_file
from matchlib.errors import TrainingError
from matchlib.training.state import TrainState

_LOG = logging.getLogger(__name__)
_PATTERN = "step-*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint as read.

    identity:    what makes it this run and no other; must be equal on resuming
    environment: machine and library; may differ, at the price of bit-equality
    """

    path: Path
    state: TrainState
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    model: Mapping[str, Tensor]
    stepper: Mapping[str, Any]


def save_weights(path: Path, weights: Mapping[str, Tensor], *, about: Mapping[str, Any]) -> None:
    """Write weights as safetensors, atomically; `about` goes to the header as JSON under key `matchlib`."""
    atomic_write(path, _weight_bytes(weights, about))


def read_about(path: Path) -> dict[str, Any]:
    """What `save_weights` was told about the weights; empty for foreign safetensors. Raises TrainingError."""
    try:
        with open(path, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, 100_000_000)))
        return dict(json.loads(header.get("__metadata__", {}).get("matchlib", "{}")))
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{path}: expected a safetensors file, got something else ({error})") from error


def save_checkpoint(
    folder: Path,
    *,
    state: TrainState,
    model: Mapping[str, Tensor],
    stepper: Mapping[str, Any],
    identity: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Path:
    """Write `folder/step-XXXXXXXX`, then remove the checkpoints before it. Returns its path."""
    buffer = io.BytesIO()
    torch.save(dict(stepper), buffer)
    files = {"model.safetensors": _weight_bytes(model, {}), "optimiser.pt": buffer.getvalue()}
    body = {
        "state": state.to_json(),
        "identity": dict(identity),
        "environment": dict(environment),
        "files": {name: digest_bytes(data) for name, data in files.items()},
    }
    files["state.json"] = json.dumps(body, indent=1, sort_keys=True).encode()
    path = folder / f"step-{state.step:08d}"
    temporary = folder / f".tmp-{path.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, data in files.items():
        _write_synced(temporary / name, data)
    os.replace(temporary, path)
    _sync_folder(folder)
    for older in folder.glob(_PATTERN):
        if older != path:
            shutil.rmtree(older)
    return path


def recover(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None; removes all else there; names torn ones in the log."""
    newest = None
    for path in sorted(folder.glob(_PATTERN), reverse=True):
        fault = _fault(path)
        if fault is None:
            newest = path
            break
        _LOG.warning("%s: %s; using the checkpoint before it", path, fault)
    for path in [*folder.glob(_PATTERN), *folder.glob(".tmp-*")]:
        if path != newest:
            shutil.rmtree(path)
    return newest


def load_checkpoint(path: Path, *, identity: Mapping[str, Any]) -> Checkpoint:
    """Read a whole checkpoint of the run that `identity` describes.

    Raises TrainingError that names the first key in which the checkpoint's run differs from this one.
    """
    body = json.loads((path / "state.json").read_text(encoding="utf-8"))
    ours = dict(_flat(json.loads(json.dumps(identity))))  # tuples become lists, as in the file
    theirs = dict(_flat(body["identity"]))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise TrainingError(
                f"{path}: {key}: expected {_shown(ours, key)}, got {_shown(theirs, key)} in the checkpoint; "
                f"restore that setting to resume, or delete {path.parent.parent} to start anew"
            )
    return Checkpoint(
        path=path,
        state=TrainState.from_json(body["state"]),
        identity=body["identity"],
        environment=body["environment"],
        model=load_file(path / "model.safetensors"),
        stepper=torch.load(path / "optimiser.pt", map_location="cpu", weights_only=True),
    )


def _fault(path: Path) -> str | None:
    try:
        body = json.loads((path / "state.json").read_text(encoding="utf-8"))
        changed = [name for name, digest in body["files"].items() if digest_file(path / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"not a whole checkpoint ({error})"
    return f"{changed[0]} is not what was written" if changed else None


def _weight_bytes(weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    # One metadata key only: safetensors writes several in random order, and equal weights must give equal
    # bytes.
    metadata = {"matchlib": json.dumps(about, sort_keys=True)}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    return save(plain, metadata=metadata)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
