"""Unpack archives into a dataset's folder so that every file is there and whole, or none is.

An archive is first unpacked below `work/`; only when its last byte was read and checked, its list of files is
written to `.unpacked/<archive>.jsonl` and the files are moved to their places. The list is what tells, after
a crash, that moving must go on, and later which files belong to an archive that has changed and must go.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from matchlib.completion import WORK, atomic_write
from matchlib.downloads.config import Archive, UnpackLimits
from matchlib.downloads.members import Member, open_members
from matchlib.downloads.progress import Progress
from matchlib.errors import DataError

log = logging.getLogger(__name__)

LISTS = ".unpacked"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedList:
    """What an archive put into the dataset's folder: path relative to it -> sha256."""

    fingerprint: str
    files: Mapping[str, str]


def unpack_archive(
    archive: Archive,
    files: Sequence[Path],
    out: Path,
    *,
    fingerprint: str,
    limits: UnpackLimits | None = None,
    terminal: bool | None = None,
) -> Mapping[str, str]:
    """Unpack one archive (its parts in order) into `out`; returns path relative to `out` -> sha256.

    fingerprint: of the archive's content; where `out` already holds that content, nothing is done, and where
                 it holds another, those files are removed first
    Call while holding the lease of `out`. Raises DataError for damaged or refused archives, name clashes with
    other archives or with files that were there before, and a full disk; `out` is then as it was.
    """
    done = read_list(out, archive.name)
    if done is not None:
        if done.fingerprint == fingerprint and _move_all(archive, out, done.files):
            return done.files
        remove_unpacked(out, archive.name)
    staging = _staging(out, archive.name)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        digests = _extract_all(archive, files, staging, limits, terminal)
        _refuse_clashes(archive, out, digests)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    os.sync()  # one call for all files: the list must not speak of bytes that a power cut can take away
    _write_list(out, archive.name, UnpackedList(fingerprint=fingerprint, files=digests))
    _move_all(archive, out, digests)
    return digests


# ---------------------------------------------------------------- lists
def list_path(out: Path, name: str) -> Path:
    """Where the list of an archive's files is kept."""
    return out / LISTS / f"{name}.jsonl"


def listed_archives(out: Path) -> tuple[str, ...]:
    """Names of all archives that put files into `out`."""
    return tuple(sorted(path.name.removesuffix(".jsonl") for path in (out / LISTS).glob("*.jsonl")))


def read_list(out: Path, name: str) -> UnpackedList | None:
    """The list of an archive's files, or None. Raises DataError if it is unreadable."""
    path = list_path(out, name)
    try:
        with open(path, encoding="utf-8") as stream:
            fingerprint = json.loads(stream.readline())["fingerprint"]
            return UnpackedList(fingerprint=fingerprint, files=dict(json.loads(line) for line in stream))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a list of unpacked files ({error}); delete {out} and unpack again"
        ) from error


def _write_list(out: Path, name: str, unpacked: UnpackedList) -> None:
    lines = [json.dumps({"fingerprint": unpacked.fingerprint})]
    lines += [json.dumps([path, digest]) for path, digest in sorted(unpacked.files.items())]
    atomic_write(list_path(out, name), "\n".join(lines) + "\n")


def remove_unpacked(out: Path, name: str) -> None:
    """Remove the files that an archive put into `out`, folders that become empty, and its list."""
    unpacked = read_list(out, name)
    shutil.rmtree(_staging(out, name), ignore_errors=True)
    if unpacked is None:
        return
    shared = _owned_by_others(out, name)
    folders: set[PurePosixPath] = set()
    for path in unpacked.files:
        if path in shared:
            continue
        (out / path).unlink(missing_ok=True)
        folders.update(PurePosixPath(path).parents)
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        if folder.parts:
            with contextlib.suppress(OSError):  # not empty: another archive's files are in it
                (out / folder).rmdir()
    list_path(out, name).unlink()


# ---------------------------------------------------------------- steps
def _staging(out: Path, name: str) -> Path:
    return out / WORK / f"unpack-{name}"


def _extract_all(
    archive: Archive, files: Sequence[Path], staging: Path, limits: UnpackLimits | None, terminal: bool | None
) -> dict[str, str]:
    """Write all members below `staging`, in the folder structure of the dataset."""
    digests: dict[str, str] = {}
    into = PurePosixPath(archive.into)
    with (
        open_members(archive.kind, files, prefixes=archive.drop_prefixes, limits=limits) as members,
        Progress(f"unpacking {archive.name}", None, terminal=terminal) as progress,
    ):
        for member in members:
            path = (into / member.name).as_posix()
            digests[path] = _extract(member, staging / path, files[-1])
            progress.add(member.size)
    if not digests:
        raise DataError(f"{files[-1]}: expected files inside the archive, got none")
    return digests


def _extract(member: Member, target: Path, where: Path) -> str:
    hasher = hashlib.sha256()
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(target, "xb") as stream:
            while piece := source.read(_PIECE):
                hasher.update(piece)
                written += len(piece)
                stream.write(piece)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{where}: member {member.name!r} is a file and a folder at once; refused") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{target}: the disk is full while unpacking {where}; free some and run again"
        ) from error
    if written != member.size:
        raise DataError(
            f"{where}: member {member.name!r}: expected {member.size} bytes, got {written}; fetch it again"
        )
    return hasher.hexdigest()


def _owned_by_others(out: Path, name: str) -> dict[str, tuple[str, str]]:
    """Path -> (archive, sha256) of all files that other archives put into `out`."""
    owned: dict[str, tuple[str, str]] = {}
    for other in listed_archives(out):
        unpacked = read_list(out, other) if other != name else None
        if unpacked is not None:
            owned.update({path: (other, digest) for path, digest in unpacked.files.items()})
    return owned


def _refuse_clashes(archive: Archive, out: Path, digests: Mapping[str, str]) -> None:
    """A place that is taken by another archive (with other content) or by a foreign file is an error."""
    owned = _owned_by_others(out, archive.name)
    for path, digest in digests.items():
        if path in owned and owned[path][1] != digest:
            raise DataError(
                f"{out / path}: archives {owned[path][0]} and {archive.name} disagree about this file"
            )
        if path not in owned and (out / path).exists():
            raise DataError(
                f"{out / path}: exists, but matchlib did not unpack it; to use files that you already have, "
                f"set `root` of the dataset, otherwise move them away"
            )


def _move_all(archive: Archive, out: Path, paths: Iterable[str]) -> bool:
    """Move staged files to their places; a file that is no longer staged was moved before a crash.

    Returns False if a file is in neither place, because somebody removed it.
    """
    staging = _staging(out, archive.name)
    made: set[Path] = set()
    for path in paths:
        target = out / path
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        try:
            os.replace(staging / path, target)
        except FileNotFoundError:
            if not target.is_file():
                log.warning("%s: missing; archive %s is unpacked again", target, archive.name)
                return False
    shutil.rmtree(staging, ignore_errors=True)
    return True
