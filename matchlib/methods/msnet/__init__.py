"""MSNet ("descriptor space"): dense descriptors of one network, alone or as sets over scales."""

from __future__ import annotations

from matchlib.methods.msnet.config import MSNetConfig
from matchlib.methods.spec import MethodSpec, StageSpec

SPECS = (
    MethodSpec(
        name="msnet",
        config=MSNetConfig,
        stages={
            "descriptor": StageSpec(
                needs="homography", metric="pck", ignores=("detector", "max_image_side", "sampling")
            )
        },
        trainable="matchlib.methods.msnet.training:build",
        extractor="matchlib.methods.msnet.inference:build",
        dense="matchlib.methods.msnet.inference:build_dense",
        importer="matchlib.methods.msnet.importing:import_weights",
        weights="trained",
    ),
)
