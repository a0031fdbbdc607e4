"""SuperPoint as the graph runs it, on a few photographs: shapes, labels, magicpoint, labels, superpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from matchlib.datasets.photos import list_coco
from matchlib.methods.spec import METHODS
from matchlib.methods.superpoint.config import SuperPointConfig
from matchlib.methods.superpoint.inference import build_labeller
from matchlib.methods.superpoint.shapes_pairs import build_pairs
from matchlib.methods.superpoint.training import build
from matchlib.mirror.tiny import tiny_photographs
from matchlib.photo_pairs.config import WarpConfig
from matchlib.photo_pairs.labelling import label_photographs
from matchlib.photo_pairs.pairs import HomographyPairs, PhotoSource
from matchlib.training.config import StageConfig
from matchlib.training.outputs import TrainResult
from matchlib.training.train import train_stage
from matchlib.typed_yaml import load_typed

CONFIG = load_typed(
    SuperPointConfig,
    {
        "network": {"variant": "small", "batch_norm_momentum": 0.1},
        "training": {
            "shapes": {"draw_size": [160, 120]},
            "loss": {"descriptor": "paper", "descriptor_weight": 1.0},
            "validation": {"max_points": 20},
        },
        "adaptation": {
            "views": 8,
            "size": [120, 88],
            "detection": {"threshold": 0.002, "nms": "box_iou", "max_keypoints": 40},
        },
    },
    "settings",
)


@pytest.mark.slow
def test_every_stage_beats_what_it_starts_from(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    tiny_photographs(root, train_images=16, validation_images=8, longer_side=160)
    names = {split: list_coco(root, split) for split in ("train2017", "val2017")}

    def label(stage: str) -> Path:
        label_photographs(
            root=root,
            names=[*names["train2017"], *names["val2017"]],
            labeller=build_labeller(CONFIG, tmp_path / stage / "weights.safetensors", "cpu"),
            out=tmp_path / f"labels-{stage}" / "0",
            seed=0,
        )
        return tmp_path / f"labels-{stage}"

    def photographs(split: str, labels: Path) -> HomographyPairs:
        warps = WarpConfig(sampler="superpoint", small_images="upsample")
        source = PhotoSource(dataset="coco", root=root, names=names[split], warps=warps, labels=labels)
        return HomographyPairs([source], size=(96, 72))

    def train(stage: str, steps: int, batch_size: int, start: str | None, labels: Path | None) -> TrainResult:
        pairs = [
            build_pairs(CONFIG, subset, (80, 64), 0) if labels is None else photographs(split, labels)
            for subset, split in (("train", "train2017"), ("validation", "val2017"))
        ]
        return train_stage(
            model=build(CONFIG, stage, 0),
            train_pairs=pairs[0],
            validation_pairs=pairs[1],
            config=StageConfig(
                steps=steps,
                batch_size=batch_size,
                optimiser="adam",
                learning_rate=1e-3,
                weight_decay=0.0,
                schedule="cosine",
                workers=0,
                validate_every=steps // 2,
                validation_pairs=48,
                checkpoint_every=1000,
            ),
            spec=METHODS.get("superpoint").stages[stage],
            out=tmp_path / stage,
            fingerprint=stage,
            seed=0,
            initial_weights=None if start is None else tmp_path / start / "weights.safetensors",
        )

    shapes = train("shapes", 200, 16, None, None)
    assert shapes.metric_best > shapes.metric_initial + 0.03
    magicpoint = train("magicpoint", 80, 8, "shapes", label("shapes"))
    assert magicpoint.metric_best > magicpoint.metric_initial
    joint = train("superpoint", 120, 4, "magicpoint", label("magicpoint"))
    assert joint.metric_best > joint.metric_initial
