"""ALIKE (Zhao et al., IEEE Transactions on Multimedia 2022): keypoints and descriptors from one small network.

The weights are the user's: `alike-{t,s,n}.pth` (github.com/Shiaoming/ALIKE, BSD 3-Clause).
"""

from __future__ import annotations

from matchlib.methods.alike.config import AlikeConfig
from matchlib.methods.spec import MethodSpec

SPECS = (
    MethodSpec(
        name="alike",
        config=AlikeConfig,
        extractor="matchlib.methods.alike.inference:build",
        dense="matchlib.methods.alike.inference:build_dense",
        weights="foreign",
    ),
)
