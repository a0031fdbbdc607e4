"""The extraction loop: resumable, honest about unreadable images, exact about coordinates."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from matchlib.errors import ConfigError, DataError
from matchlib.features.config import ExtractionConfig
from matchlib.features.extract import extract_features, extract_image
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features, Image


class BrightSpot:
    """Finds the centre of mass of an image; counts its calls and can fail at one of them."""

    name = "bright-spot"
    fingerprint = "bright-spot-1"
    descriptor_dim = 3

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls = 0
        self._fail_at = fail_at

    def extract(self, image: Image) -> Features:
        self.calls += 1
        if self.calls == self._fail_at:
            raise RuntimeError("out of memory")
        weight = image.astype(np.float64).sum(axis=2)
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
        total = weight.sum()
        keypoint = [[(columns * weight).sum() / total, (rows * weight).sum() / total]]
        return Features(
            keypoints=np.array(keypoint, dtype=np.float32),
            scores=np.ones(1, np.float32),
            descriptors=np.eye(1, 3, dtype=np.float32),
            image_size=(image.shape[1], image.shape[0]),
        )


def spot(x: float, y: float, size: tuple[int, int] = (60, 40)) -> Image:
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    grey = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
    return np.repeat(grey.round().astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(12):
        path = tmp_path / "images" / f"set{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), spot(20 + index, 15))
    return tmp_path / "images"


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_every_image_gets_its_own_features(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    report = extract_features(folder, names_in(folder), extractor=BrightSpot(), out=out, show_progress=False)
    assert (report.images, report.reused, report.keypoints, report.unreadable) == (12, 0, 12, {})
    with FeatureReader(out) as reader:
        assert list(reader.names) == names_in(folder) and reader.digest == report.digest
        for name in reader.names:
            assert reader.read(name).keypoints[0] == pytest.approx([20 + int(Path(name).stem), 15], abs=0.1)


def test_a_failed_run_is_resumed_and_ends_the_same(folder: Path, tmp_path: Path) -> None:
    names = names_in(folder)
    whole = extract_features(
        folder, names, extractor=BrightSpot(), out=tmp_path / "w.h5", show_progress=False
    )
    out = tmp_path / "f.h5"
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        extract_features(folder, names, extractor=BrightSpot(fail_at=6), out=out, show_progress=False)
    assert names[5] in "".join(caught.value.__notes__)
    assert not out.exists()
    second = BrightSpot()
    report = extract_features(folder, names, extractor=second, out=out, show_progress=False)
    assert second.calls == 7 and report.reused == 5
    assert report.digest == whole.digest


def test_only_changed_images_are_extracted_again(folder: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "f.h5", names_in(folder)
    extract_features(folder, names, extractor=BrightSpot(), out=out, show_progress=False)
    cv2.imwrite(str(folder / names[3]), spot(40, 22))
    again = BrightSpot()
    report = extract_features(folder, names[:-1], extractor=again, out=out, show_progress=False)
    assert again.calls == 1 and report.reused == 10
    with FeatureReader(out) as reader:
        assert list(reader.names) == names[:-1]
        assert reader.read(names[3]).keypoints[0] == pytest.approx([40, 22], abs=0.1)


def test_other_settings_reuse_nothing(folder: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "f.h5", names_in(folder)
    first = extract_features(folder, names, extractor=BrightSpot(), out=out, show_progress=False)
    config = ExtractionConfig(resize_short_side=20)
    again = BrightSpot()
    second = extract_features(folder, names, extractor=again, out=out, config=config, show_progress=False)
    assert again.calls == 12 and second.digest != first.digest


def test_unreadable_images_are_named_and_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*names_in(folder), "gone.png"]
    (folder / names[2]).write_bytes(b"<html>404</html>")
    config = ExtractionConfig(max_unreadable_share=0.2)
    out = tmp_path / "f.h5"
    with caplog.at_level(logging.INFO, logger="matchlib"):
        report = extract_features(
            folder, names, extractor=BrightSpot(), out=out, config=config, show_progress=False
        )
    assert sorted(report.unreadable) == sorted([names[2], "gone.png"]) and report.images == 11
    assert "2 images unreadable" in caplog.text and f"left out {names[2]}" in caplog.text
    with (
        FeatureReader(out) as reader,
        pytest.raises(DataError, match=f"image '{names[2]}' could not be read"),
    ):
        reader.read(names[2])


def test_too_many_unreadable_images_stop_the_run(folder: Path, tmp_path: Path) -> None:
    names = names_in(folder)
    for name in names[:3]:
        (folder / name).write_bytes(b"")
    config = ExtractionConfig(max_unreadable_share=0.2)
    with pytest.raises(
        DataError, match=r"3 of 12 images are unreadable, more than max_unreadable_share = 0\.2"
    ):
        extract_features(
            folder, names, extractor=BrightSpot(), out=tmp_path / "f.h5", config=config, show_progress=False
        )
    assert not (tmp_path / "f.h5").exists()
    with pytest.raises(DataError, match="no images"):
        extract_features(folder, [], extractor=BrightSpot(), out=tmp_path / "f.h5", show_progress=False)


def test_images_are_decoded_ahead_by_other_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10 ms of reading and 10 ms of network per image, the two overlap."""
    readers: set[int] = set()

    def slow_read(path: Path) -> Image:
        readers.add(threading.get_ident())
        time.sleep(0.01)
        return spot(10, 10)

    class SlowSpot(BrightSpot):
        def extract(self, image: Image) -> Features:
            assert threading.current_thread() is threading.main_thread()
            time.sleep(0.01)
            return super().extract(image)

    monkeypatch.setattr("matchlib.features.extract.read_image", slow_read)
    names = [f"{index}.png" for index in range(40)]
    for name in names:
        (folder / name).write_bytes(name.encode())
    start = time.perf_counter()
    extract_features(folder, names, extractor=SlowSpot(), out=tmp_path / "f.h5", show_progress=False)
    elapsed = time.perf_counter() - start
    assert threading.get_ident() not in readers and 1 <= len(readers) <= 2
    assert elapsed < 0.75, f"40 images took {elapsed:.2f} s; one after the other it would be at least 0.8 s"


@pytest.mark.parametrize("short_side", [20, 25, 33])
def test_keypoints_of_a_resized_image_are_in_original_pixels(short_side: int) -> None:
    image = spot(37.0, 21.0, size=(90, 50))
    features = extract_image(BrightSpot(), image, resize_short_side=short_side)
    assert features.image_size == (90, 50)
    assert features.keypoints[0] == pytest.approx([37, 21], abs=0.15)


def test_small_images_are_never_enlarged() -> None:
    image = spot(12, 9, size=(30, 20))
    assert extract_image(BrightSpot(), image, resize_short_side=100).keypoints[0] == pytest.approx(
        [12, 9], abs=0.1
    )


@pytest.mark.parametrize(
    "key, value", [("threads", 0), ("prefetch", 0), ("max_unreadable_share", 1.5), ("resize_short_side", 3)]
)
def test_impossible_settings_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"extraction.{key}: expected .* got {value}"):
        ExtractionConfig(**{key: value})  # type: ignore[arg-type]
