"""ASLFeat (Luo et al., CVPR 2020): keypoints and descriptors from one network."""

from __future__ import annotations

from matchlib.methods.aslfeat.config import ASLFeatConfig
from matchlib.methods.spec import MethodSpec, StageSpec

SPECS = (
    MethodSpec(
        name="aslfeat",
        config=ASLFeatConfig,
        stages={
            "base": StageSpec(needs="depth_pose", metric="matching_accuracy"),
            "dcn": StageSpec(needs="depth_pose", metric="matching_accuracy", init_from="base"),
        },
        trainable="matchlib.methods.aslfeat.training:build",
        extractor="matchlib.methods.aslfeat.inference:build",
        dense="matchlib.methods.aslfeat.inference:build_dense",
        weights="trained",
    ),
)
