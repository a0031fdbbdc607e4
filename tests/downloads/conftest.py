"""A real HTTP server on 127.0.0.1 with the faults of real hosts, each of which can be switched on."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

HTML = b"<!DOCTYPE html><html><head><title>Moved</title></head><body>The data set has moved.</body></html>"


@dataclass
class Faults:
    """What goes wrong with one file. Counters go down by one at each request that they spoil."""

    drop_after: list[int] = field(
        default_factory=list
    )  # one entry per request: bytes sent before the line goes dead
    fail_first: int = 0
    fail_status: int = 503
    retry_after: str | None = None
    ignore_range: bool = False
    html: bool = False
    html_type: str = "text/html; charset=utf-8"
    status: int | None = None
    no_length: bool = False
    announce_extra: int = 0
    bad_content_range: int = 0


@dataclass
class Host:
    """The server's files and faults by path, and what it was asked."""

    base: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Faults] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range)
    busy: int = 0
    most_busy: int = 0
    hold_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"

    def put(self, name: str, content: bytes, **faults: object) -> str:
        self.files[name] = content
        self.faults[name] = Faults(**faults)  # type: ignore[arg-type]
        return self.url(name)

    def ranges(self, name: str) -> list[str | None]:
        return [asked for path, asked in self.asked if path == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: Host

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        host = self.host
        name = self.path.lstrip("/")
        with host.lock:
            host.asked.append((name, self.headers.get("Range")))
            host.busy += 1
            host.most_busy = max(host.most_busy, host.busy)
        try:
            if host.hold_s:
                threading.Event().wait(host.hold_s)
            self.answer(name)
        finally:
            with host.lock:
                host.busy -= 1

    def answer(self, name: str) -> None:
        faults = self.host.faults.get(name, Faults())
        if faults.fail_first > 0:
            faults.fail_first -= 1
            extra = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            return self.reply(faults.fail_status, b"busy", extra)
        if faults.status is not None:
            return self.reply(faults.status, b"no")
        if faults.html:
            return self.reply(200, HTML, {"Content-Type": faults.html_type})
        if name not in self.host.files:
            return self.reply(404, b"not here")
        content = self.host.files[name]
        etag = '"' + hashlib.md5(content).hexdigest() + '"'
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        usable = match and not faults.ignore_range and self.headers.get("If-Range", etag) == etag
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        start = int(match[1]) if match and usable else 0
        if usable and start >= len(content):
            return self.reply(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        if usable:
            said = start + faults.bad_content_range
            headers["Content-Range"] = f"bytes {said}-{len(content) - 1}/{len(content)}"
        return self.reply(206 if usable else 200, content[start:], headers, faults)

    def reply(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, faults: Faults | None = None
    ) -> None:
        faults = faults or Faults()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if faults.no_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body) + faults.announce_extra))
        self.end_headers()
        if faults.announce_extra:
            self.close_connection = True
        if faults.drop_after:
            body = body[: faults.drop_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of several tests."""


@pytest.fixture
def host() -> Iterator[Host]:
    state = Host()
    handler = type("BoundHandler", (Handler,), {"host": state})
    server = QuietServer(("127.0.0.1", 0), handler)
    state.base = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()
