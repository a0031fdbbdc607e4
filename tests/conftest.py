"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Folder of real sample data by name, below $MATCHLIB_SHARED_DATA or ../shared/data; skips where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("MATCHLIB_SHARED_DATA", default))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real sample data not found: {root / name} (set MATCHLIB_SHARED_DATA)")
        return root / name

    return folder
