"""Fetch all files of an archive into its own folder, several at once within a limit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import count
from pathlib import Path

from matchlib.completion import Lease, read_marker
from matchlib.downloads.config import Archive, FetchPolicy, Parts
from matchlib.downloads.fetch_file import FetchedFile, Fetcher, FileRequest, MissingFileError, StoppedError
from matchlib.downloads.progress import Progress, readable_bytes
from matchlib.downloads.split_zip import last_disk_number
from matchlib.downloads.transport import MIRROR_SCHEME, mirror_path, open_session, resolve_url

log = logging.getLogger(__name__)


def fetch_archive(
    archive: Archive,
    folder: Path,
    *,
    mirror_root: Path | None = None,
    policy: FetchPolicy | None = None,
    sleep: Callable[[float], object] | None = None,
    terminal: bool | None = None,
) -> tuple[FetchedFile, ...]:
    """Make all files of `archive` exist in `folder`, checked, in the order of their bytes.

    folder:      belongs to this archive alone; one process at a time may fetch into it
    mirror_root: what `mirror:` addresses are relative to
    sleep:       waits between attempts (for tests); default: until the time is over or another file failed
    terminal:    progress bar instead of lines; default: whether standard error is a terminal

    Whatever arrived stays in `<name>.part` and is resumed by the next call. Raises DataError naming each
    address with what was expected and what came, on a full disk, or if another process holds the folder.
    """
    stop = threading.Event()
    policy = policy or FetchPolicy()
    progress = Progress(archive.name, archive.total_bytes(), terminal=terminal)
    with Lease(folder), open_session() as session, progress:
        fetcher = Fetcher(folder, session, policy, progress, stop, sleep or stop.wait)
        if archive.parts is not None and archive.parts.last is None:
            files = _fetch_open_series(archive, archive.parts, fetcher, mirror_root)
        else:
            requests = [_request(archive, name, mirror_root) for name in archive.file_names()]
            files = _fetch_all(requests, fetcher)
    size = readable_bytes(sum(file.length for file in files))
    log.info("%s: all there (files: %d, %s)", archive.name, len(files), size)
    return files


def _request(archive: Archive, name: str, mirror_root: Path | None) -> FileRequest:
    facts, urls = archive.facts(name), archive.urls_of(name)
    parts = archive.parts
    is_first = parts is None or name == parts.name(parts.first)
    return FileRequest(
        name=name,
        urls=tuple(resolve_url(url, mirror_root) for url in urls),
        length=facts.bytes,
        digests=facts.digests() or _digest_in_mirror(urls, mirror_root),
        content=archive.kind.removesuffix("-split") if is_first and archive.kind != "file" else "",
    )


def _digest_in_mirror(urls: Sequence[str], mirror_root: Path | None) -> dict[str, str]:
    """A mirror that carries a completion marker says itself what its files are."""
    marker = read_marker(mirror_root) if mirror_root is not None else None
    for url in urls:
        if marker is not None and url.startswith(MIRROR_SCHEME) and mirror_path(url) in marker.files:
            return {"sha256": marker.files[mirror_path(url)]}
    return {}


def _fetch_all(requests: Sequence[FileRequest], fetcher: Fetcher) -> tuple[FetchedFile, ...]:
    """Fetch within the limit of connections; a failure stops the others, which keep what they have."""
    with ThreadPoolExecutor(max_workers=fetcher.policy.max_connections) as pool:
        futures: list[Future[FetchedFile]] = [pool.submit(fetcher.fetch, request) for request in requests]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() and future.exception() is None for future in futures):
                fetcher.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        for error in _errors(futures):
            raise error
        return tuple(future.result() for future in futures)


def _errors(futures: Sequence[Future[FetchedFile]]) -> Iterator[BaseException]:
    """Errors of finished futures, causes before the files that were stopped because of them."""
    found = [future.exception() for future in futures if future.done() and not future.cancelled()]
    errors = [error for error in found if error is not None]
    yield from sorted(errors, key=lambda error: isinstance(error, StoppedError))


def _fetch_open_series(
    archive: Archive, parts: Parts, fetcher: Fetcher, mirror_root: Path | None
) -> tuple[FetchedFile, ...]:
    """Fetch an archive whose number of parts only the host knows."""
    if parts.end is not None:
        end = fetcher.fetch(_request(archive, parts.end, mirror_root))
        numbers = range(parts.first, parts.first + last_disk_number(end.path))
        requests = [_request(archive, parts.name(number), mirror_root) for number in numbers]
        return (*_fetch_all(requests, fetcher), end)
    files: list[FetchedFile] = []
    for number in count(parts.first):
        try:
            files.append(fetcher.fetch(_request(archive, parts.name(number), mirror_root)))
        except MissingFileError:
            if not files:
                raise
            break
    return tuple(files)
