"""ASLFeat (Luo et al., CVPR 2020): keypoints and descriptors from one network."""

from __future__ import annotations

from matchlib.methods.aslfeat.config import ASLFeatConfig
from matchlib.methods.spec import MethodSpec, StageSpec

# Validation finds a fixed number of keypoints, at the size of training.
_EXTRACTION = tuple(
    f"inference.{key}" for key in ("max_keypoints", "score_threshold", "multi_scale", "max_image_side")
)

SPECS = (
    MethodSpec(
        name="aslfeat",
        config=ASLFeatConfig,
        stages={
            "base": StageSpec(needs="depth_pose", metric="matching_accuracy", ignores=("dcn", *_EXTRACTION)),
            "dcn": StageSpec(
                needs="depth_pose", metric="matching_accuracy", init_from="base", ignores=_EXTRACTION
            ),
        },
        trainable="matchlib.methods.aslfeat.training:build",
        extractor="matchlib.methods.aslfeat.inference:build",
        dense="matchlib.methods.aslfeat.inference:build_dense",
        weights="trained",
    ),
)
