"""Two methods evaluated on two small sequences whose truth is known: features are placed, not detected."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from matchlib.completion import write_marker
from matchlib.datasets.hpatches import write_homography
from matchlib.datasets.images import write_image
from matchlib.evaluation.hpatches import HPatchesProtocol, HPatchesResult, PairResult, write_result
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.visualization.draw import save_png

SEQUENCES = ("i_dots", "v_dots")
WIDTH, HEIGHT = 96, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Files of a finished run."""

    root: Path
    results: list[Path]
    features: dict[str, Path]
    training: list[Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    root = tmp_path / "hpatches"
    write_sequences(root)
    results, features = [], {}
    for label, shift_px in (("exact", 0.0), ("two_off", 2.0)):
        features[label] = tmp_path / "features" / f"{label}.h5"
        write_features(features[label], shift_px)
        with FeatureReader(features[label]) as reader:
            result = make_result(label, shift_px, features_digest=reader.digest)
        results.append(tmp_path / "results" / f"{label}.json")
        write_result(result, results[-1])
    training = [write_training(tmp_path / "training" / "dots" / stage) for stage in ("base", "dcn")]
    return Run(root=root, results=results, features=features, training=training)


def write_sequences(root: Path) -> None:
    """All homographies are the identity; the images are noise."""
    for name in SEQUENCES:
        for k in range(1, 7):
            noise = np.random.default_rng(k).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            (root / name).mkdir(parents=True, exist_ok=True)
            save_png(root / name / f"{k}.png", noise)
            (root / name / f"{k}.png").rename(root / name / f"{k}.ppm")
        for k in range(2, 7):
            write_homography(root / name / f"H_1_{k}", np.eye(3))


def write_features(path: Path, shift_px: float) -> None:
    """Five keypoints per image with unit descriptors e_1..e_5, moved to the right in images 2 to 6."""
    header = StoreHeader(method="placed", fingerprint="f" * 64, settings={"shift_px": shift_px})
    with FeatureWriter(path, header) as writer:
        for name in SEQUENCES:
            for k in range(1, 7):
                points = np.stack([np.arange(10, 60, 10), np.arange(5, 55, 10)], axis=1).astype(np.float32)
                points[:, 0] += shift_px if k > 1 else 0.0
                writer.add(
                    f"{name}/{k}.ppm",
                    Features(
                        keypoints=points,
                        scores=np.ones(5, dtype=np.float32),
                        descriptors=np.eye(5, dtype=np.float32),
                        image_size=(WIDTH, HEIGHT),
                    ),
                )
        writer.finish()


def make_result(label: str, shift_px: float, *, features_digest: str = "d" * 64) -> HPatchesResult:
    accuracy = tuple(float(shift_px <= threshold) for threshold in range(1, 16))
    pairs = tuple(
        PairResult(
            sequence=name,
            k=k,
            features0=5,
            features1=5,
            matches=5,
            accuracy=accuracy,
            corner_error_px=shift_px if k < 6 else float("inf"),
        )
        for name in SEQUENCES
        for k in range(2, 7)
    )
    return HPatchesResult(
        label=label,
        protocol=HPatchesProtocol(sequences="all_present"),
        features_digest=features_digest,
        image_features=(5,) * 12,
        pairs=pairs,
    )


def write_training(folder: Path) -> Path:
    rows = [{"step": step, "split": "train", "values": {"triplet": 1.0 / step}} for step in range(1, 41)]
    rows += [
        {"step": step, "split": "validation", "values": {"accuracy": 0.25 + step / 80}}
        for step in (0, 20, 40)
    ]
    (folder / "pictures").mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_image(folder / "pictures" / "score_map.png", np.full((16, 24, 3), 90, dtype=np.uint8))
    (folder / "weights.safetensors").write_bytes(folder.name.encode())
    write_marker(folder, stage="train", fingerprint="0" * 64, files=[folder / "weights.safetensors"])
    return folder
