"""Promises of matchlib.completion: nothing looks finished that is not, and one writer per folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matchlib import completion
from matchlib.errors import DataError


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    completion.atomic_write(target, "old")
    with pytest.raises(RuntimeError), completion.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("interrupted")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.json"]


@pytest.mark.parametrize("count", [3, 500])
def test_marker_round_trip_and_equal_results_give_equal_bytes(tmp_path: Path, count: int) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        files = []
        for index in range(count):
            files.append(folder / f"{index}.bin")
            files[-1].write_bytes(bytes([index % 251]))
        written = completion.write_marker(folder, stage="test", fingerprint="f", files=files)
        assert completion.read_marker(folder) == written
        assert len(written.files) == count
    markers = [(folder / completion.MARKER).read_bytes() for folder in folders]
    assert markers[0] == markers[1]
    assert len(markers[0]) < 1_000_000


def test_verify_names_what_changed_and_removes_a_marker_that_lies(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin", "c.bin"):
        (tmp_path / name).write_bytes(name.encode())
    completion.write_marker(
        tmp_path, stage="test", fingerprint="f", files=[tmp_path / n for n in ("a.bin", "b.bin", "c.bin")]
    )
    assert completion.verify_folder(tmp_path) == []
    (tmp_path / "a.bin").unlink()
    (tmp_path / "b.bin").write_bytes(b"other")
    faults = completion.verify_folder(tmp_path)
    assert len(faults) == 2 and "a.bin: missing" in faults[0] and "b.bin: expected sha256" in faults[1]
    assert completion.read_marker(tmp_path) is None


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    digests = {f"{i}.bin": "0" * 64 for i in range(300)}
    completion.write_marker_digests(tmp_path, stage="test", fingerprint="f", digests=digests)
    (tmp_path / completion.MANIFEST).write_text('["0.bin", "1"]\n')
    with pytest.raises(DataError, match="changed after it was written"):
        completion.read_marker(tmp_path)


def test_a_torn_marker_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / completion.MARKER).write_text('{"stage": "te')
    with pytest.raises(DataError, match="delete it and run the stage again"):
        completion.read_marker(tmp_path)


def test_fingerprint_depends_on_each_part_and_not_on_where_inputs_lie(tmp_path: Path) -> None:
    first, second = tmp_path / "one.json", tmp_path / "two" / "moved.json"
    second.parent.mkdir()
    first.write_text("x")
    second.write_text("x")

    def make(**changes: object) -> str:
        arguments: dict[str, object] = {"stage": "s", "revision": 1, "settings": {"a": 1}, "inputs": [first]}
        return completion.fingerprint(**(arguments | changes))  # type: ignore[arg-type]

    assert make() == make(inputs=[second])
    assert len({make(), make(stage="t"), make(revision=2), make(settings={"a": 2}), make(inputs=[])}) == 5
    with pytest.raises(DataError, match="stage before is not finished"):
        make(inputs=[tmp_path / "absent"])


def test_work_is_resumed_only_under_the_same_fingerprint(tmp_path: Path) -> None:
    work = completion.open_work(tmp_path, "first")
    (work / "state").write_text("step 3")
    assert (completion.open_work(tmp_path, "first") / "state").read_text() == "step 3"
    assert not (completion.open_work(tmp_path, "second") / "state").exists()
    assert (tmp_path / "work.stale-first" / "state").read_text() == "step 3"


HOLD = """
import sys, time
from pathlib import Path
from matchlib.completion import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lease_names_its_holder_and_is_taken_over_after_a_kill(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"process {holder.pid} on"):
            completion.Lease(tmp_path).__enter__()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with completion.Lease(tmp_path):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lease.json").exists()


def test_a_lease_of_another_host_is_taken_over_when_nobody_touches_it(tmp_path: Path) -> None:
    lease = tmp_path / "lease.json"
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "slurm_job": None}))
    with pytest.raises(DataError, match="on elsewhere"):
        completion.Lease(tmp_path).__enter__()
    old = time.time() - completion.LEASE_STALE_S - 1
    os.utime(lease, (old, old))
    with completion.Lease(tmp_path):
        assert json.loads(lease.read_text())["host"] != "elsewhere"


def test_a_recycled_pid_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    holder = {"host": completion.socket.gethostname(), "pid": os.getpid(), "started": "1", "slurm_job": None}
    (tmp_path / "lease.json").write_text(json.dumps(holder))
    with completion.Lease(tmp_path):
        pass
