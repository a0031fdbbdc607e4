"""SIFT and RootSIFT: no training, the baseline of every table."""

from __future__ import annotations

from matchlib.features.config import SiftConfig
from matchlib.methods.spec import MethodSpec

SPECS = (
    MethodSpec(
        name="sift",
        config=SiftConfig,
        extractor="matchlib.features.sift:build_sift",
        dense="matchlib.features.sift:build_sift_dense",
    ),
    MethodSpec(
        name="rootsift",
        config=SiftConfig,
        extractor="matchlib.features.sift:build_rootsift",
        dense="matchlib.features.sift:build_rootsift_dense",
    ),
)
