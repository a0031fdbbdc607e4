"""What the graph's rules call: fetch an archive, unpack a dataset, or take a folder that is there already."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

from matchlib.completion import (
    Lease,
    close_work,
    digest_json,
    fingerprint,
    require_complete,
    write_marker_digests,
)
from matchlib.downloads.config import Archive, DatasetSource, FetchPolicy, UnpackLimits
from matchlib.downloads.fetch import fetch_archive
from matchlib.downloads.unpack import listed_archives, remove_unpacked, unpack_archive
from matchlib.errors import DataError
from matchlib.registry import load_symbol
from matchlib.revisions import REVISIONS

log = logging.getLogger(__name__)


def download_archive(
    source: DatasetSource,
    archive_name: str,
    folder: Path,
    *,
    mirror_root: Path | None = None,
    policy: FetchPolicy | None = None,
    terminal: bool | None = None,
) -> None:
    """Fetch one archive of a dataset into `folder`, which is this archive's own; ends with `.complete`.

    Raises DataError if the hosts are known to be gone (with what to do instead) or the download fails;
    ConfigError for an unknown archive name.
    """
    archive = source.archive(archive_name)
    require_available(source)
    files = fetch_archive(archive, folder, mirror_root=mirror_root, policy=policy, terminal=terminal)
    digests = {file.path.name: file.sha256 for file in files}
    settings = {"dataset": source.name, "archive": archive.name, "kind": archive.kind, "files": list(digests)}
    stamp = fingerprint(stage="download", revision=REVISIONS["download"], settings=settings)
    write_marker_digests(folder, stage="download", fingerprint=stamp, digests=digests)


def require_available(source: DatasetSource) -> None:
    """Raises DataError that explains the ways out, if the hosts of a dataset no longer answer."""
    if source.status != "gone":
        return
    ways = [f"if you have a copy, set `root` of dataset '{source.name}' to its folder (it is used in place)"]
    if source.substitute:
        ways.insert(0, source.substitute)
    ways.append("if the hosts are back, set `status: available` in its description")
    raise DataError(f"dataset {source.name}: its hosts no longer answer. " + "; ".join(ways) + ".")


def unpack_dataset(
    source: DatasetSource,
    archive_folder: Path,
    out: Path,
    *,
    limits: UnpackLimits | None = None,
    terminal: bool | None = None,
) -> None:
    """Unpack all archives of a dataset into `out`; ends with `.complete`, which lists every file.

    archive_folder: holds one finished download per archive, in a folder of the archive's name
    A run that was killed goes on with the archive it was at. Files of archives that have changed or no longer
    belong to the dataset are removed; files that others put into `out` are never touched.
    Raises DataError for unfinished downloads, damaged or refused archives, and a full disk.
    """
    folders = {archive.name: archive_folder / archive.name for archive in source.archives}
    stamps = {archive.name: _stamp(archive, folders[archive.name]) for archive in source.archives}
    with Lease(out):
        for name in listed_archives(out):
            if name not in folders:
                remove_unpacked(out, name)
        digests: dict[str, str] = {}
        for archive in source.archives:
            files = _files_in_order(archive, folders[archive.name])
            unpacked = unpack_archive(
                archive, files, out, fingerprint=stamps[archive.name], limits=limits, terminal=terminal
            )
            log.info("%s: %d files in %s", archive.name, len(unpacked), out)
            digests.update(unpacked)
        write_marker_digests(out, stage="unpack", fingerprint=digest_json(stamps), digests=digests)
        close_work(out)


def _stamp(archive: Archive, folder: Path) -> str:
    """Digest of an archive's bytes and of everything that decides where they go."""
    require_complete(folder, hint=f"download archive {archive.name} first")
    settings = {"kind": archive.kind, "into": archive.into, "drop_prefixes": list(archive.drop_prefixes)}
    marker = folder / ".complete"
    return fingerprint(stage="unpack", revision=REVISIONS["unpack"], settings=settings, inputs=[marker])


def _files_in_order(archive: Archive, folder: Path) -> list[Path]:
    """The files of a finished download in the order of their bytes."""
    marker = require_complete(folder, hint=f"download archive {archive.name} first")
    names = archive.file_names()
    if archive.parts is not None and archive.parts.last is None:
        parts = archive.parts
        end = [] if parts.end is None else [parts.end]
        count = len(marker.files) - len(end)
        names = (*(parts.name(number) for number in range(parts.first, parts.first + count)), *end)
    missing = [name for name in names if name not in marker.files or not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder / missing[0]}: missing; delete {folder / '.complete'} and download again")
    return [folder / name for name in names]


def check_in_place(format_name: str, root: Path, *, split: str = "all") -> tuple[str, ...]:
    """Check that a dataset that the user has is laid out as its format says; returns its scenes.

    Reads only; nothing is ever written below `root`. The first scene is read as a probe.
    Raises DataError that names what is missing.
    """
    from matchlib.datasets.types import FORMATS, Scene

    if not root.is_dir():
        raise DataError(f"{root}: not a folder; expected the root of a dataset in {format_name} format")
    layout = FORMATS.get(format_name)
    list_scenes = cast(Callable[[Path, str], tuple[str, ...]], load_symbol(layout.list_scenes))
    scenes = list_scenes(root, split)
    if not scenes:
        raise DataError(f"{root}: expected scenes in {format_name} format, found none")
    if layout.read_scene is not None:
        scene = cast(Callable[[Path, str], Scene], load_symbol(layout.read_scene))(root, scenes[0])
        if not scene.images:
            raise DataError(f"{root}: scene {scenes[0]} has no images; expected {format_name} format")
    return scenes
