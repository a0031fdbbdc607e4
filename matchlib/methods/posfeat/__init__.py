"""PoSFeat (Li et al., CVPR 2022): descriptors from camera poses alone, then keypoints by policy gradient."""

from __future__ import annotations

from matchlib.methods.posfeat.config import PoSFeatConfig
from matchlib.methods.spec import MethodSpec, StageSpec

SPECS = (
    MethodSpec(
        name="posfeat",
        config=PoSFeatConfig,
        stages={
            "desc": StageSpec(
                needs="pose", metric="epipolar_precision", ignores=("keypoint_loss", "inference")
            ),
            "kp": StageSpec(
                needs="pose", metric="epipolar_precision", init_from="desc", ignores=("inference",)
            ),
        },
        trainable="matchlib.methods.posfeat.training:build",
        extractor="matchlib.methods.posfeat.inference:build",
        dense="matchlib.methods.posfeat.inference:build_dense",
        importer="matchlib.methods.posfeat.importing:import_weights",
        weights="trained",
    ),
)
