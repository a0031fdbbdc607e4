"""SuperPoint (DeTone et al., CVPRW 2018): keypoints and descriptors, trained without human labels."""

from __future__ import annotations

from matchlib.methods.spec import MethodSpec, StageSpec
from matchlib.methods.superpoint.config import SuperPointConfig

# Validation has detections of its own, but for the threshold. Labels, which `adaptation` is for, are inputs.
_EXTRACTION = (
    "inference",
    "adaptation",
    *(
        f"detection.{key}"
        for key in ("softmax", "nms", "nms_radius", "nms_iou", "border", "max_keypoints", "refine")
    ),
)

SPECS = (
    MethodSpec(
        name="superpoint",
        config=SuperPointConfig,
        stages={
            "shapes": StageSpec(
                needs=None,
                metric="detection_ap",
                pairs="matchlib.methods.superpoint.shapes_pairs:build_pairs",
                ignores=("descriptor", *_EXTRACTION),
            ),
            "magicpoint": StageSpec(
                needs="homography",
                metric="repeatability",
                init_from="shapes",
                labels_from="shapes",
                ignores=("descriptor", *_EXTRACTION),
            ),
            "superpoint": StageSpec(
                needs="homography",
                metric="matching_accuracy",
                init_from="magicpoint",
                labels_from="magicpoint",
                ignores=_EXTRACTION,
            ),
        },
        trainable="matchlib.methods.superpoint.training:build",
        extractor="matchlib.methods.superpoint.inference:build",
        dense="matchlib.methods.superpoint.inference:build_dense",
        labeller="matchlib.methods.superpoint.inference:build_labeller",
        importer="matchlib.methods.superpoint.importing:import_weights",
        weights="trained",
    ),
)
