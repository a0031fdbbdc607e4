"""matchlib: from raw archives to trained local features and an honest table of how good they are.

Public names are resolved on first use, so that `import matchlib` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "extract": "matchlib.api",
    "match": "matchlib.api",
    "build_extractor": "matchlib.api",
    "Features": "matchlib.features.types",
    "Matches": "matchlib.matching.types",
    "MatchlibError": "matchlib.errors",
}

if TYPE_CHECKING:
    from matchlib.api import build_extractor, extract, match
    from matchlib.errors import MatchlibError
    from matchlib.features.types import Features
    from matchlib.matching.types import Matches

__all__ = ["Features", "MatchlibError", "Matches", "__version__", "build_extractor", "extract", "match"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'matchlib' has no attribute '{name}'")
