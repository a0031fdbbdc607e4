"""Whole or absent: results of COLMAP, which writes many files bit by bit, appear by one rename.

Work goes on in `<out>.work/`, under a lease. What a kill left there is removed at the next start: a half-written
database or model is built anew, never used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from matchlib.completion import MARKER, Lease, atomic_path, fingerprint, write_marker
from matchlib.errors import DataError

REVISION = 2  # raised when a result of these steps changes meaning
STAGE = ".stage"
"""File that says which step a folder is the result of. It outlives the marker, which Snakemake removes before it has a
result made again."""


@contextlib.contextmanager
def finished_file(out: Path) -> Iterator[Path]:
    """Yield the path of a file to write, alone in its folder; on success it becomes `out`, on failure it goes.

    SQLite's logs beside a former `out`, as a killed program leaves them, go with it: the next reader would play them
    into the new file. Raises DataError if another process is writing `out`.
    """
    with _scratch(out) as scratch:
        draft = scratch / "draft" / out.name
        draft.parent.mkdir()
        yield draft
        for ending in ("-wal", "-shm", "-journal"):
            out.with_name(out.name + ending).unlink(missing_ok=True)
        with atomic_path(out) as temporary:
            os.replace(draft, temporary)


@contextlib.contextmanager
def finished_folder(out: Path, *, stage: str, settings: Any, inputs: Iterable[Path]) -> Iterator[Path]:
    """Yield a folder to fill; on success it is marked `.complete` and becomes `out`, on failure it goes.

    A result of the same step is replaced, be it without its marker; anything else of that name is left alone. Raises
    DataError for that, and if another process is writing `out`.
    """
    if out.exists() and not _is_result(out, stage) and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is no finished result; remove it or choose another place")
    mark = fingerprint(stage=stage, revision=REVISION, settings=settings, inputs=inputs)
    with _scratch(out) as scratch:
        draft = scratch / "draft"
        draft.mkdir()
        yield draft
        (draft / STAGE).write_text(stage + "\n", encoding="utf-8")
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        write_marker(draft, stage=stage, fingerprint=mark, files=files)
        if out.exists():
            os.rename(out, scratch / "old")
        os.rename(draft, out)


def _is_result(folder: Path, stage: str) -> bool:
    if (folder / MARKER).is_file():
        return True
    made_by = folder / STAGE
    return made_by.is_file() and made_by.read_text(encoding="utf-8").strip() == stage


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    scratch = out.with_name(out.name + ".work")
    try:
        with Lease(scratch) as lease:
            _empty(scratch, keep=lease.path)
            try:
                yield scratch
            finally:
                _empty(scratch, keep=lease.path)
    finally:
        with contextlib.suppress(OSError):  # not empty: it is another process that writes here
            scratch.rmdir()


def _empty(folder: Path, *, keep: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != keep and not path.name.startswith(".lease-"):  # what others try to take the lease with
            path.unlink()
