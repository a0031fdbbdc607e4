"""Does a file begin like what its name promises? Hosts that moved often answer 200 with a web page."""

from __future__ import annotations

import re

_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_USTAR = slice(257, 262)


def wrong_content(head: bytes, content_type: str, name: str, expected: str) -> str:
    """A sentence about what is wrong with the beginning of a file, or "" if nothing is.

    head:         its first bytes (1,024 are enough), may be empty
    content_type: what the host says, or ""
    expected:     "tar" or "zip" where the file must begin as such an archive, otherwise ""
    """
    if not name.endswith((".html", ".htm", ".xhtml")):
        kind = content_type.partition(";")[0].strip().lower()
        start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
        if kind in ("text/html", "application/xhtml+xml") or start.startswith((b"<!doctype html", b"<html")):
            title = re.search(rb"<title>(.{1,80}?)</title>", head, re.IGNORECASE | re.DOTALL)
            named = f" ('{title[1].decode(errors='replace').strip()}')" if title else ""
            return f"expected an archive, got a web page{named}; the host may have moved or want a login"
    if expected == "zip" and head[:4] not in _ZIP:
        return f"expected a zip archive, got a file that begins with {head[:8]!r}"
    if expected == "tar" and not (head.startswith(_COMPRESSED) or head[_USTAR] == b"ustar"):
        if not _is_old_tar(head):
            return f"expected a tar archive, got a file that begins with {head[:8]!r}"
    return ""


def _is_old_tar(head: bytes) -> bool:
    """A tar header of before 1988: no magic word, but its checksum (octal, bytes 148-155) is right."""
    header = head[:512]
    if len(header) < 512:
        return False
    try:
        said = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    return said == sum(header) - sum(header[148:156]) + 8 * 32 and any(header)
