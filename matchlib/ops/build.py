"""Build the native extension with whatever compilers the machine has; no compiler is a valid outcome.

The result is a folder with `_matchlib_C.so`, an empty file where nothing could be compiled, and
`build_info.json`, which says what was built, by what, and why not more. The extension uses torch's stable ABI
only, so it is built by the compilers directly (six seconds for C++) and serves every torch from 2.10 on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from matchlib.completion import atomic_path, atomic_write_json, digest_json
from matchlib.errors import BuildError

logger = logging.getLogger(__name__)

LIBRARY = "_matchlib_C.so"
INFO = "build_info.json"
SOURCES = Path(__file__).parent / "csrc"
TARGET_VERSION = "2.10"  # the oldest torch the binary runs with
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX")
"""CUDA compute capabilities; MATCHLIB_CUDA_ARCHS, in the form of TORCH_CUDA_ARCH_LIST, overrides them."""

_CXX_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-Wno-psabi")
_NVCC_FLAGS = ("-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-cudart=static")
_COMPILE_LIMIT_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """What `build_info.json` says.

    compiler, nvcc: path and version line, or None if there is none
    flags:          command-line options of the C++ compiler
    torch:          version whose headers were used; target_version: the oldest that can load the library
    archs:          compute capabilities of the CUDA code
    cpu_ok:         the CPU kernels were built and agree with the reference
    cuda_compiled:  the library holds CUDA kernels; cuda_runnable: they ran here and agree with the reference
    reason:         why something is missing; empty if nothing is
    source_sha256:  digest of the sources (see `source_digest`)
    """

    compiler: str | None
    flags: tuple[str, ...]
    torch: str
    target_version: str
    nvcc: str | None
    archs: tuple[str, ...]
    cpu_ok: bool
    cuda_compiled: bool
    cuda_runnable: bool
    reason: str
    source_sha256: str


def build_extension(out: Path) -> BuildInfo:
    """Build into the folder `out` what this machine allows, check it, and say what was done.

    Writes `out/_matchlib_C.so` and `out/build_info.json`, each atomically. A compiler that is missing or
    fails leaves out its part, with the reason in the result and in a warning. Raises BuildError only if a
    part that was built gives other numbers than the reference.
    """
    out.mkdir(parents=True, exist_ok=True)
    cxx, nvcc = find_cxx(), find_nvcc()
    reasons: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".tmp-build-", dir=out) as folder:
        library = _compile(Path(folder), cxx, nvcc, reasons)
        cuda_compiled = library is not None and _cuda_objects(library.parent) != []
        devices = frozenset() if library is None else _self_test(library, reasons)
        if cuda_compiled and "cuda" not in devices:
            reasons.append("CUDA kernels were compiled but not run: no usable GPU here")
        info = BuildInfo(
            compiler=_version(cxx),
            flags=_CXX_FLAGS,
            torch=metadata.version("torch"),
            target_version=TARGET_VERSION,
            nvcc=_version(nvcc),
            archs=_architectures() if cuda_compiled else (),
            cpu_ok="cpu" in devices,
            cuda_compiled=cuda_compiled and "cpu" in devices,
            cuda_runnable="cuda" in devices,
            reason="; ".join(reasons),
            source_sha256=source_digest(),
        )
        # The old library goes first: none is ever beside the description of another.
        (out / LIBRARY).unlink(missing_ok=True)
        atomic_write_json(out / INFO, asdict(info))
        with atomic_path(out / LIBRARY) as temporary:
            temporary.write_bytes(library.read_bytes() if library is not None and info.cpu_ok else b"")
    logger.log(logging.INFO if info.cpu_ok else logging.WARNING, "native extension: %s", _summary(info))
    return info


def toolchain_fingerprint() -> dict[str, str]:
    """Everything the built library depends on, as words; it changes when something is upgraded.

    Runs `--version` of the compilers and reads the sources; imports no torch, so the graph can call it.
    """
    return {
        "compiler": _version(find_cxx()) or "none",
        "nvcc": _version(find_nvcc()) or "none",
        "architectures": " ".join(_architectures()),
        "torch": metadata.version("torch"),
        "sources": source_digest(),
    }


def source_digest() -> str:
    """sha256 over names and contents of all sources, and over the flags."""
    files = {
        path.name: path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir()) if path.is_file()
    }
    return digest_json({"files": files, "cxx": _CXX_FLAGS, "nvcc": _NVCC_FLAGS, "target": TARGET_VERSION})


def source_files() -> tuple[Path, ...]:
    """The sources, for the rule that builds them."""
    return tuple(sorted(path for path in SOURCES.iterdir() if path.suffix in {".cpp", ".cu", ".h"}))


def find_cxx() -> str | None:
    """Path of the C++ compiler: the environment's CXX if set, else c++, g++ or clang++ of the search path."""
    wanted = os.environ.get("CXX")
    return _first_program([wanted] if wanted else ["c++", "g++", "clang++"])


def find_nvcc() -> str | None:
    """Path of nvcc: the environment's NVCC if set, else of the search path."""
    wanted = os.environ.get("NVCC")
    return _first_program([wanted] if wanted else ["nvcc"])


def _first_program(names: Sequence[str]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _version(program: str | None) -> str | None:
    """`path (version)`. nvcc says its version in its last line, the others in the first."""
    if program is None:
        return None
    try:
        output = _run([program, "--version"]).splitlines()
    except _CommandFailedError as failure:
        return f"{program} (unusable: {str(failure).splitlines()[0]})"
    line = next((line for line in reversed(output) if line.startswith("Build ")), output[0] if output else "")
    return f"{program} ({line.strip()})"


# ---------------------------------------------------------------- compiling
class _CommandFailedError(Exception):
    """A command that could not be run or failed; the message holds its output."""


def _compile(folder: Path, cxx: str | None, nvcc: str | None, reasons: list[str]) -> Path | None:
    """The linked library inside `folder`, or None; what could not be built is added to `reasons`."""
    if cxx is None:
        reasons.append(
            f"no C++ compiler ({os.environ.get('CXX') or 'c++, g++, clang++'} not found); set CXX to one"
        )
        return None
    try:
        objects = [_compile_cxx(cxx, source, folder) for source in sorted(SOURCES.glob("*.cpp"))]
    except _CommandFailedError as failure:
        reasons.append(f"the C++ compiler failed: {failure}")
        return None
    if nvcc is None:
        reasons.append("no nvcc")
    else:
        try:
            objects_with_cuda = [
                *objects,
                *(_compile_cuda(nvcc, cxx, source, folder) for source in sorted(SOURCES.glob("*.cu"))),
            ]
            # nvcc knows where its runtime is. Linked statically: the library loads where CUDA is missing.
            return _link(
                [nvcc, "-ccbin", cxx, "-cudart=static"], objects_with_cuda, folder, escape="-Xlinker="
            )
        except _CommandFailedError as failure:
            for cuda_object in _cuda_objects(folder):
                cuda_object.unlink()
            reasons.append(f"nvcc failed, built for CPU only: {failure}")
    try:
        return _link([cxx], objects, folder, escape="-Wl,")
    except _CommandFailedError as failure:
        reasons.append(f"linking failed: {failure}")
        return None


def _compile_cxx(cxx: str, source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    _run([cxx, *_CXX_FLAGS, *_torch_options(), "-c", str(source), "-o", str(target)])
    return target


def _cuda_objects(folder: Path) -> list[Path]:
    return list(folder.glob("*.cu.o"))


def _compile_cuda(nvcc: str, cxx: str, source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.cu.o"
    options = [
        *_NVCC_FLAGS,
        *_gencode(_architectures()),
        *_torch_options(),
        "-DUSE_CUDA",
        "-ccbin",
        cxx,
        "-t",
        "0",
    ]
    _run([nvcc, *options, "-c", str(source), "-o", str(target)])
    return target


def _link(linker: Sequence[str], objects: Sequence[Path], folder: Path, *, escape: str) -> Path:
    target = folder / LIBRARY
    # Without no-as-needed the linker drops libtorch_cpu, whose symbols are looked up by name only.
    torch = [f"-L{_torch_folder() / 'lib'}", f"{escape}--no-as-needed", "-ltorch_cpu", "-ltorch"]
    _run([*linker, "-shared", *map(str, objects), *torch, "-o", str(target)])
    return target


def _torch_options() -> list[str]:
    """Include path (-isystem: warnings of torch's headers are not ours) and version of the stable ABI."""
    major, minor = map(int, TARGET_VERSION.split("."))
    version = (major << 56) | (minor << 48)
    return ["-isystem", str(_torch_folder() / "include"), f"-DTORCH_TARGET_VERSION=0x{version:016x}"]


def _torch_folder() -> Path:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch: not installed, so its headers are missing; install it and run again")
    return Path(spec.origin).parent


def _architectures() -> tuple[str, ...]:
    wanted = os.environ.get("MATCHLIB_CUDA_ARCHS")
    archs = tuple(re.split(r"[;\s]+", wanted.strip())) if wanted else ARCHITECTURES
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise BuildError(
                f"MATCHLIB_CUDA_ARCHS: expected a list such as '8.0;9.0+PTX', got {arch!r} in it"
            )
    return archs


def _gencode(archs: Sequence[str]) -> list[str]:
    options = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options


def _run(command: Sequence[str]) -> str:
    """Run a command and return what it printed. Raises _CommandFailedError with its last lines."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_COMPILE_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _CommandFailedError(f"{command[0]}: {error}") from error
    if result.returncode != 0:
        output = (result.stderr or result.stdout).strip()[-2000:]
        raise _CommandFailedError(f"{command[0]} ended with status {result.returncode}: {output}")
    return result.stdout


# ---------------------------------------------------------------- checking
def _self_test(library: Path, reasons: list[str]) -> frozenset[str]:
    """Compare the kernels of `library` with the reference in another process: a fault must not end this one.

    Returns the devices whose kernels ran and agree. Raises BuildError if they disagree or the process dies.
    """
    search_path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", "matchlib.ops.self_test", str(library)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
        capture_output=True,
        text=True,
        timeout=_COMPILE_LIMIT_S,
        check=False,
    )
    if result.returncode != 0:
        raise BuildError(
            f"{LIBRARY}: its self-test ended with status {result.returncode}, so it was not installed. "
            f"Set CXX to another compiler. {result.stderr.strip()[-2000:]}"
        )
    answer = json.loads(result.stdout.splitlines()[-1])
    if answer["reason"]:
        reasons.append(answer["reason"])
    return frozenset(answer["devices"])


def _summary(info: BuildInfo) -> str:
    if not info.cpu_ok:
        return f"not built, plain PyTorch is used: {info.reason}"
    cuda = "no CUDA"
    if info.cuda_compiled:
        cuda = f"CUDA for {' '.join(info.archs)}{' (tested)' if info.cuda_runnable else ''}"
    return f"built for CPU by {info.compiler}; {cuda}" + (f"; {info.reason}" if info.reason else "")
