"""The extension, built once for all tests of the operators, and loaded into this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from matchlib.ops import extension
from matchlib.ops.build import INFO, LIBRARY, BuildInfo, build_extension


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildInfo]:
    """The folder and description of a CPU build (nvcc is left out: it takes half a minute)."""
    folder = tmp_path_factory.mktemp("extension")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVCC", "no-nvcc-in-this-test")
        return folder, build_extension(folder)


@pytest.fixture(scope="session")
def native_extension(built: tuple[Path, BuildInfo]) -> Path:
    """The folder of the loaded extension; skips where no compiler built one."""
    folder, info = built
    if not info.cpu_ok:
        pytest.skip(f"no native extension here: {info.reason}")
    if not extension.is_registered():
        extension.load_library(folder / LIBRARY)
    assert (folder / INFO).is_file()
    return folder
