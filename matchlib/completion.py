"""Finished or not: atomic files, completion markers, resumable work folders, and one writer per folder.

A folder of results is finished exactly when it holds `.complete`, a JSON digest of what was made. The marker
holds no time, host or duration, so equal results give equal bytes and Snakemake sees that nothing changed.
While work goes on, its state lives in `work/` beside the marker, guarded by a lease.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matchlib.errors import DataError

MARKER = ".complete"
MANIFEST = "manifest.jsonl"
WORK = "work"
_INLINE_FILES = 200  # longer lists go to manifest.jsonl: Snakemake compares checksums only up to 1 MB
LEASE_STALE_S = 600.0


# ---------------------------------------------------------------- digests
def digest_bytes(data: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file in hex, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a JSON value with sorted keys, so that equal settings have equal digests."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def fingerprint(*, stage: str, revision: int, settings: Any, inputs: Iterable[Path] = ()) -> str:
    """Digest of everything a result depends on: stage name, code revision, settings, bytes of input files.

    `inputs` are markers or small files of the stages before; their order does not matter, their names do not
    enter (a moved data folder is the same data). Raises DataError if one is missing.
    """
    digests = []
    for path in inputs:
        if not path.is_file():
            raise DataError(f"{path}: not found, so the stage before is not finished; run it first")
        digests.append(digest_file(path))
    return digest_json(
        {"stage": stage, "revision": revision, "settings": settings, "inputs": sorted(digests)}
    )


# ---------------------------------------------------------------- atomic files
@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is fsynced and renamed to `path`, on failure removed.

    The temporary name ends like `path` itself, because many writers choose the format by the ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield temporary
        _fsync_file(temporary)
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _fsync_file(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems refuse to sync a folder; the rename still holds
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- markers
@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What `.complete` says.

    stage:       name of the stage that made the folder
    fingerprint: digest of settings, revision and inputs (see `fingerprint`)
    files:       path relative to the folder -> sha256 of the file
    """

    stage: str
    fingerprint: str
    files: Mapping[str, str]


def write_marker(folder: Path, *, stage: str, fingerprint: str, files: Iterable[Path]) -> Marker:
    """Declare `folder` finished: hash `files` (inside it), write the marker last and atomically."""
    digests = {path.relative_to(folder).as_posix(): digest_file(path) for path in files}
    return write_marker_digests(folder, stage=stage, fingerprint=fingerprint, digests=digests)


def write_marker_digests(folder: Path, *, stage: str, fingerprint: str, digests: Mapping[str, str]) -> Marker:
    """As `write_marker`, for callers that already know the digest of each file."""
    body: dict[str, Any] = {"stage": stage, "fingerprint": fingerprint}
    if len(digests) <= _INLINE_FILES:
        body["files"] = dict(digests)
    else:
        lines = [json.dumps([name, digests[name]]) for name in sorted(digests)]
        manifest = ("\n".join(lines) + "\n").encode()
        atomic_write(folder / MANIFEST, manifest)
        body["manifest"] = digest_bytes(manifest)
    atomic_write_json(folder / MARKER, body)
    return Marker(stage=stage, fingerprint=fingerprint, files=dict(digests))


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder, or None if it is not finished. Raises DataError if the marker is unreadable."""
    path = folder / MARKER
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        body = json.loads(text)
        files = body["files"] if "files" in body else _read_manifest(folder, body["manifest"])
        return Marker(stage=body["stage"], fingerprint=body["fingerprint"], files=files)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a completion marker ({error}); delete it and run the stage again"
        ) from error


def _read_manifest(folder: Path, expected: str) -> dict[str, str]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{path}: missing, although {MARKER} refers to it; delete {folder / MARKER} and run again"
        )
    data = path.read_bytes()
    if digest_bytes(data) != expected:
        raise DataError(f"{path}: changed after it was written; delete {folder / MARKER} and run again")
    return dict(json.loads(line) for line in data.decode().splitlines())


def require_complete(folder: Path, *, hint: str = "") -> Marker:
    """The marker of a finished folder. Raises DataError if it has none."""
    marker = read_marker(folder)
    if marker is None:
        raise DataError(f"{folder}: not finished (no {MARKER})" + (f"; {hint}" if hint else ""))
    return marker


def verify_folder(folder: Path) -> list[str]:
    """Check every file of a finished folder against its marker.

    Returns one line per fault (empty: all is well). A marker that lies is removed: readers then refuse the folder,
    and Snakemake makes it again when asked for it (results made from it before stay valid). Raises DataError if the
    folder is not finished.
    """
    marker = require_complete(folder, hint="nothing to verify")
    faults = []
    for name, expected in sorted(marker.files.items()):
        path = folder / name
        if not path.is_file():
            faults.append(f"{path}: missing")
        elif (found := digest_file(path)) != expected:
            faults.append(f"{path}: expected sha256 {expected}, got {found}")
    if faults:
        (folder / MARKER).unlink()
    return faults


# ---------------------------------------------------------------- work folders
def open_work(folder: Path, fingerprint: str) -> Path:
    """`folder/work`, either resumable state of the same fingerprint or a new empty folder.

    State of another fingerprint (settings, code revision or inputs changed) is moved to `work.stale-<digest>`
    (one such folder is kept) and never resumed. Call while holding the lease.
    """
    work = folder / WORK
    stamp = work / "fingerprint"
    if work.exists():
        found = stamp.read_text(encoding="utf-8") if stamp.is_file() else ""
        if found == fingerprint:
            return work
        for old in folder.glob(f"{WORK}.stale-*"):
            shutil.rmtree(old)
        work.rename(folder / f"{WORK}.stale-{found[:12] or 'unknown'}")
    work.mkdir(parents=True)
    atomic_write(stamp, fingerprint)
    return work


def close_work(folder: Path) -> None:
    """Remove `folder/work` after the marker was written."""
    shutil.rmtree(folder / WORK, ignore_errors=True)


# ---------------------------------------------------------------- leases
class Lease:
    """The right to write into a folder, held by one process at a time.

    A killed workflow can leave its job running; a second job on the same folder must not write beside it.
    The lease is `<folder>/lease.json`, created with O_EXCL. It is taken over when its holder is known to be gone:
    the pid no longer lives on this host, Slurm no longer knows the job, or nobody touched it for ten minutes.
    Raises DataError naming the holder otherwise.
    """

    def __init__(self, folder: Path, *, stale_s: float = LEASE_STALE_S) -> None:
        self.path = folder / "lease.json"
        self._stale_s = stale_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            if self._create():
                self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
                self._thread.start()
                return self
            self._remove_if_abandoned()
        raise DataError(f"{self.path}: could not be taken; another process keeps creating it")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _create(self) -> bool:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }
        # Written aside and linked into place, so that nobody ever reads a lease without its holder.
        temporary = self.path.with_name(
            f".lease-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        )
        temporary.write_text(json.dumps(holder), encoding="utf-8")
        try:
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink()

    def _remove_if_abandoned(self) -> None:
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            age_s = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        except ValueError:
            holder, age_s = {}, self._stale_s
        if age_s < self._stale_s and not _holder_is_gone(holder):
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            if holder.get("slurm_job"):
                who += f", Slurm job {holder['slurm_job']}"
            raise DataError(
                f"{self.path.parent}: {who} is writing here (last sign of life {age_s:.0f} s ago); wait for it, or "
                f"end it and run again"
            )
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _keep_fresh(self) -> None:
        while not self._stop.wait(min(30.0, self._stale_s / 4)):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _process_start(pid: int) -> str | None:
    """Start time of a process from /proc (field 22), so that a recycled pid is not taken for the old one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _holder_is_gone(holder: Mapping[str, Any]) -> bool:
    if not holder:
        return True
    if holder.get("host") == socket.gethostname():
        pid = int(holder["pid"])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        started = holder.get("started")
        return started is not None and _process_start(pid) not in (None, started)
    job = holder.get("slurm_job")
    if job and shutil.which("squeue"):
        known = subprocess.run(["squeue", "-h", "-j", str(job)], capture_output=True, text=True, check=False)
        return known.returncode != 0 or not known.stdout.strip()
    return False
