"""Where relative-pose evaluation spends its time: `python benchmarks/pose.py [--images 8] [--keypoints 2000]`.

`evaluate_pose` runs on made-up views of one cloud of points: all pairs, descriptors with noise, half of the keypoints
without a partner. Its parts are then timed alone on the same pairs: matching (`match_mutual_nearest`), estimation
(`estimate_pose`); the rest is reading, precision, errors and bookkeeping. Bare: one product of the descriptors with
both maxima in PyTorch, and the estimator's own function on points that are ready. Ratios are of process time, which
other programs disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import poselib
import torch

from matchlib.datasets.pose_pairs import PosePair, PosePairSet, relative_pose
from matchlib.evaluation.pose import evaluate_pose
from matchlib.evaluation.pose_config import POSE_PROTOCOLS, PoseProtocol
from matchlib.evaluation.pose_estimators import (
    CalibratedMatches,
    calibrate,
    estimate_pose,
    normalized_threshold,
)
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.matching.mutual_nearest import match_mutual_nearest

SIZE = (1200, 900)
K = np.array([[1000.0, 0, 600], [0, 1000, 450], [0, 0, 1]])


def make_views(images: int, keypoints: int) -> tuple[dict[str, Features], list[np.ndarray]]:
    """Features of each view by name, and world-to-camera poses on an arc around the cloud."""
    rng = np.random.default_rng(0)
    cloud = rng.uniform([-2, -1.5, -1], [2, 1.5, 1], (keypoints // 2, 3))
    names = rng.normal(size=(len(cloud), 128))
    views, poses = {}, []
    for number in range(images):
        T = np.eye(4)
        T[:3, :3] = cv2.Rodrigues(np.array([0, 0.08 * number, 0.02 * number]))[0]
        T[:3, 3] = [-0.3 * number, 0.05 * number, 6]
        camera = cloud @ T[:3, :3].T + T[:3, 3]
        seen = camera[:, :2] / camera[:, 2:] * 1000 + [600, 450] + rng.normal(scale=0.7, size=(len(cloud), 2))
        alone = rng.uniform([0, 0], SIZE, (keypoints - len(cloud), 2))
        descriptors = np.concatenate(
            [names + rng.normal(size=names.shape), rng.normal(size=(len(alone), 128))]
        )
        views[f"{number:03}.jpg"] = Features(
            keypoints=np.concatenate([seen, alone]).astype(np.float32),
            scores=np.ones(keypoints, np.float32),
            descriptors=(descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).astype(np.float32),
            image_size=SIZE,
        )
        poses.append(T)
    return views, poses


def seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def bare_matching(features0: Features, features1: Features) -> torch.Tensor:
    similarity = torch.from_numpy(features0.descriptors) @ torch.from_numpy(features1.descriptors).T
    best0, best1 = similarity.argmax(dim=1), similarity.argmax(dim=0)
    return (best1[best0] == torch.arange(len(best0))).nonzero()


def bare_estimation(matches: CalibratedMatches, protocol: PoseProtocol) -> object:
    if protocol.estimator == "poselib":
        cameras = [
            {"model": "PINHOLE", "width": w, "height": h, "params": [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]}
            for k, (w, h) in ((matches.K0, matches.size0), (matches.K1, matches.size1))
        ]
        options = {"max_epipolar_error": protocol.threshold_px, "success_prob": protocol.confidence}
        return poselib.estimate_relative_pose(matches.points0, matches.points1, *cameras, options, {})
    points = matches.normalized()
    threshold = normalized_threshold(matches, protocol)
    E, mask = cv2.findEssentialMat(*points, np.eye(3), cv2.RANSAC, protocol.confidence, threshold)
    return cv2.recoverPose(E[:3], *points, np.eye(3), distanceThresh=1e9, mask=mask)


def measure(reader: FeatureReader, pairs: PosePairSet, protocol: PoseProtocol) -> None:
    views = {name: reader.read(name) for name in pairs.image_names}
    both = [(views[pair.name0], views[pair.name1], pair) for pair in pairs.pairs]
    matched = [match_mutual_nearest(f0, f1) for f0, f1, _ in both]
    ready = [
        calibrate(
            (f0.keypoints[m.index[:, 0]], f1.keypoints[m.index[:, 1]]),
            (f0.image_size, f1.image_size),
            pair,
            pixel_offset=0.0,
            protocol=protocol,
        )
        for (f0, f1, pair), m in zip(both, matched, strict=True)
    ]
    total = seconds(lambda: evaluate_pose(reader, pairs, [protocol], show_progress=False))
    matching = seconds(lambda: [match_mutual_nearest(f0, f1) for f0, f1, _ in both])
    estimation = seconds(lambda: [estimate_pose(item, protocol) for item in ready])
    bare_match = seconds(lambda: [bare_matching(f0, f1) for f0, f1, _ in both])
    bare_pose = seconds(lambda: [bare_estimation(item, protocol) for item in ready])
    shares = (total, matching, estimation, total - matching - estimation, bare_match, bare_pose)
    print(
        f"{protocol.estimator:14}"
        + "".join(f"{1000 * value / len(pairs):11.2f}" for value in shares)
        + f"{total / (bare_match + bare_pose):13.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--keypoints", type=int, default=2000)
    arguments = parser.parse_args()
    views, poses = make_views(arguments.images, arguments.keypoints)
    names = list(views)
    listed = tuple(
        PosePair(name0=names[i], name1=names[j], K0=K, K1=K, T_0to1=relative_pose(poses[i], poses[j]))
        for i, j in itertools.combinations(range(len(names)), 2)
    )
    with tempfile.TemporaryDirectory() as temporary:
        pairs = PosePairSet(name="made-up", root=Path(temporary), pairs=listed)
        with FeatureWriter(
            Path(temporary) / "f.h5", StoreHeader(method="made-up", fingerprint="f")
        ) as writer:
            for name, features in views.items():
                writer.add(name, features)
            writer.finish()
        print(
            f"{len(pairs)} pairs of {arguments.keypoints} keypoints, torch threads {torch.get_num_threads()}"
        )
        print("milliseconds per pair")
        print("estimator           total   matching estimation       rest bare match  bare pose   total/bare")
        with FeatureReader(Path(temporary) / "f.h5") as reader:
            evaluate_pose(reader, pairs, POSE_PROTOCOLS, show_progress=False)  # caches, page faults
            for protocol in POSE_PROTOCOLS:
                measure(reader, pairs, protocol)


if __name__ == "__main__":
    main()
