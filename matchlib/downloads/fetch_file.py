"""Fetch one file from several addresses: resume, retry, check, and only then give it its name."""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests
import urllib3

from matchlib.completion import digest_file
from matchlib.downloads.answers import brief, retry_after_s, span_of, wait_before
from matchlib.downloads.config import FetchPolicy
from matchlib.downloads.content import wrong_content
from matchlib.downloads.partial import PartialFile
from matchlib.downloads.progress import Progress, readable_bytes
from matchlib.downloads.records import digest_with, read_record, record_path, write_record
from matchlib.errors import DataError

log = logging.getLogger(__name__)

_PIECE = 256 << 10
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRequest:
    """One file to fetch.

    urls:    addresses in order of preference, any scheme that the session knows
    length:  exact length, if it is known beforehand
    digests: expected checksums in hex by algorithm; empty: the first download is recorded in `<name>.sha256`
    content: "tar" or "zip" where the first bytes must be an archive's, otherwise ""
    """

    name: str
    urls: tuple[str, ...]
    length: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    content: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """One file that is there and checked. `url` is None if it was there already."""

    path: Path
    length: int
    sha256: str
    url: str | None


class MissingFileError(DataError):
    """No host has the file (404 everywhere); with an open number of parts this ends the series."""


class StoppedError(DataError):
    """The download was given up because another file of the same archive failed."""


class _TryAgain(Exception):
    def __init__(self, reason: str, *, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class _Refused(Exception):
    """This address will not do; the next one may."""


class _NotThere(_Refused):
    pass


@dataclass(slots=True)
class Fetcher:
    """What the files of one archive share. `sleep` and `stop` let tests and other threads interfere."""

    folder: Path
    session: requests.Session
    policy: FetchPolicy
    progress: Progress
    stop: threading.Event
    sleep: Callable[[float], object]

    def fetch(self, request: FileRequest) -> FetchedFile:
        """Make `folder/<name>` exist with the right content.

        Raises MissingFileError, or DataError naming every address with what was expected and what came.
        """
        present = self._present(request)
        if present is not None:
            self.progress.add(present.length, fetched=False)
            return present
        failures: list[tuple[str, _Refused]] = []
        with PartialFile(self.folder / request.name, request.digests) as partial:
            self.progress.add(partial.size, fetched=False)
            for url in request.urls:
                try:
                    return self._fetch_from(url, request, partial)
                except _Refused as refusal:
                    failures.append((url, refusal))
                    # That a file is not there may be the expected end of a series of parts.
                    log.log(
                        logging.DEBUG if isinstance(refusal, _NotThere) else logging.WARNING,
                        "%s: %s",
                        url,
                        refusal,
                    )
            if partial.size == 0:
                partial.discard()
        missing = all(isinstance(refusal, _NotThere) for _, refusal in failures)
        lines = [f"{url}: {refusal}" for url, refusal in failures]
        kind = MissingFileError if missing else DataError
        raise kind(f"{self.folder / request.name}: could not be fetched; " + "; ".join(lines))

    # ------------------------------------------------------------ what is there already
    def _present(self, request: FileRequest) -> FetchedFile | None:
        path = self.folder / request.name
        if not path.is_file():
            return None
        length = path.stat().st_size
        sha256 = digest_file(path)
        recorded = read_record(path)
        expected = {"sha256": recorded} if recorded and not request.digests else dict(request.digests)
        found = {name: sha256 if name == "sha256" else digest_with(path, name) for name in expected}
        if request.length in (None, length) and found == expected:
            write_record(path, sha256)
            return FetchedFile(path=path, length=length, sha256=sha256, url=None)
        aside = path.with_name(path.name + ".wrong")
        path.replace(aside)
        log.warning("%s: not the expected file; moved to %s and fetched again", path, aside.name)
        return None

    # ------------------------------------------------------------ one address
    def _fetch_from(self, url: str, request: FileRequest, partial: PartialFile) -> FetchedFile:
        """All attempts at one address. An attempt counts only if it brought nothing new."""
        furthest, idle = partial.size, 0
        while True:
            try:
                self._transfer(url, request, partial)
                return self._accept(url, request, partial)
            except _TryAgain as reason:
                partial.sync()
                idle = 0 if partial.size > furthest else idle + 1
                furthest = max(furthest, partial.size)
                if idle >= self.policy.attempts:
                    raise _Refused(
                        f"gave up after {idle} attempts that brought nothing: {reason}"
                    ) from reason
                wait_s = wait_before(self.policy, idle, reason.after_s)
                log.info("%s: %s; next attempt in %.1f s", url, reason, wait_s)
                self.sleep(wait_s)
                self._check_stop()

    def _transfer(self, url: str, request: FileRequest, partial: PartialFile) -> None:
        """One request; returns when the answer is complete."""
        if partial.size and partial.state.urls[-1:] != (url,) and not request.digests:
            self._restart(partial, "the host changed and there is no checksum to tell whether the bytes fit")
        headers = {}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
            etag = partial.state.etag
            if etag and not etag.startswith("W/") and partial.state.urls[-1:] == (url,):
                headers["If-Range"] = etag
        timeout = (self.policy.connect_timeout_s, self.policy.read_timeout_s)
        try:
            response = self.session.get(url, headers=headers, stream=True, timeout=timeout)
        except requests.exceptions.SSLError as error:
            raise _Refused(f"no secure connection: {error}") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _TryAgain(f"no answer ({brief(error)})") from error
        except requests.RequestException as error:
            raise _Refused(brief(error)) from error
        with response:
            if not self._is_complete(url, response, request, partial):
                self._read_body(response, request, partial)

    def _is_complete(
        self, url: str, response: requests.Response, request: FileRequest, partial: PartialFile
    ) -> bool:
        """Judge the head of an answer; afterwards the body continues `partial`, unless all of it is there."""
        status = response.status_code
        if status in _TRY_AGAIN:
            raise _TryAgain(f"HTTP {status} {response.reason}", after_s=retry_after_s(response))
        if status in (404, 410):
            raise _NotThere(f"HTTP {status}: not there")
        if status not in (200, 206, 416):
            raise _Refused(f"HTTP {status} {response.reason or ''}".rstrip())
        etag, start, length = response.headers.get("ETag"), *span_of(response)
        same_host = partial.state.urls[-1:] == (url,)
        if status == 416:
            said_before = (request.length, partial.state.length)
            if partial.size and length == partial.size and all(n in (None, length) for n in said_before):
                return True
            self._restart(partial, f"the host has no bytes after {partial.size}")
            raise _TryAgain("HTTP 416: the file on the host is shorter than the part that was there")
        if wrong := wrong_content(b"", response.headers.get("Content-Type", ""), request.name, ""):
            raise _Refused(wrong)
        before = partial.state
        changed = same_host and (
            (None not in (etag, before.etag) and etag != before.etag) or before.length not in (None, length)
        )
        if status == 206 and (start != partial.size or changed):
            self._restart(partial, "the file on the host has changed")
            raise _TryAgain("the file on the host has changed")
        if status == 200 and partial.size:
            self._restart(partial, "the host sends the whole file, because it cannot resume or has a new one")
        if None not in (request.length, length) and request.length != length:
            raise _Refused(f"wrong length: expected {request.length} bytes, got {length}")
        self._check_space(length, partial)
        partial.describe(url, etag=etag, length=length)
        return False

    def _read_body(self, response: requests.Response, request: FileRequest, partial: PartialFile) -> None:
        length = partial.state.length
        for piece in _pieces(response):
            self._check_stop()
            if partial.size == 0 and (wrong := wrong_content(piece, "", request.name, "")):
                raise _Refused(wrong)
            try:
                partial.write(piece)
            except OSError as error:
                raise self._disk_error(error, length, partial) from error
            self.progress.add(len(piece))
            if length is not None and partial.size > length:
                self._restart(partial, "the host sent more than it announced")
                raise _TryAgain(f"expected {length} bytes, got more")
        if length is not None and partial.size < length:
            raise _TryAgain(f"the connection ended after {partial.size} of {length} bytes")

    def _restart(self, partial: PartialFile, reason: str) -> None:
        if partial.size:
            log.info("%s: starting from the beginning: %s", partial.target, reason)
            self.progress.add(-partial.size, fetched=False)
        partial.restart()

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise StoppedError(f"{self.folder}: stopped; what is there will be resumed")

    # ------------------------------------------------------------ disk
    def _check_space(self, length: int | None, partial: PartialFile) -> None:
        if length is None:
            return
        free = shutil.disk_usage(self.folder).free
        if length - partial.size > free:
            raise DataError(
                f"{partial.target}: not enough disk: {readable_bytes(length - partial.size)} are to come, "
                f"{readable_bytes(free)} are free in {self.folder}; free some and run again, it resumes"
            )

    def _disk_error(self, error: OSError, length: int | None, partial: PartialFile) -> DataError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            missing = (
                "" if length is None else f", {readable_bytes(length - partial.state.bytes)} are missing"
            )
            return DataError(
                f"{partial.target}: the disk is full{missing}; free some in {self.folder} and run again, "
                f"the download resumes"
            )
        return DataError(f"{partial.path}: cannot be written: {error.strerror}")

    # ------------------------------------------------------------ the end
    def _accept(self, url: str, request: FileRequest, partial: PartialFile) -> FetchedFile:
        """Check all bytes; a file that passes gets its name, one that does not is removed."""
        found = partial.digests()
        wrong = wrong_content(partial.head(1024), "", request.name, request.content)
        if request.length not in (None, partial.size):
            wrong = f"wrong length: expected {request.length} bytes, got {partial.size}"
        for name, expected in request.digests.items():
            if found[name] != expected.lower():
                wrong = wrong or f"wrong {name}: expected {expected}, got {found[name]}"
        recorded = read_record(partial.target)
        if not request.digests and recorded not in (None, found["sha256"]):
            wrong = wrong or (
                f"wrong sha256: expected {recorded}, as recorded at the first download, "
                f"got {found['sha256']}; if the authors replaced the file, delete "
                f"{record_path(partial.target)} and run again"
            )
        if wrong:
            mixed = len(partial.state.urls) > 1
            self._restart(partial, wrong)
            if mixed:  # perhaps the other host's bytes were wrong
                raise _TryAgain(wrong)
            raise _Refused(wrong)
        size = partial.size
        write_record(partial.target, found["sha256"])
        partial.finish()
        return FetchedFile(path=partial.target, length=size, sha256=found["sha256"], url=url)


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes over the wire. A connection that breaks raises _TryAgain after what was read."""
    pieces = response.raw.stream(_PIECE, decode_content=False)
    while True:
        try:
            piece = next(pieces, None)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _TryAgain(f"the connection broke ({brief(error)})") from error
        if piece is None:
            return
        yield piece
