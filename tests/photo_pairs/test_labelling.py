"""Labelling photographs: seeds, resuming after a kill at any moment, unreadable files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from matchlib.completion import MARKER, WORK
from matchlib.errors import DataError, ShapeError
from matchlib.photo_pairs.labelling import label_photographs
from matchlib.photo_pairs.labels import COUNTS, NAMES, POINTS, PseudoLabels
from matchlib.randomness import address_seed

RESULT = (NAMES, COUNTS, POINTS, MARKER)


class Corners:
    """A labeller that depends on image and seed, and counts its calls."""

    def __init__(self, fingerprint: str = "corners") -> None:
        self.fingerprint = fingerprint
        self.calls = 0

    def label(self, image: np.ndarray, seed: int) -> np.ndarray:
        self.calls += 1
        random = np.random.default_rng(seed)
        points = random.random((int(image[0, 0, 0]) % 5, 3)).astype(np.float32)
        return points * np.array([image.shape[1], image.shape[0], 1], np.float32)


def label(root: Path, names, out: Path, labeller=None, **settings) -> Corners:
    labeller = labeller or Corners()
    label_photographs(
        root=root, names=names, labeller=labeller, out=out, **{"seed": 1, "save_every": 2, **settings}
    )
    return labeller


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULT}


def test_every_photograph_gets_the_points_of_its_own_seed(photo_folder, tmp_path):
    root, names = photo_folder(5)
    label(root, names, tmp_path / "whole")
    label(root, names, tmp_path / "other", save_every=4)
    assert contents(tmp_path / "whole") == contents(tmp_path / "other")
    assert not (tmp_path / "whole" / WORK).exists()
    label(root, names[3:], tmp_path / "part")  # a shard cut differently
    whole, part = PseudoLabels([tmp_path / "whole"]), PseudoLabels([tmp_path / "part"])
    assert sum(len(whole.points(name)) for name in names) > 3
    for name in names[3:]:
        np.testing.assert_array_equal(whole.points(name), part.points(name))
    label(root, names, tmp_path / "seed", seed=2)
    assert contents(tmp_path / "seed")[POINTS] != contents(tmp_path / "whole")[POINTS]


def test_the_seed_of_a_photograph_is_a_function_of_its_name(photo_folder, tmp_path):
    seeds = []

    class Noting(Corners):
        def label(self, image, seed):
            seeds.append(seed)
            return super().label(image, seed)

    root, names = photo_folder(3)
    label(root, names, tmp_path / "out", Noting(), seed=9)
    assert seeds == [address_seed(9, name) for name in names]
    assert len(set(seeds)) == 3


def test_finished_work_is_not_done_again_unless_something_changed(photo_folder, tmp_path):
    root, names = photo_folder(3)
    out = tmp_path / "out"
    assert label(root, names, out).calls == 3
    assert label(root, names, out).calls == 0
    assert label(root, names, out, Corners("other weights")).calls == 3
    assert label(root, names, out, Corners("other weights"), seed=5).calls == 3
    with open(root / names[0], "ab") as stream:
        stream.write(b"longer")
    assert label(root, names, out, Corners("other weights"), seed=5).calls == 3
    (out / POINTS).unlink()
    assert label(root, names, out, Corners("other weights"), seed=5).calls == 3


def test_unreadable_photographs_have_no_points_and_are_named(photo_folder, tmp_path, caplog):
    root, names = photo_folder(4)
    (root / names[1]).write_bytes(b"broken")
    (root / names[3]).unlink()
    label(root, names, tmp_path / "out")
    labels = PseudoLabels([tmp_path / "out"])
    assert len(labels) == 4 and len(labels.points(names[1])) == 0 and len(labels.points(names[3])) == 0
    warned = " ".join(record.getMessage() for record in caplog.records)
    assert "001.png: not a readable image" in warned and "003.png: cannot be read" in warned


def test_if_nothing_can_be_read_nothing_is_finished(photo_folder, tmp_path):
    root, names = photo_folder(2)
    for name in names:
        (root / name).write_bytes(b"broken")
    with pytest.raises(DataError, match="none of 2 photographs can be read, the first is"):
        label(root, names, tmp_path / "out")
    assert not (tmp_path / "out" / MARKER).exists()


def test_a_labeller_that_breaks_its_promise_is_stopped(photo_folder, tmp_path):
    class Wrong(Corners):
        def label(self, image, seed):
            return np.zeros((3, 2), np.float32)

    root, names = photo_folder(1)
    with pytest.raises(ShapeError, match=r"labels of 000\.png"):
        label(root, names, tmp_path / "out", Wrong())


def test_an_interrupted_run_goes_on_behind_its_last_saved_part(photo_folder, tmp_path):
    class Interrupted(Corners):
        def label(self, image, seed):
            if self.calls == 5:
                raise KeyboardInterrupt
            return super().label(image, seed)

    root, names = photo_folder(8)
    with pytest.raises(KeyboardInterrupt):
        label(root, names, tmp_path / "out", Interrupted())
    damaged = tmp_path / "out" / WORK / "part-00001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert label(root, names, tmp_path / "out").calls == 6  # all but the first part, whose two are saved
    label(root, names, tmp_path / "calm")
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


_SLOW = """
    import json, sys, time
    from pathlib import Path
    import numpy as np
    from matchlib.photo_pairs.labelling import label_photographs

    class Slow:
        fingerprint = "slow"
        def label(self, image, seed):
            time.sleep(0.02)
            return np.random.default_rng(seed).random((7, 3), dtype=np.float32)

    root, out, names = sys.argv[1:]
    print("ready", flush=True)
    label_photographs(root=Path(root), names=json.loads(names), labeller=Slow(), out=Path(out), seed=3, save_every=2)
"""


def test_killed_at_any_moment_it_ends_with_the_same_bytes(photo_folder, tmp_path):
    root, names = photo_folder(24, size=(20, 20))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(_SLOW), str(root), str(out), json.dumps(names)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    calm = start(tmp_path / "calm")
    calm.communicate(timeout=60)
    assert calm.returncode == 0
    kills, progress, out = 0, [], tmp_path / "out"
    for delay_s in (0.13, 0.21, 0.08, 0.17, 60.0):
        process = start(out)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            process.wait(timeout=delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        process.stdout.close()
        progress.append(len(list(out.glob(f"{WORK}/part-*.npz"))))
        if process.returncode == 0:
            break
    assert kills >= 1 and process.returncode == 0
    before_end = [saved for saved in progress if saved]  # none are left when the shard is finished
    assert before_end == sorted(before_end)  # no saved part is ever lost
    assert not (out / WORK).exists()
    assert contents(out) == contents(tmp_path / "calm")
