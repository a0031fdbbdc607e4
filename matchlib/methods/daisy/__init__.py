"""DAISY (Tola, Lepetit & Fua, PAMI 2010): a classical descriptor at every place of an image; no training."""

from __future__ import annotations

from matchlib.methods.daisy.config import DaisyConfig
from matchlib.methods.spec import MethodSpec

SPECS = (
    MethodSpec(
        name="daisy",
        config=DaisyConfig,
        extractor="matchlib.methods.daisy.daisy:build",
        dense="matchlib.methods.daisy.daisy:build_dense",
    ),
)
