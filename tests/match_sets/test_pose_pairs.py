"""Training pairs from poses alone, out of match sets of any source."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from matchlib.completion import MARKER, digest_file, digest_json
from matchlib.datasets.batch import PairBatch, PoseBatch
from matchlib.errors import DataError
from matchlib.geometry.epipolar import fundamental_from_pose
from matchlib.match_sets.config import DepthSourceConfig
from matchlib.match_sets.index import RECORDS, slots_of
from matchlib.match_sets.layout import map_records
from matchlib.match_sets.pairs import DepthPosePairs, MatchSetSource, PosePairs

ORIGINAL = (240, 180)
SIZE = (160, 96)
K = np.array([[220.0, 0, 119.5], [0, 220, 89.5], [0, 0, 1]])


@pytest.fixture
def listed(build_plane: Callable[..., Path], plane_scene: Path) -> MatchSetSource:
    """The pairs (0, 1) and (0, 2) of the plane scene, turned by 6 and 13 degrees; (0, 3) has no baseline."""
    folder = build_plane(source="list")
    return MatchSetSource(dataset_format="blendedmvs", root=plane_scene, scene="plane", folder=folder)


@pytest.fixture
def with_depth(build_plane: Callable[..., Path], plane_scene: Path) -> MatchSetSource:
    folder = build_plane(out="depth", depth=DepthSourceConfig(candidates="overlap"))
    return MatchSetSource(dataset_format="blendedmvs", root=plane_scene, scene="plane", folder=folder)


@pytest.fixture
def from_corr(build_corr: Callable[..., Path], corr_scene: Path) -> MatchSetSource:
    folder = build_corr(out="corr")
    scene = "0123456789abcdef01234567"
    # Its keypoints have random orientations.
    return MatchSetSource(
        dataset_format="gl3d", root=corr_scene, scene=scene, folder=folder, max_rot_diff_deg=180
    )


def plane_map(T: np.ndarray) -> np.ndarray:
    """Pixels of image 0, which is the world, to image 1 over the plane z = 4."""
    return K @ (T[:3, :3] + np.outer(T[:3, 3], [0, 0, 1]) / 4) @ np.linalg.inv(K)


@pytest.mark.parametrize("index", [0, 1])
def test_points_of_the_plane_lie_on_the_epipolar_lines(listed: MatchSetSource, index: int) -> None:
    """True matches, carried to the training size by the rule of the images, against F from the batch."""
    batch = PosePairs([listed], size=SIZE).load(index, seed=77)
    assert type(batch) is PoseBatch and batch.seeds == (77,)
    assert batch.names == (f"plane/00000000-{index + 1:08d}",)
    assert batch.image1.shape == (1, 3, SIZE[1], SIZE[0]) and batch.image1.dtype == torch.float32
    T = batch.T_0to1[0].double()
    points0 = np.random.default_rng(0).uniform((0, 0), ORIGINAL, (50, 2))
    points1 = cv2.perspectiveTransform(points0[:, None], plane_map(T.numpy()))[:, 0]
    scale = np.array(SIZE) / ORIGINAL
    x0, x1 = (torch.from_numpy(np.column_stack([p * scale, np.ones(50)])) for p in (points0, points1))
    F = fundamental_from_pose(T, batch.K0[0].double(), batch.K1[0].double())
    lines = x0 @ F.T
    distance = (x1 * lines).sum(1).abs() / lines[:, :2].norm(dim=1)
    assert distance.max() < 1e-3  # K and T are stored as float32
    shifted = x1 + torch.tensor([0.0, 1, 0])
    off = (shifted * lines).sum(1).abs() / lines[:, :2].norm(dim=1)
    assert off.max() > 0.1  # the test can fail


def test_the_images_are_those_of_the_poses(listed: MatchSetSource) -> None:
    """Grey values agree over the plane."""
    batch = PosePairs([listed], size=ORIGINAL).load(1, seed=0)
    H = plane_map(batch.T_0to1[0].double().numpy())
    image0, image1 = (image[0].mean(dim=0).numpy() for image in (batch.image0, batch.image1))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(image1, H, ORIGINAL, flags=flags, borderValue=-1)
    seen = cv2.erode((warped >= 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert seen.mean() > 0.4 and np.corrcoef(warped[seen], image0[seen])[0, 1] > 0.98


def test_a_set_with_depth_gives_the_same_pairs_without_reading_any(with_depth: MatchSetSource) -> None:
    posed, deep = PosePairs([with_depth], size=SIZE), DepthPosePairs([with_depth], size=SIZE)
    assert len(posed) == len(deep) == 3
    expected = deep.load(2, seed=5)
    assert type(expected) is PairBatch
    shutil.rmtree(with_depth.root / "plane" / "rendered_depth_maps")
    batch = posed.load(2, seed=5)
    for field in fields(PoseBatch):
        ours, theirs = getattr(batch, field.name), getattr(expected, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    with pytest.raises(DataError, match="pfm"):
        deep.load(2, seed=5)


def test_sets_of_several_sources_are_mixed(
    listed: MatchSetSource, with_depth: MatchSetSource, from_corr: MatchSetSource
) -> None:
    pairs = PosePairs([listed, with_depth, from_corr], size=(32, 32))
    parts = [PosePairs([source], size=(32, 32)) for source in (listed, with_depth, from_corr)]
    assert len(pairs) == sum(map(len, parts)) and len(parts[0]) == 2
    assert torch.equal(pairs.load(2, 0).T_0to1, parts[1].load(0, 0).T_0to1)
    last = PoseBatch.stack([pairs.load(0, 0), pairs.load(len(pairs) - 1, 1)])
    assert len(last) == 2 and last.seeds == (0, 1)
    copy = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(copy.load(1, 5).image0, pairs.load(1, 5).image0)


def test_rotation_is_limited_when_sets_are_opened(
    listed: MatchSetSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert len(PosePairs([listed], size=(32, 32))) == 2 and "left out" not in caplog.text
    pairs = PosePairs([replace(listed, max_rotation_deg=10.0)], size=(32, 32))
    assert [pairs.load(i, 0).names for i in range(len(pairs))] == [("plane/00000000-00000001",)]
    assert "1 pairs of 1 match sets; left out: 1 rotation above max_rotation_deg = 10" in caplog.text
    assert len(DepthPosePairs([replace(listed, max_rotation_deg=10.0)], size=(32, 32))) == 1
    with pytest.raises(DataError, match=r"left out of training \(2 rotation above max_rotation_deg = 2\)"):
        PosePairs([replace(listed, max_rotation_deg=2.0, min_rotation_deg=0.0)], size=(32, 32))


def erase_baseline(source: MatchSetSource, record: int, share: float) -> None:
    """Move the cameras of one record together."""
    values = np.array(map_records(source.folder / RECORDS, slots_of(source.folder)))
    values[record, [37, 41, 45]] *= share
    (source.folder / RECORDS).write_bytes(values.astype("<f4").tobytes())


@pytest.mark.parametrize(("share", "left"), [(0.0, 2), (1e-5, 2), (0.1, 3)])
def test_pairs_without_baseline_are_of_use_with_depth_only(
    with_depth: MatchSetSource, caplog: pytest.LogCaptureFixture, share: float, left: int
) -> None:
    caplog.set_level(logging.INFO)
    erase_baseline(with_depth, 1, share)
    pairs = PosePairs([with_depth], size=(32, 32))
    assert len(pairs) == left and ("1 cameras at the same place" in caplog.text) == (left == 2)
    assert all(pairs.load(index, 0).T_0to1[0, :3, 3].norm() > 1e-2 for index in range(left))
    assert len(DepthPosePairs([with_depth], size=(32, 32))) == 3


def test_digests_tell_supervision_and_limits_apart(with_depth: MatchSetSource) -> None:
    limited = replace(with_depth, max_rotation_deg=80.0)
    digests = [
        pairs([source], size=(32, 32)).digest
        for pairs in (PosePairs, DepthPosePairs)
        for source in (with_depth, limited)
    ]
    assert len(set(digests)) == 4
    # Trainings from before the limit was there go on.
    marker = digest_file(with_depth.folder / MARKER)
    assert digests[2] == digest_json([["plane", marker, 3.0, 60.0]])


def test_a_cut_file_of_records_is_named(listed: MatchSetSource) -> None:
    pairs = PosePairs([listed], size=(32, 32))
    records = listed.folder / RECORDS
    records.write_bytes(records.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"records.f32: record 1 is cut; build the match set again"):
        pairs.load(1, 0)
    with pytest.raises(DataError, match=r"records.f32: \d+ bytes do not fit 2 pairs"):
        PosePairs([listed], size=(32, 32))
    records.unlink()
    with pytest.raises(DataError, match=r"records.f32: cannot be read"):
        pairs.load(0, 0)
