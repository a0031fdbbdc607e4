"""Downloads against a real server that misbehaves: nothing half-written is ever taken for finished."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from matchlib.completion import Lease, write_marker
from matchlib.downloads.answers import retry_after_s, wait_before
from matchlib.downloads.config import Archive, FetchPolicy, FileFacts, Parts
from matchlib.downloads.fetch import fetch_archive
from matchlib.downloads.partial import PartialFile
from matchlib.downloads.progress import Progress, readable_bytes
from matchlib.errors import ConfigError, DataError

DATA = random.Random(0).randbytes(700_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
POLICY = FetchPolicy(attempts=3, backoff_s=1.0, connect_timeout_s=5, read_timeout_s=5)


class Naps:
    """Stands in for sleeping and remembers how long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def naps() -> Naps:
    return Naps()


def plain(*urls: str, **facts: object) -> Archive:
    return Archive(name="a", kind="file", file="a.bin", urls=urls, **facts)  # type: ignore[arg-type]


def fetch(archive: Archive, folder: Path, naps: Naps, **more: object) -> bytes:
    (file,) = fetch_archive(archive, folder, policy=POLICY, sleep=naps, terminal=False, **more)  # type: ignore[arg-type]
    return file.path.read_bytes()


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_arrives_with_its_checksum_noted_and_nothing_else(host, tmp_path, naps):
    assert fetch(plain(host.put("a.bin", DATA)), tmp_path, naps) == DATA
    assert leftovers(tmp_path) == {"a.bin", "a.bin.sha256"}
    assert (tmp_path / "a.bin.sha256").read_text() == f"{SHA256}  a.bin\n"
    assert naps.seconds == []


def test_a_finished_file_is_not_asked_for_again(host, tmp_path, naps):
    archive = plain(host.put("a.bin", DATA), sha256=SHA256)
    fetch(archive, tmp_path, naps)
    before = len(host.asked)
    assert fetch(archive, tmp_path, naps) == DATA
    assert len(host.asked) == before


def test_a_server_that_drops_the_line_is_resumed_where_it_stopped(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[300_000, 200_000])
    assert fetch(plain(url, sha256=SHA256), tmp_path, naps) == DATA
    assert host.ranges("a.bin") == [None, "bytes=300000-", "bytes=500000-"]


def test_drops_that_bring_something_are_never_too_many(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[50_000] * 13)
    assert fetch(plain(url, sha256=SHA256), tmp_path, naps) == DATA


def test_drops_that_bring_nothing_end_with_the_address_and_the_reason(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[300_000] + [0] * 20)
    with pytest.raises(DataError, match="gave up after 3 attempts") as caught:
        fetch(plain(url), tmp_path, naps)
    assert url in str(caught.value)
    assert "a.bin" not in leftovers(tmp_path)
    host.faults["a.bin"].drop_after.clear()
    host.asked.clear()
    assert fetch(plain(url), tmp_path, naps) == DATA
    assert host.ranges("a.bin") == ["bytes=300000-"]


def test_a_server_that_cannot_resume_begins_again(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[300_000], ignore_range=True)
    assert fetch(plain(url, sha256=SHA256), tmp_path, naps) == DATA
    assert host.ranges("a.bin") == [None, "bytes=300000-"]


def test_a_server_that_cannot_resume_and_always_drops_does_not_go_on_for_ever(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[300_000] * 50, ignore_range=True)
    with pytest.raises(DataError, match="gave up"):
        fetch(plain(url), tmp_path, naps)
    assert len(host.asked) < 10


def test_a_file_that_changed_on_the_host_is_fetched_from_the_beginning(host, tmp_path, naps):
    other = random.Random(1).randbytes(650_000)
    url = host.put("a.bin", DATA, drop_after=[300_000, 0, 0, 0])
    with pytest.raises(DataError):
        fetch(plain(url), tmp_path, naps)
    host.put("a.bin", other)
    assert fetch(plain(url), tmp_path, naps) == other


def test_an_answer_for_the_wrong_range_is_not_appended(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[300_000], bad_content_range=7)
    assert fetch(plain(url), tmp_path, naps) == DATA


@pytest.mark.parametrize("attempt", [{"fail_first": 2}, {"fail_first": 2, "fail_status": 429}])
def test_a_busy_server_is_asked_again(host, tmp_path, naps, attempt):
    assert fetch(plain(host.put("a.bin", DATA, **attempt)), tmp_path, naps) == DATA
    assert len(naps.seconds) == 2
    assert 0.5 <= naps.seconds[0] <= 1.0 <= naps.seconds[1] <= 2.0


def test_a_server_that_names_a_time_is_given_it(host, tmp_path, naps):
    fetch(plain(host.put("a.bin", DATA, fail_first=1, retry_after="37")), tmp_path, naps)
    assert naps.seconds == [37.0]


def test_waits_grow_are_spread_and_end_at_the_limit():
    policy = FetchPolicy(backoff_s=2, backoff_max_s=30)
    for idle, top in [(0, 2), (1, 2), (2, 4), (3, 8), (9, 30)]:
        waits = {wait_before(policy, idle, None) for _ in range(50)}
        assert top / 2 <= min(waits) < max(waits) <= top
    assert wait_before(policy, 1, 3600.0) == 30


def test_retry_after_may_be_a_date():
    import requests

    response = requests.Response()
    response.headers["Retry-After"] = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert retry_after_s(response) == 0.0
    response.headers["Retry-After"] = "soon"
    assert retry_after_s(response) is None


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_instead_of_an_archive_is_refused_and_the_next_address_used(host, tmp_path, naps, kind):
    page = host.put("page/a.bin", b"", html=True, html_type=kind)
    good = host.put("good/a.bin", DATA)
    assert fetch(plain(page, good), tmp_path, naps) == DATA
    assert naps.seconds == []


def test_a_web_page_alone_is_an_error_that_says_so(host, tmp_path, naps):
    page = host.put("a.bin", b"", html=True, html_type="application/octet-stream")
    with pytest.raises(DataError, match=r"expected an archive, got a web page \('Moved'\)") as caught:
        fetch(plain(page), tmp_path, naps)
    assert page in str(caught.value)
    assert leftovers(tmp_path) == set()


def test_something_else_than_an_archive_is_refused(host, tmp_path, naps):
    url = host.put("a.zip", DATA)
    archive = Archive(name="a", kind="zip", urls=(url,))
    with pytest.raises(DataError, match="expected a zip archive, got a file that begins with"):
        fetch(archive, tmp_path, naps)


def test_a_wrong_checksum_names_address_expected_and_got_and_leaves_nothing(host, tmp_path, naps):
    url = host.put("a.bin", DATA)
    with pytest.raises(DataError) as caught:
        fetch(plain(url, sha256="ab" * 32), tmp_path, naps)
    for part in (url, "ab" * 32, SHA256):
        assert part in str(caught.value)
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("algorithm", ["md5", "sha1"])
def test_other_checksums_count_too(host, tmp_path, naps, algorithm):
    url = host.put("a.bin", DATA)
    with pytest.raises(DataError, match=f"wrong {algorithm}"):
        fetch(plain(url, **{algorithm: "0" * len(hashlib.new(algorithm).hexdigest())}), tmp_path, naps)
    assert fetch(plain(url, **{algorithm: hashlib.new(algorithm, DATA).hexdigest()}), tmp_path, naps) == DATA


def test_after_wrong_content_the_next_address_is_used(host, tmp_path, naps):
    wrong = host.put("one/a.bin", DATA[:-1] + b"x")
    good = host.put("two/a.bin", DATA)
    assert fetch(plain(wrong, good, sha256=SHA256), tmp_path, naps) == DATA


@pytest.mark.parametrize("missing", [{"status": 404}, {"status": 403}, {"status": 500}])
def test_an_address_that_fails_is_followed_by_the_next(host, tmp_path, naps, missing):
    assert fetch(plain(host.put("x", b"", **missing), host.put("a.bin", DATA)), tmp_path, naps) == DATA


def test_a_host_that_dies_for_good_is_continued_by_another_if_a_checksum_guards_it(host, tmp_path, naps):
    one = host.put("one/a.bin", DATA, drop_after=[400_000] + [0] * 9)
    two = host.put("two/a.bin", DATA)
    assert fetch(plain(one, two, sha256=SHA256), tmp_path, naps) == DATA
    assert host.ranges("two/a.bin") == ["bytes=400000-"]


def test_without_a_checksum_bytes_of_two_hosts_are_not_mixed(host, tmp_path, naps):
    one = host.put("one/a.bin", b"y" * 700_000, drop_after=[400_000] + [0] * 9)
    two = host.put("two/a.bin", DATA)
    assert fetch(plain(one, two), tmp_path, naps) == DATA
    assert host.ranges("two/a.bin") == [None]


def test_a_good_host_is_not_blamed_for_the_bytes_of_a_bad_one(host, tmp_path, naps):
    one = host.put("one/a.bin", b"y" * 700_000, drop_after=[400_000] + [0] * 9)
    two = host.put("two/a.bin", DATA)
    assert fetch(plain(one, two, sha256=SHA256), tmp_path, naps) == DATA
    assert host.ranges("two/a.bin") == ["bytes=400000-", None]


def test_a_host_that_refuses_connections_is_followed_by_the_next(host, tmp_path, naps):
    assert fetch(plain("http://127.0.0.1:9/a.bin", host.put("a.bin", DATA)), tmp_path, naps) == DATA
    assert len(naps.seconds) == POLICY.attempts - 1


def test_a_body_shorter_than_announced_is_not_taken(host, tmp_path, naps):
    with pytest.raises(DataError, match="gave up"):
        fetch(plain(host.put("a.bin", DATA, announce_extra=100)), tmp_path, naps)
    assert "a.bin" not in leftovers(tmp_path)


def test_a_length_that_is_known_beforehand_is_demanded(host, tmp_path, naps):
    with pytest.raises(DataError, match="expected 5 bytes, got 700000"):
        fetch(plain(host.put("a.bin", DATA), bytes=5), tmp_path, naps)


def test_a_server_without_lengths_is_accepted_if_the_checksum_is_right(host, tmp_path, naps):
    url = host.put("a.bin", DATA, no_length=True)
    assert fetch(plain(url, sha256=SHA256), tmp_path, naps) == DATA
    with pytest.raises(DataError, match="wrong sha256"):
        fetch(plain(host.put("b", DATA, no_length=True, drop_after=[9]), sha256=SHA256), tmp_path / "b", naps)


# ---------------------------------------------------------------- recorded on first download
def test_the_first_download_is_recorded_and_later_ones_must_agree(host, tmp_path, naps):
    archive = plain(host.put("a.bin", DATA))
    fetch(archive, tmp_path, naps)
    (tmp_path / "a.bin").unlink()
    host.put("a.bin", DATA[::-1])
    with pytest.raises(DataError, match="as recorded at the first download") as caught:
        fetch(archive, tmp_path, naps)
    assert SHA256 in str(caught.value)
    (tmp_path / "a.bin.sha256").unlink()
    assert fetch(archive, tmp_path, naps) == DATA[::-1]


def test_a_file_that_rotted_on_the_disk_is_fetched_again(host, tmp_path, naps):
    archive = plain(host.put("a.bin", DATA))
    fetch(archive, tmp_path, naps)
    (tmp_path / "a.bin").write_bytes(DATA[:-1] + b"?")
    assert fetch(archive, tmp_path, naps) == DATA
    assert (tmp_path / "a.bin.wrong").read_bytes() == DATA[:-1] + b"?"


# ---------------------------------------------------------------- crashes, disks, other processes
def test_a_download_that_was_killed_is_resumed(host, tmp_path, naps):
    url = host.put("a.bin", DATA * 20)
    # The child writes slowly, so that it is killed in the middle.
    script = (
        "import sys, time, pathlib\n"
        "from matchlib.downloads import partial\n"
        "partial._SYNC_BYTES = 1 << 20\n"
        "write = partial.PartialFile.write\n"
        "def slow(self, data):\n"
        "    write(self, data)\n"
        "    time.sleep(0.05)\n"
        "partial.PartialFile.write = slow\n"
        "from matchlib.downloads.config import Archive\n"
        "from matchlib.downloads.fetch import fetch_archive\n"
        "archive = Archive(name='a', kind='file', file='a.bin', urls=(sys.argv[1],))\n"
        "fetch_archive(archive, pathlib.Path(sys.argv[2]))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, url, str(tmp_path)])
    side = tmp_path / "a.bin.part.json"
    deadline = time.monotonic() + 20
    while not (side.is_file() and json.loads(side.read_text())["bytes"] > 2_000_000):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (tmp_path / "lease.json").exists() and not (tmp_path / "a.bin").exists()
    host.asked.clear()
    assert fetch(plain(url), tmp_path, naps) == DATA * 20
    (asked,) = host.ranges("a.bin")
    assert asked is not None and int(asked.removeprefix("bytes=").rstrip("-")) > 2_000_000


def test_a_part_that_a_crash_damaged_is_not_built_upon(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[300_000, 0, 0, 0])
    with pytest.raises(DataError):
        fetch(plain(url), tmp_path, naps)
    part = tmp_path / "a.bin.part"
    content = bytearray(part.read_bytes())
    content[100_000:100_004] = b"\0\0\0\0"
    part.write_bytes(content)
    assert fetch(plain(url), tmp_path, naps) == DATA


def test_bytes_beyond_those_that_are_safely_on_the_disk_are_cut(host, tmp_path, naps):
    url = host.put("a.bin", DATA, drop_after=[300_000, 0, 0, 0])
    with pytest.raises(DataError):
        fetch(plain(url), tmp_path, naps)
    with open(tmp_path / "a.bin.part", "ab") as stream:
        stream.write(b"never synced")
    assert fetch(plain(url), tmp_path, naps) == DATA


def test_a_part_that_was_complete_needs_no_more_bytes(host, tmp_path, naps):
    url = host.put("a.bin", DATA)
    with PartialFile(tmp_path / "a.bin") as partial:
        partial.describe(url, etag=None, length=len(DATA))
        partial.write(DATA)
    assert fetch(plain(url), tmp_path, naps) == DATA
    assert host.ranges("a.bin") == ["bytes=700000-"]


def test_a_part_longer_than_the_file_on_the_host_is_thrown_away(host, tmp_path, naps):
    url = host.put("a.bin", DATA)
    with PartialFile(tmp_path / "a.bin") as partial:
        partial.describe(url, etag=None, length=len(DATA) + 10)
        partial.write(DATA + b"0123456789")
    assert fetch(plain(url), tmp_path, naps) == DATA


def test_too_little_disk_is_said_before_anything_is_fetched(host, tmp_path, naps, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match="not enough disk: 700 kB are to come, 1.0 kB are free"):
        fetch(plain(host.put("a.bin", DATA)), tmp_path, naps)


def test_a_full_disk_is_explained_and_the_part_kept(host, tmp_path, naps, monkeypatch):
    write = PartialFile.write

    def full(self: PartialFile, data: bytes) -> None:
        if self.size + len(data) > 400_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "write", full)
        with pytest.raises(DataError, match="the disk is full.*run again"):
            fetch(plain(host.put("a.bin", DATA)), tmp_path, naps)
    assert "a.bin" not in leftovers(tmp_path)
    host.asked.clear()
    assert fetch(plain(host.url("a.bin")), tmp_path, naps) == DATA
    assert host.ranges("a.bin")[0] is not None


def test_two_processes_do_not_fetch_into_one_folder(host, tmp_path, naps):
    with Lease(tmp_path), pytest.raises(DataError, match="is writing here"):
        fetch(plain(host.put("a.bin", DATA)), tmp_path, naps)


# ---------------------------------------------------------------- parts
def split_archive(host, count: int, **more: object) -> tuple[Archive, bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("x")
        entry.size = len(DATA)
        tar.addfile(entry, io.BytesIO(DATA))
    content = packed.getvalue()
    step = -(-len(content) // count)
    for number in range(count):
        host.put(f"x.tar.{number:03d}", content[number * step : (number + 1) * step])
    parts = Parts(pattern="x.tar.{number:03d}", **more)  # type: ignore[arg-type]
    return Archive(name="x", kind="tar-split", urls=(host.base + "/{file}",), parts=parts), content


def test_parts_are_fetched_at_once_within_the_limit(host, tmp_path, naps):
    archive, content = split_archive(host, 8, last=7)
    host.hold_s = 0.05
    policy = FetchPolicy(max_connections=3)
    files = fetch_archive(archive, tmp_path, policy=policy, sleep=naps, terminal=False)
    assert b"".join(file.path.read_bytes() for file in files) == content
    assert host.most_busy in (2, 3)


def test_a_failing_part_stops_the_others_and_is_the_one_that_is_named(host, tmp_path, naps):
    archive, content = split_archive(host, 4, last=3)
    host.faults["x.tar.002"].status = 404
    with pytest.raises(DataError, match=r"x\.tar\.002: could not be fetched.*HTTP 404"):
        fetch_archive(archive, tmp_path, policy=POLICY, sleep=naps, terminal=False)
    host.faults["x.tar.002"].status = None
    files = fetch_archive(archive, tmp_path, policy=POLICY, sleep=naps, terminal=False)
    assert b"".join(file.path.read_bytes() for file in files) == content


def test_a_series_of_unknown_length_ends_where_a_part_is_missing(host, tmp_path, naps):
    archive, content = split_archive(host, 5)
    files = fetch_archive(archive, tmp_path, policy=POLICY, sleep=naps, terminal=False)
    assert b"".join(file.path.read_bytes() for file in files) == content


def test_a_series_of_unknown_length_does_not_end_at_a_server_error(host, tmp_path, naps):
    archive, _ = split_archive(host, 5)
    host.faults["x.tar.003"].status = 500
    with pytest.raises(DataError, match="HTTP 500"):
        fetch_archive(archive, tmp_path, policy=POLICY, sleep=naps, terminal=False)


def test_checksums_of_parts_are_compared(host, tmp_path, naps):
    archive, _ = split_archive(host, 2, last=1)
    wrong = Archive(
        name="x",
        kind="tar-split",
        urls=archive.urls,
        parts=archive.parts,
        files={"x.tar.001": FileFacts(md5="0" * 32)},
    )
    with pytest.raises(DataError, match=r"x\.tar\.001.*wrong md5"):
        fetch_archive(wrong, tmp_path, policy=POLICY, sleep=naps, terminal=False)


# ---------------------------------------------------------------- mirror
def test_a_mirror_goes_the_same_way_as_a_server(tmp_path, naps):
    root = tmp_path / "my mirror%20"
    (root / "gl3d").mkdir(parents=True)
    (root / "gl3d" / "a.bin").write_bytes(DATA)
    archive = plain("mirror:gl3d/a.bin")
    with PartialFile(tmp_path / "out" / "a.bin") as partial:
        partial.write(DATA[:1000])
    assert fetch(archive, tmp_path / "out", naps, mirror_root=root) == DATA
    with pytest.raises(DataError, match="HTTP 404"):
        fetch(plain("mirror:gl3d/b.bin"), tmp_path / "b", naps, mirror_root=root)


def test_a_mirror_with_a_marker_vouches_for_its_files(tmp_path, naps):
    root = tmp_path / "mirror"
    root.mkdir()
    (root / "a.bin").write_bytes(DATA)
    write_marker(root, stage="mirror", fingerprint="1", files=[root / "a.bin"])
    archive = plain("mirror:a.bin")
    assert fetch(archive, tmp_path / "out", naps, mirror_root=root) == DATA
    (root / "a.bin").write_bytes(DATA[:-1] + b"!")
    with pytest.raises(DataError, match="wrong sha256"):
        fetch(archive, tmp_path / "other", naps, mirror_root=root)
    # A mirror that was made again is followed, although the first download was recorded.
    write_marker(root, stage="mirror", fingerprint="2", files=[root / "a.bin"])
    assert fetch(archive, tmp_path / "out", naps, mirror_root=root) == DATA[:-1] + b"!"


@pytest.mark.parametrize("url", ["mirror:../secret", "mirror:/etc/passwd", "mirror:a/../../b"])
def test_mirror_addresses_stay_in_the_mirror(tmp_path, naps, url):
    with pytest.raises(ConfigError, match="below the mirror's root"):
        fetch(plain(url), tmp_path, naps, mirror_root=tmp_path)


def test_mirror_addresses_need_a_mirror(tmp_path, naps):
    with pytest.raises(ConfigError, match="needs a local mirror"):
        fetch(plain("mirror:a.bin"), tmp_path, naps)


# ---------------------------------------------------------------- progress
def test_progress_says_how_much_how_fast_and_how_long():
    with Progress("a", 1_000_000, terminal=False) as progress:
        progress.add(250_000, fetched=False)
        progress.add(250_000)
        assert progress.line().startswith("a: 500 kB of 1.0 MB (50 %), ")
        assert progress.line().endswith("left")
    assert [readable_bytes(n) for n in (0, 999, 27.5e9, 4e12)] == ["0 B", "999 B", "27.5 GB", "4.00 TB"]


def test_progress_bar_on_a_terminal_reaches_the_total(capsys):
    with Progress("a", 100, terminal=True) as progress:
        progress.add(100)
    assert "100%" in capsys.readouterr().err
