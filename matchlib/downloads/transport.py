"""One way to read http, https, file and mirror addresses: a requests session that also speaks `file:`."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import requests
from requests.adapters import BaseAdapter
from urllib3.response import HTTPResponse

from matchlib.errors import ConfigError

MIRROR_SCHEME = "mirror:"


def resolve_url(url: str, mirror_root: Path | None) -> str:
    """Turn `mirror:a/b.tar` into the `file:` address below `mirror_root`; others stay as they are.

    Raises ConfigError if there is no mirror or the path leaves it.
    """
    if not url.startswith(MIRROR_SCHEME):
        return url
    if mirror_root is None:
        raise ConfigError(f"{url}: needs a local mirror, but none is configured")
    return "file://" + quote(str((mirror_root / mirror_path(url)).absolute()))


def mirror_path(url: str) -> str:
    """The path below the mirror's root that a `mirror:` address means. Raises ConfigError if outside."""
    path = PurePosixPath(url.removeprefix(MIRROR_SCHEME))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(f"{url}: expected a path below the mirror's root")
    return path.as_posix()


def open_session() -> requests.Session:
    """A session that asks for bytes as they are on the host: compressed on the way, lengths mean nothing."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    session.mount("file://", FileAdapter())
    return session


class FileAdapter(BaseAdapter):
    """Answers GET for `file:` addresses as an HTTP server would: length, ETag, Range, If-Range, 404, 416."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: None | float | tuple[float, float] | tuple[float, None] = None,
        verify: bool | str = True,
        cert: None | bytes | str | tuple[bytes | str, bytes | str] = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Read the file, from the place that `Range` names. Nothing is loaded before the body is read."""
        path = Path(unquote(urlsplit(request.url or "").path))
        try:
            body = open(path, "rb")  # closed with the response
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return _response(request, 404, {}, io.BytesIO())
        except PermissionError:
            return _response(request, 403, {}, io.BytesIO())
        size, etag = _identity(body)
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        start = _range_start(request.headers, etag)
        if start is None:
            return _response(request, 200, headers | {"Content-Length": str(size)}, body)
        if start >= size:
            body.close()
            return _response(request, 416, headers | {"Content-Range": f"bytes */{size}"}, io.BytesIO())
        body.seek(start)
        headers |= {"Content-Range": f"bytes {start}-{size - 1}/{size}", "Content-Length": str(size - start)}
        return _response(request, 206, headers, body)

    def close(self) -> None:
        """Nothing to close: each response owns its file."""


def _identity(body: io.BufferedReader) -> tuple[int, str]:
    state = os.fstat(body.fileno())
    return state.st_size, f'"{state.st_size:x}-{state.st_mtime_ns:x}"'


def _range_start(headers: Mapping[str, Any], etag: str) -> int | None:
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
    if match is None or headers.get("If-Range", etag) != etag:
        return None
    return int(match[1])


def _response(
    request: requests.PreparedRequest, status: int, headers: dict[str, str], body: io.BufferedIOBase
) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response.url = request.url or ""
    response.request = request
    response.headers.update(headers)
    response.raw = HTTPResponse(body=body, headers=headers, status=status, preload_content=False)
    return response
