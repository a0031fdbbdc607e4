from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import matchlib.match_sets.build as builder
from matchlib.completion import MARKER, Lease, read_marker
from matchlib.datasets.gl3d import CorrRecord, read_corr, write_corr
from matchlib.datasets.pfm import write_pfm
from matchlib.errors import ConfigError, DataError
from matchlib.match_sets.index import read_images, read_pairs

SCENE = "0123456789abcdef01234567"


@pytest.fixture
def scene(corr_scene):
    return corr_scene / "data" / SCENE


def assert_unfinished(folder):
    assert not (folder / MARKER).exists()


def test_a_cut_corr_file_stops_with_file_and_byte(build_corr, scene, tmp_path):
    path = scene / "geolabel" / "corr.bin"
    os.truncate(path, path.stat().st_size - 7)
    with pytest.raises(DataError, match=r"corr.bin: byte \d+: .*cut"):
        build_corr()
    assert_unfinished(tmp_path / "out")


def test_an_odd_keypoint_file_stops_with_file_and_byte(build_corr, scene, tmp_path):
    path = scene / "img_kpts" / "00000001.bin"
    os.truncate(path, 24 * 119 + 3)
    with pytest.raises(DataError, match=r"00000001.bin: .* at byte 2856, is cut"):
        build_corr()
    assert_unfinished(tmp_path / "out")


def test_keypoint_rows_that_do_not_exist_stop(build_corr, scene):
    records = list(read_corr(scene / "geolabel" / "corr.bin"))
    rows = records[1].rows.copy()
    rows[2, 14] = 500
    write_corr(scene / "geolabel" / "corr.bin", [records[0], CorrRecord(0, 2, rows)])
    with pytest.raises(DataError, match=r"corr.bin: byte \d+: expected keypoint rows below \(120, 120\)"):
        build_corr()


def break_camera(scene):
    path = scene / "geolabel" / "cameras.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


FAULTS = {
    "image without camera": break_camera,
    "no keypoint file": lambda scene: (scene / "img_kpts" / "00000003.bin").unlink(),
    "image missing": lambda scene: (scene / "undist_images" / "00000003.jpg").unlink(),
    "depth all zero": lambda scene: write_pfm(
        scene / "depths" / "00000003.pfm", np.zeros((5, 5), np.float32)
    ),
    "unreadable depth": lambda scene: (scene / "depths" / "00000003.pfm").write_bytes(b"Pf\n9 9\n-1\n"),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_an_unusable_image_costs_its_pairs_or_stops_above_the_share(
    build_corr, scene, tmp_path, caplog, reason
):
    caplog.set_level(logging.INFO)
    FAULTS[reason](scene)
    with pytest.raises(DataError, match=r"1 of 4 images cannot be used, more than .* = 0.1: .*(3|00000003)"):
        build_corr(out="strict")
    assert_unfinished(tmp_path / "strict")
    folder = build_corr(max_unreadable_share=0.25)
    assert [row.pair for row in read_pairs(folder)] == [0, 1]
    assert f"2 {reason}" in caplog.text and "1 images cannot be used: " in caplog.text
    assert 3 not in read_images(folder, scene.parents[1])


def test_what_is_finished_is_left_alone(build_corr):
    folder = build_corr()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_corr()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert set(before) == {".complete", "records.f32", "index.csv", "images.csv"}
    build_corr(regenerate=True)
    assert (folder / "records.f32").stat().st_mtime_ns != before["records.f32"]


def test_changed_bytes_are_noticed_even_with_equal_size_and_time(build_corr, scene):
    folder = build_corr()
    first = read_marker(folder)
    path = scene / "img_kpts" / "00000000.bin"
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    build_corr()
    assert read_marker(folder).fingerprint != first.fingerprint
    assert read_marker(folder).files["records.f32"] != first.files["records.f32"]


def test_other_settings_or_a_lost_file_build_again(build_corr):
    folder = build_corr()
    first = read_marker(folder)
    build_corr(noise=False)
    assert read_marker(folder) != first
    build_corr()
    assert read_marker(folder) == first
    (folder / "index.csv").unlink()
    build_corr()
    assert read_marker(folder) == first and (folder / "index.csv").is_file()


def test_a_second_writer_is_refused(build_corr, tmp_path):
    with Lease(tmp_path / "out"), pytest.raises(DataError, match="is writing here"):
        build_corr()


def test_a_source_that_the_scene_lacks_is_a_settings_error(build_corr, scene):
    (scene / "geolabel" / "corr.bin").unlink()
    with pytest.raises(ConfigError, match="no corr.bin"):
        build_corr(source="corr")


@pytest.mark.parametrize("pairs_before", [0, 1, 2])
def test_an_interrupted_build_goes_on_where_it_was(build_corr, monkeypatch, tmp_path, pairs_before):
    undisturbed = read_marker(build_corr(out="undisturbed"))
    monkeypatch.setattr(builder, "_CHUNK_BYTES", 1)  # one pair at a time
    monkeypatch.setattr("matchlib.match_sets.progress._CHECKPOINT_S", 0.0)
    fill, calls = builder.fill_record, []

    def interrupted(*args, **kwargs):
        if len(calls) == pairs_before:
            raise KeyboardInterrupt
        calls.append(1)
        return fill(*args, **kwargs)

    monkeypatch.setattr(builder, "fill_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_corr()
    assert_unfinished(tmp_path / "out")
    calls.clear()
    monkeypatch.setattr(builder, "fill_record", lambda *a, **k: (calls.append(1), fill(*a, **k))[1])
    assert read_marker(build_corr()) == undisturbed
    assert len(calls) == 3 - pairs_before
    assert not (tmp_path / "out" / "work").exists()


def test_work_that_was_cut_behind_its_checkpoint_is_done_again(build_corr, monkeypatch, tmp_path):
    undisturbed = read_marker(build_corr(out="undisturbed"))
    monkeypatch.setattr(builder, "_CHUNK_BYTES", 1)
    monkeypatch.setattr("matchlib.match_sets.progress._CHECKPOINT_S", 0.0)
    monkeypatch.setattr(builder.RecordLog, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_corr()
    monkeypatch.undo()
    records = tmp_path / "out" / "work" / "records.f32"
    os.truncate(records, records.stat().st_size - 100)  # a disk that lost the end
    assert read_marker(build_corr()) == undisturbed


CHILD = """
import sys, time
from pathlib import Path
import matchlib.match_sets.build as b
import matchlib.match_sets.progress as p
from matchlib.match_sets.config import MatchSetConfig
b._CHUNK_BYTES = 1
p._CHECKPOINT_S = 0.0
fill = b.fill_record
def slow(*args, **kwargs):
    print("pair", flush=True)
    time.sleep(0.05)
    return fill(*args, **kwargs)
b.fill_record = slow
config = MatchSetConfig(slots=64, min_keypoints=100, min_inlier_ratio=0.1)
b.build_match_set(dataset_format="gl3d", root=Path(sys.argv[1]), scene=sys.argv[2], out=Path(sys.argv[3]),
                  config=config, seed=0)
"""


def test_kill_9_never_leaves_a_folder_that_looks_finished(build_corr, corr_scene, tmp_path):
    undisturbed = read_marker(build_corr(out="undisturbed"))
    command = [sys.executable, "-c", CHILD, str(corr_scene), SCENE, str(tmp_path / "out")]
    for delay_s in (0.0, 0.03, 0.08):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.readline()  # the first pair of this attempt has begun
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        child.stderr.close()
        assert_unfinished(tmp_path / "out")
        assert (tmp_path / "out" / "lease.json").exists()  # nobody cleaned up; the next run takes it over
    assert read_marker(build_corr()) == undisturbed
