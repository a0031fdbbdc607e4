"""A small HPatches folder with features that are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from matchlib.completion import digest_file
from matchlib.datasets.hpatches import write_homography
from matchlib.datasets.images import write_image
from matchlib.features.store import FeatureWriter, StoreHeader
from matchlib.features.types import Features

SIZE = (320, 240)
Homographies = dict[str, npt.NDArray[np.float64]]


def features_at(keypoints: npt.NDArray[np.floating], *, dimension: int = 64, seed: int = 0) -> Features:
    """Features whose descriptors are random but the same for the same row and seed."""
    count = len(keypoints)
    descriptors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return Features(
        keypoints=keypoints.astype(np.float32),
        scores=np.linspace(1, 0.1, count, dtype=np.float32),
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        image_size=SIZE,
    )


def write_sequence(root: Path, name: str, H: npt.NDArray[np.float64]) -> None:
    """Six grey images and the same homography to each of 2..6."""
    for k in range(1, 7):
        write_image(root / name / f"{k}.ppm", np.full((SIZE[1], SIZE[0], 3), 40 * k, np.uint8))
        if k > 1:
            write_homography(root / name / f"H_1_{k}", H)


@pytest.fixture
def world(tmp_path: Path) -> Callable[[Homographies, dict[str, list[Features]]], tuple[Path, Path]]:
    """Build (features file, dataset root) from a homography and six Features per sequence."""

    def build(homographies: Homographies, features: dict[str, list[Features]]) -> tuple[Path, Path]:
        root = tmp_path / "hpatches"
        with FeatureWriter(tmp_path / "toy.h5", StoreHeader(method="toy", fingerprint="f")) as writer:
            for name, H in homographies.items():
                write_sequence(root, name, H)
                for k, item in enumerate(features[name], start=1):
                    key = f"{name}/{k}.ppm"
                    writer.add(key, item, image_digest=digest_file(root / key))
            writer.finish()
        return tmp_path / "toy.h5", root

    return build
