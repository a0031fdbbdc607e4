"""Photographs for the tests of training pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """A real photograph, (120, 160, 3) uint8 RGB."""
    return cv2.resize(data.astronaut()[:384], (160, 120), interpolation=cv2.INTER_AREA)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., tuple[Path, tuple[str, ...]]]:
    """Write `count` textured photographs of `size` = (width, height); returns folder and names."""

    def write(count: int = 4, size: tuple[int, int] = (100, 80)) -> tuple[Path, tuple[str, ...]]:
        folder = tmp_path / "photographs"
        folder.mkdir(exist_ok=True)
        names = []
        for number in range(count):
            random = np.random.default_rng(number)
            coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            names.append(f"{number:03d}.png")
            cv2.imwrite(str(folder / names[-1]), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
        return folder, tuple(names)

    return write
