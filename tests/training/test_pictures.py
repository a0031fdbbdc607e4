from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from toy_training import ToySource

from matchlib.datasets.batch import PairBatch
from matchlib.training import pictures
from matchlib.training.loading import BatchStream
from matchlib.training.pictures import EventWriter, Picture, encode_png
from matchlib.training.sampler import AddressedSampler


def _writer(folder: Path) -> EventWriter:
    return EventWriter(folder=folder / "pictures", events=folder / "events", purge_step=None)


def _picture(value: int) -> Picture:
    return np.full((5, 7, 3), (value, 20, 200), np.uint8)


def test_a_slow_disk_delays_nobody_until_two_sets_wait_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, writes = threading.Event(), []

    def slow(path: Path, data: bytes) -> None:
        gate.wait(10)
        path.write_bytes(data)
        writes.append(path.name)

    monkeypatch.setattr(pictures, "atomic_write", slow)
    writer = _writer(tmp_path)
    writer.pictures(1, {"a": _picture(1)})
    writer.scalars(2, {"loss": 0.5})
    writer.pictures(3, {"a": _picture(3)})  # neither call waited: the gate is still closed
    assert writes == []
    third = threading.Thread(target=writer.pictures, args=(5, {"a": _picture(5)}))
    third.start()
    third.join(0.2)
    assert third.is_alive()  # the queue is full
    gate.set()
    third.join(10)
    writer.scalars(6, {"loss": 0.25})
    assert writer.close() == []
    assert writes == ["a.png"] * 3
    last = cv2.imread(str(tmp_path / "pictures/a.png"))
    np.testing.assert_array_equal(last[..., ::-1], _picture(5))


def test_tensorboard_has_the_steps_in_order_and_the_pictures_themselves(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    for step in range(1, 7):
        writer.scalars(step, {"train/loss": 1.0 / step})
        writer.pictures(step, {"score/map": _picture(step)})
    writer.flush()
    assert writer.failures() == []
    assert writer.close() == []
    (path,) = (tmp_path / "events").iterdir()
    steps = [event.step for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
    assert steps == sorted(steps)
    assert len(steps) == 12
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0}).Reload()
    for image in events.Images("score/map"):
        decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert (image.width, image.height) == (7, 5)
        np.testing.assert_array_equal(decoded[..., ::-1], _picture(image.step))


def test_failures_name_the_file_once_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _writer(tmp_path)
    monkeypatch.setattr(pictures, "atomic_write", _full_disk)
    writer.pictures(1, {"a b": _picture(1), "c": _picture(1)})
    writer.flush()
    (failure,) = writer.failures()
    assert str(tmp_path / "pictures/a_b.png") in failure
    assert "No space left" in failure
    assert writer.failures() == []
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["c.png"]
    assert writer.close() == []


def _full_disk(path: Path, data: bytes) -> None:
    if path.name == "a_b.png":
        raise OSError(28, "No space left on device", str(path))
    path.write_bytes(data)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_only_colour_pictures_of_bytes_are_encoded(wrong: Picture) -> None:
    with pytest.raises(ValueError, match=r"expected a picture \(H, W, 3\) of uint8"):
        encode_png(wrong)


class Threads(ToySource):
    """Pairs whose image 0 holds the numbers of threads of the process that loaded them."""

    def load(self, index: int, seed: int) -> PairBatch:
        batch = super().load(index, seed)
        batch.image0[:, 0], batch.image0[:, 1] = cv2.getNumThreads(), torch.get_num_threads()
        return batch


def test_processes_that_read_pairs_have_one_thread() -> None:
    batches = AddressedSampler(count=10, seed=0).batches(first_step=0, batch_size=2, rank=0, world_size=1)
    before = cv2.getNumThreads()
    with BatchStream(Threads(), batches, seed=0, workers=1) as stream:
        image0 = stream.next().batch.image0
    assert image0[:, 0].max() <= 1  # OpenCV says 0 or 1 for "in the calling thread"
    assert image0[:, 1].max() == 1
    assert cv2.getNumThreads() == before
