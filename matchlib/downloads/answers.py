"""What the head of an HTTP answer says, and how long to wait before asking again."""

from __future__ import annotations

import email.utils
import random
import re
import time

import requests

from matchlib.downloads.config import FetchPolicy


def span_of(response: requests.Response) -> tuple[int | None, int | None]:
    """(first byte of the body, length of the whole file), None where the answer does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match:
        return int(match[1]) if match[1] else None, int(match[2]) if match[2] != "*" else None
    length = response.headers.get("Content-Length", "")
    return (0 if response.status_code == 200 else None), (int(length) if length.isdigit() else None)


def retry_after_s(response: requests.Response) -> float | None:
    """Seconds that the host asks us to wait: a number, or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def wait_before(policy: FetchPolicy, idle: int, asked_s: float | None) -> float:
    """Exponential back-off; the random half keeps many clients from coming back in step."""
    backoff = min(policy.backoff_max_s, policy.backoff_s * 2.0 ** max(idle - 1, 0))
    wait_s = backoff * random.uniform(0.5, 1.0)
    return min(policy.backoff_max_s, max(wait_s, asked_s)) if asked_s is not None else wait_s


def brief(error: BaseException) -> str:
    """An exception of a library in a few words."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
