"""Checksums of downloaded files, noted beside them: what was right once must stay the same."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from matchlib.completion import atomic_write
from matchlib.errors import DataError


def record_path(path: Path) -> Path:
    """Where the checksum of a downloaded file is noted."""
    return path.with_name(path.name + ".sha256")


def read_record(path: Path) -> str | None:
    """The sha256 that was noted for a file, or None. Raises DataError if the note is not one."""
    try:
        text = record_path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    match = re.match(r"([0-9a-f]{64})\s", text)
    if match is None:
        raise DataError(
            f"{record_path(path)}: expected a sha256 and a file name, got {text[:80]!r}; delete it"
        )
    return match[1]


def write_record(path: Path, sha256: str) -> None:
    """Note the checksum of a file, in the form that `sha256sum --check` reads."""
    line = f"{sha256}  {path.name}\n"
    record = record_path(path)
    if not record.is_file() or record.read_text(encoding="utf-8") != line:
        atomic_write(record, line)


def digest_with(path: Path, algorithm: str) -> str:
    """Digest of a file in hex by any algorithm of hashlib."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
