"""Building on machines that can, cannot, or only half can; and the loader's answers."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from matchlib.errors import BuildError
from matchlib.ops import build, extension
from matchlib.ops.build import INFO, LIBRARY, BuildInfo, build_extension, toolchain_fingerprint
from matchlib.ops.extension import load_extension

QUICK_FLAGS = tuple("-O0" if flag == "-O3" else flag for flag in build._CXX_FLAGS)


@pytest.fixture(autouse=True)
def fresh_loader() -> Iterator[None]:
    load_extension.cache_clear()
    yield
    load_extension.cache_clear()


def test_a_build_says_what_it_is(built: tuple[Path, BuildInfo], native_extension: Path) -> None:
    folder, info = built
    written = json.loads((folder / INFO).read_text())
    assert written["cpu_ok"] and (folder / LIBRARY).stat().st_size > 10_000
    assert written["source_sha256"] == build.source_digest() and written["compiler"] == info.compiler
    assert "no nvcc" in written["reason"] and not written["cuda_compiled"] and written["archs"] == []
    assert {path.name for path in folder.iterdir()} == {LIBRARY, INFO}


def test_without_a_compiler_there_is_a_placeholder_and_the_reference_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    for name in ("CXX", "NVCC"):
        monkeypatch.delenv(name, raising=False)
    info = build_extension(tmp_path / "out")
    assert not info.cpu_ok and info.compiler is None and "no C++ compiler" in info.reason
    assert (tmp_path / "out" / LIBRARY).read_bytes() == b""
    monkeypatch.setenv("MATCHLIB_EXTENSION", str(tmp_path / "out"))
    with caplog.at_level(logging.WARNING):
        loaded = load_extension()
        load_extension()
    assert loaded.backend == "reference" and "no C++ compiler" in loaded.reason and not loaded.serves("cpu")
    notices = [record for record in caplog.records if record.name == extension.__name__]
    assert len(notices) == 1


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_failing_compiler_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (
        'case "$1" in --version) echo "broken 1.0";; *) echo "fatal error: no such header" >&2; exit 3;; esac'
    )
    monkeypatch.setenv("CXX", program(tmp_path / "c++", broken))
    info = build_extension(tmp_path / "out")
    assert not info.cpu_ok and "status 3: fatal error: no such header" in info.reason
    assert info.compiler == f"{tmp_path / 'c++'} (broken 1.0)"


def test_a_failing_nvcc_leaves_the_cpu_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native_extension: Path
) -> None:
    broken = 'case "$1" in --version) echo "Build cuda_0.0";; *) echo "unsupported gpu" >&2; exit 1;; esac'
    monkeypatch.setenv("NVCC", program(tmp_path / "nvcc", broken))
    monkeypatch.setattr(build, "_CXX_FLAGS", QUICK_FLAGS)
    info = build_extension(tmp_path / "out")
    assert info.cpu_ok and not info.cuda_compiled
    assert "nvcc failed, built for CPU only" in info.reason and "unsupported gpu" in info.reason


def test_a_library_that_computes_something_else_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native_extension: Path
) -> None:
    sources = tmp_path / "csrc"
    sources.mkdir()
    for path in build.source_files():
        text = path.read_text().replace("const T down = y - floor_y", "const T down = floor_y - y")
        (sources / path.name).write_text(text)
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "_CXX_FLAGS", QUICK_FLAGS)
    monkeypatch.setenv("NVCC", "no-nvcc-in-this-test")
    with pytest.raises(BuildError, match="differs from the reference"):
        build_extension(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_architecture_list_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATCHLIB_CUDA_ARCHS", "8.0;9.0+PTX")
    assert build._gencode(build._architectures())[-1] == "-gencode=arch=compute_90,code=compute_90"
    monkeypatch.setenv("MATCHLIB_CUDA_ARCHS", "sm_80")
    with pytest.raises(BuildError, match="MATCHLIB_CUDA_ARCHS: expected a list"):
        build._architectures()


def test_the_fingerprint_follows_sources_and_compilers_without_torch(tmp_path: Path) -> None:
    code = "import sys, matchlib.ops.build as b; b.toolchain_fingerprint(); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
    first = toolchain_fingerprint()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", program(tmp_path / "c++", 'echo "other 2.0"'))
        second = toolchain_fingerprint()
    assert {name for name in first if first[name] != second[name]} == {"compiler"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source_sha256": "0"}, "built from other sources"),
        ({"target_version": "99.0"}, "needs torch 99.0 or newer"),
        ({"cpu_ok": False, "reason": "no C++ compiler"}, "no C++ compiler"),
        ({"cpu_ok": None}, ""),
    ],
)
def test_an_unfit_build_is_not_loaded(
    tmp_path: Path,
    built: tuple[Path, BuildInfo],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    reason: str,
) -> None:
    written = json.loads((built[0] / INFO).read_text())
    (tmp_path / INFO).write_text(json.dumps({**written, "cpu_ok": True, **change}))
    monkeypatch.setenv("MATCHLIB_EXTENSION", str(tmp_path))
    assert load_extension().backend == "reference" and reason in load_extension().reason


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_description_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / INFO).write_text(text)
    monkeypatch.setenv("MATCHLIB_EXTENSION", str(tmp_path))
    assert f"{tmp_path / INFO}: unreadable" in load_extension().reason


def test_the_working_directory_is_searched_and_loading_twice_is_harmless(
    tmp_path: Path, native_extension: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "extension").symlink_to(native_extension)
    monkeypatch.delenv("MATCHLIB_EXTENSION", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_extension().serves("cpu")
    load_extension.cache_clear()
    assert load_extension().serves("cpu") and not load_extension().serves("cuda")
