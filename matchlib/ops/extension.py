"""Find and load the native extension that `build_extension` made. Nothing is ever compiled here.

Looked for, in this order: the folder named by the environment variable MATCHLIB_EXTENSION (set to an empty
string: no extension), `build/extension` of the working directory, `build/extension` beside the package. The
first folder with a `build_info.json` counts.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from matchlib.ops.build import INFO, LIBRARY, source_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExtensionInfo:
    """Which kernels run in this process, and why not better ones.

    backend: "native" if the extension is loaded
    reason:  why it is not, or what it lacks; empty if it has everything
    devices: device types ("cpu", "cuda") it has kernels for
    """

    backend: Literal["native", "reference"]
    reason: str
    devices: frozenset[str] = frozenset()

    def serves(self, device_type: str) -> bool:
        """Whether tensors of this device type have native kernels."""
        return device_type in self.devices


@functools.lru_cache(maxsize=1)
def load_extension() -> ExtensionInfo:
    """Load the extension once per process; later calls return the same answer.

    A missing, stale or unloadable extension is no error: the answer says "reference" and why, and one line is
    logged.
    """
    info = _load(_find_folder())
    if info.backend == "reference":
        logger.warning("native extension not used, the slower PyTorch reference runs: %s", info.reason)
    return info


def _find_folder() -> Path | None:
    named = os.environ.get("MATCHLIB_EXTENSION")
    if named is not None:
        return Path(named) if named else None
    beside_package = Path(__file__).resolve().parents[2]
    candidates = [root / "build" / "extension" for root in (Path.cwd(), beside_package)]
    return next((folder for folder in candidates if (folder / INFO).is_file()), None)


def _load(folder: Path | None) -> ExtensionInfo:
    if folder is None:
        return ExtensionInfo("reference", 'none was built; "snakemake build_extension" makes it')
    try:
        build: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
        fault = _unfit(folder, build)
        devices = frozenset(["cpu", *(["cuda"] if build["cuda_compiled"] else [])])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return ExtensionInfo(
            "reference", f"{folder / INFO}: unreadable ({error!r}); delete the folder and build again"
        )
    if fault:
        return ExtensionInfo("reference", fault)
    if not is_registered():  # loading twice would register the operators twice, which torch refuses
        try:
            load_library(folder / LIBRARY)
        except OSError as error:
            return ExtensionInfo("reference", f"{folder / LIBRARY}: {error}; build it again on this machine")
    return ExtensionInfo("native", build["reason"], devices)


def _unfit(folder: Path, build: dict[str, Any]) -> str:
    """Why this build cannot serve the running program, or an empty string."""
    if not build["cpu_ok"]:
        return str(build["reason"])
    if build["source_sha256"] != source_digest():
        return f"{folder} was built from other sources; run build_extension again"
    if _release(torch.__version__) < _release(build["target_version"]):
        return f"{folder} needs torch {build['target_version']} or newer, this is {torch.__version__}"
    return ""


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def load_library(path: Path) -> None:
    """Load one library file and register its operators. Raises OSError if it does not load."""
    torch.ops.load_library(str(path.resolve()))  # type: ignore[no-untyped-call]


def is_registered() -> bool:
    """Whether some copy of the extension is loaded in this process."""
    return hasattr(torch.ops.matchlib_native, "deform_im2col")
