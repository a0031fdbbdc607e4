"""A small set of images with features of which many match."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from matchlib.features.store import FeatureWriter, StoreHeader
from matchlib.features.types import Features

IMAGES = 24


def made_features(number: int) -> Features:
    """Noisy copies of some of 60 common points and some of its own; image 5 has no keypoints."""
    draw = np.random.default_rng(number)
    count = 0 if number == 5 else int(draw.integers(20, 60))
    common = np.random.default_rng(1000).normal(size=(60, 16))[draw.permutation(60)[:count]]
    rows = common + 0.25 * draw.normal(size=common.shape)
    return Features(
        keypoints=draw.uniform(0, 99, (count, 2)).astype(np.float32),
        scores=draw.uniform(size=count).astype(np.float32),
        descriptors=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        image_size=(100, 100),
    )


def image_name(number: int) -> str:
    return f"{'query' if number % 3 == 0 else 'db'}/{number}.jpg"


@pytest.fixture(scope="session")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.h5"
    with FeatureWriter(path, StoreHeader(method="toy", fingerprint="f")) as writer:
        for number in range(IMAGES):
            writer.add(image_name(number), made_features(number))
        writer.finish()
    return path


@pytest.fixture(scope="session")
def features_by_name() -> dict[str, Features]:
    return {image_name(number): made_features(number) for number in range(IMAGES)}


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[[list[tuple[str, str]]], Path]:
    def write(pairs: list[tuple[str, str]]) -> Path:
        path = tmp_path / "pairs.txt"
        path.write_text("".join(f"{name0} {name1}\n" for name0, name1 in pairs))
        return path

    return write
