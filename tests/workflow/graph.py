"""A small world of its own for tests of the graph: a configuration, and Snakemake started in a folder beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

_MIRROR = {
    "texture_px": 256,
    "supersampling": 1,
    "gl3d": {
        "train_scenes": 1,
        "validation_scenes": 1,
        "images_per_scene": 4,
        "original_size": [160, 120],
        "stored_size": [96, 96],
        "depth_size": [48, 48],
        "keypoints_per_image": 300,
    },
    "blendedmvs": {"train_scenes": 1, "validation_scenes": 0, "images_per_scene": 4, "image_size": [128, 96]},
    "hpatches": {"illumination_sequences": 1, "viewpoint_sequences": 1, "image_size": [160, 120]},
    "coco": {"train_images": 5, "validation_images": 2, "longer_side": [160, 200]},
    "caps_megadepth": {
        "train_scenes": 1,
        "validation_scenes": 1,
        "images_per_scene": 4,
        "image_size": [128, 96],
    },
    "aachen": {
        "reference_images": 6,
        "sequence_images": 1,
        "day_queries": 1,
        "night_queries": 1,
        "additional_night_queries": 1,
        "image_size": [200, 150],
    },
    "eth": {"images_per_scene": 5, "image_size": [200, 150]},
}

_PHOTO_STAGE = {
    "steps": 4,
    "image_size": [64, 48],
    "optimiser": "adam",
    "learning_rate": 0.001,
    "workers": 0,
    "log_every": 2,
    "validate_every": 4,
    "validation_pairs": 2,
    "checkpoint_every": 1,
}
_POSFEAT = {
    "network": {"encoder": "resnet18", "decoder_channels": [32, 16], "head_channels": [8, 16]},
    "descriptor_loss": {"window": 0.3},
    "inference": {"max_keypoints": 200},
    "validation": {"max_keypoints": 50},
}
_SUPERPOINT = {
    "training": {"shapes": {"draw_size": [160, 120], "train_pictures": 4, "validation_pictures": 1}},
    "adaptation": {"views": 3, "size": [96, 64]},
    "detection": {"max_keypoints": 200},
}


def tiny_config(*, steps: int = 6) -> dict[str, Any]:
    """The demo's configuration with everything smaller: seconds instead of minutes."""
    stage = {
        "steps": steps,
        "image_size": 64,
        "decay_steps": 20,
        "workers": 0,
        "log_every": 2,
        "validate_every": 4,
        "validation_pairs": 2,
        "checkpoint_every": 1,
    }
    match_sets = {"slots": 64, "min_keypoints": 0, "min_rotation_deg": 0}
    return {
        "mirror": _MIRROR,
        "datasets": {
            "gl3d": {
                "source": "datasets/demo_gl3d.yaml",
                "train_split": "comb/train",
                "validation_split": "comb/test",
                "match_sets": match_sets,
            },
            "blendedmvs": {"source": "datasets/demo_blendedmvs.yaml", "match_sets": match_sets},
            "megadepth": {
                "source": "datasets/demo_caps_megadepth.yaml",
                "train_split": "train",
                "validation_split": "val",
                "match_sets": {"min_rotation_deg": 0},
            },
            "hpatches": {"source": "datasets/demo_hpatches.yaml"},
            "aachen": {"source": "datasets/demo_aachen.yaml"},
            "eth": {"source": "datasets/demo_eth.yaml"},
            "coco": {
                "source": "datasets/demo_coco.yaml",
                "train_split": "train2017",
                "validation_split": "val2017",
            },
            "coco_superpoint": {
                "source": "datasets/demo_coco.yaml",
                "train_split": "train2017",
                "validation_split": "val2017",
                "warps": {"sampler": "superpoint", "resize": "crop"},
            },
        },
        "runs": {
            "aslfeat": {
                "method": "aslfeat",
                "train_on": ["gl3d", "blendedmvs"],
                "settings": {"network": {"batch_norm_momentum": 0.1}, "inference": {"max_keypoints": 200}},
                "stages": {"base": stage, "dcn": stage | {"steps": 4, "learning_rate": 0.01}},
            },
            "msnet": {
                "method": "msnet",
                "train_on": ["coco"],
                "settings": {"detector": {"max_keypoints": 200}},
                "stages": {"descriptor": _PHOTO_STAGE},
                "variants": {"set": {"members": "set2"}},
            },
            "posfeat": {
                "method": "posfeat",
                "train_on": ["megadepth"],
                "settings": _POSFEAT,
                "stages": {
                    "desc": _PHOTO_STAGE | {"image_size": [96, 80]},
                    "kp": _PHOTO_STAGE | {"image_size": [96, 80]},
                },
            },
            "superpoint": {
                "method": "superpoint",
                "train_on": ["coco_superpoint"],
                "settings": _SUPERPOINT,
                "label_shards": 2,
                "stages": {
                    "shapes": _PHOTO_STAGE,
                    "magicpoint": _PHOTO_STAGE,
                    "superpoint": _PHOTO_STAGE,
                },
            },
        },
        "baselines": {"rootsift": {"method": "rootsift", "settings": {"max_keypoints": 200}}},
        "evaluate_hpatches": {"dataset": "hpatches", "protocol": {"sequences": "all_present"}},
        "evaluate_pck": {
            "dataset": "hpatches",
            "protocols": [
                {"name": "as-coded", "longer_side": 160, "points": 50, "sequences": "all_present"}
                | {"candidates": "partners", "threshold_px": 3},
                {"name": "as-described", "longer_side": 160, "points": 50, "sequences": "all_present"},
            ],
            "ablation": {"methods": ["rootsift", "msnet-descriptor"]},
        },
        "evaluate_pose": {"dataset": "megadepth", "methods": ["rootsift", "posfeat-kp"]},
        "evaluate_aachen": {"dataset": "aachen", "methods": ["rootsift"], "match_shards": 2},
        "evaluate_eth": {
            "scenes": {"Fountain": "eth"},
            "methods": ["rootsift"],
            "protocol": {"repeats": 2, "mapping": {"min_model_size": 3}},
        },
    }


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """Write a configuration beside the repository's dataset descriptions; returns its path."""
    place = folder / "config"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "datasets").exists():
        (place / "datasets").symlink_to(ROOT / "config" / "datasets")
    path = place / "test.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command(folder: Path, configfile: Path, arguments: Sequence[str], *, cores: int = 2) -> list[str]:
    """Snakemake on the repository's graph, working in `folder`."""
    return [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(folder),
        "--workflow-profile",
        str(ROOT / "profiles" / "default"),
        "--configfile",
        str(configfile),
        "--cores",
        str(cores),
        *arguments,
    ]


def environment() -> dict[str, str]:
    """Like a shell in which the project's environment is active."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def snakemake(
    folder: Path, configfile: Path, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake to its end; with `check`, a failure shows its output."""
    done = subprocess.run(
        command(folder, configfile, arguments), capture_output=True, text=True, env=environment(), check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
