"""Published networks as kornia implements them: DISK, ALIKED, XFeat, DeDoDe, Key.Net with HardNet.

matchlib brings no weights and downloads none: the user names the files, which keep the licence of their authors
(each module says what is known of it).
"""

from __future__ import annotations

from matchlib.methods.kornia_features.config import (
    AlikedConfig,
    DeDoDeConfig,
    DiskConfig,
    KeyNetHardNetConfig,
    XFeatConfig,
)
from matchlib.methods.spec import MethodSpec

_HERE = "matchlib.methods.kornia_features"

SPECS = (
    MethodSpec(
        name="disk",
        config=DiskConfig,
        extractor=f"{_HERE}.disk:build",
        dense=f"{_HERE}.disk:build_dense",
        weights="foreign",
    ),
    MethodSpec(
        name="aliked",
        config=AlikedConfig,
        extractor=f"{_HERE}.aliked:build",
        dense=f"{_HERE}.aliked:build_dense",
        weights="foreign",
    ),
    MethodSpec(
        name="xfeat",
        config=XFeatConfig,
        extractor=f"{_HERE}.xfeat:build",
        dense=f"{_HERE}.xfeat:build_dense",
        weights="foreign",
    ),
    MethodSpec(
        name="dedode",
        config=DeDoDeConfig,
        extractor=f"{_HERE}.dedode:build",
        dense=f"{_HERE}.dedode:build_dense",
        weights="foreign",
    ),
    MethodSpec(
        name="keynet_hardnet",
        config=KeyNetHardNetConfig,
        extractor=f"{_HERE}.keynet_hardnet:build",
        weights="foreign",
    ),
)
