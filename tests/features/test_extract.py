"""The extraction loop: resumable, honest about unreadable images, exact about coordinates."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from matchlib.completion import fingerprint
from matchlib.errors import ConfigError, DataError
from matchlib.features.config import ExtractionConfig
from matchlib.features.extract import extract_features, extract_image
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features, Image
from matchlib.revisions import REVISIONS


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
    features = extract_image(BrightSpot(), image, ExtractionConfig(resize_short_side=short_side))
    assert features.image_size == (90, 50)
    assert features.keypoints[0] == pytest.approx([37, 21], abs=0.15)


def test_small_images_are_not_enlarged_to_a_short_side() -> None:
    image = spot(12, 9, size=(30, 20))
    assert seen_size(image, ExtractionConfig(resize_short_side=100)) == (30, 20)


def seen_size(image: Image, config: ExtractionConfig) -> tuple[int, int]:
    """Width and height of what the extractor is given."""
    seen = []

    class Watching(BrightSpot):
        def extract(self, image: Image) -> Features:
            seen.append((image.shape[1], image.shape[0]))
            return super().extract(image)

    extract_image(Watching(), image, config)
    return seen[0]


# Without the half pixel the keypoint would be off by (W / w - 1) / 2: 0.5 px at 45, 0.25 px at 180.
@pytest.mark.parametrize(
    "long_side, seen", [(45, (45, 25)), (61, (61, 34)), (90, (90, 50)), (180, (180, 100))]
)
@pytest.mark.parametrize("is_portrait", [False, True])
def test_a_long_side_shrinks_and_enlarges_and_keypoints_stay(
    long_side: int, seen: tuple[int, int], is_portrait: bool
) -> None:
    image = spot(37.0, 21.0, size=(90, 50))
    truth, size = [37.0, 21.0], (90, 50)
    if is_portrait:
        image, truth, size, seen = image.transpose(1, 0, 2), truth[::-1], (50, 90), (seen[1], seen[0])
    config = ExtractionConfig(resize_long_side=long_side)
    assert seen_size(image, config) == seen
    features = extract_image(BrightSpot(), image, config)
    assert features.image_size == size
    assert features.keypoints[0] == pytest.approx(truth, abs=0.05)


def test_another_long_side_extracts_again_and_the_file_says_so(folder: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "f.h5", names_in(folder)
    fingerprints = []
    for side in (None, 30, 120):
        extractor, config = BrightSpot(), ExtractionConfig(resize_long_side=side)
        extract_features(folder, names, extractor=extractor, out=out, config=config, show_progress=False)
        assert extractor.calls == 12
        with FeatureReader(out) as reader:
            assert reader.header is not None
            fingerprints.append(reader.header.fingerprint)
            assert reader.header.settings.get("resize_long_side") == side
            features = reader.read(names[3])
            assert features.image_size == (60, 40)
            assert features.keypoints[0] == pytest.approx([20 + int(Path(names[3]).stem), 15], abs=0.1)
    assert len(set(fingerprints)) == 3
    # Files of earlier versions, which knew no long side, stay valid.
    settings = {"extractor": BrightSpot.fingerprint, "resize_short_side": None}
    earlier = fingerprint(stage="features", revision=REVISIONS["features"], settings=settings)
    assert fingerprints[0] == earlier


def test_a_killed_run_is_not_resumed_at_another_long_side(folder: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "f.h5", names_in(folder)
    small, large = (ExtractionConfig(resize_long_side=side) for side in (30, 120))
    with pytest.raises(RuntimeError, match="out of memory"):
        extract_features(
            folder, names, extractor=BrightSpot(fail_at=6), out=out, config=small, show_progress=False
        )
    report = extract_features(
        folder, names, extractor=BrightSpot(), out=out, config=large, show_progress=False
    )
    assert report.reused == 0


def test_both_sides_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="set one of them"):
        ExtractionConfig(resize_short_side=480, resize_long_side=640)


@pytest.mark.parametrize(
    "key, value",
    [("threads", 0), ("prefetch", 0), ("max_unreadable_share", 1.5)]
    + [("resize_short_side", 3), ("resize_long_side", 15)],
)
def test_impossible_settings_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"extraction.{key}: expected .* got {value}"):
        ExtractionConfig(**{key: value})  # type: ignore[arg-type]
