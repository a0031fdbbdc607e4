"""The image pairs of a scene that may become records: cheap filters and geometry, for all pairs at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from matchlib.datasets.types import Scene
from matchlib.geometry.epipolar import essential_from_pose
from matchlib.geometry.pose import relative_pose
from matchlib.match_sets.angles import camera_angles_deg
from matchlib.match_sets.baseline import camera_distances, has_baseline
from matchlib.match_sets.config import MatchSetConfig
from matchlib.match_sets.layout import Float32, Float64, encode_headers
from matchlib.randomness import generator_for

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Pairs that passed the cheap filters, in order; every array has one entry per pair.

    number:         position in the source's list of pairs; index0, index1: scene-local image ids
    rotation_deg:   angle between the cameras, by the configured rule; overlap: nan where it was not measured
    headers:        (P, 46) float32, the first part of each record
    dropped:        reason -> number of pairs that did not pass
    """

    number: Int64
    index0: Int64
    index1: Int64
    rotation_deg: Float64
    overlap: Float64
    headers: Float32
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.number)


def select_candidates(
    scene: Scene,
    index0: Int64,
    index1: Int64,
    *,
    overlap: Float64 | None,
    faults: Mapping[int, str],
    config: MatchSetConfig,
    seed: int,
    needs_baseline: bool = False,
) -> Candidates:
    """Filter the pairs (P,) of a source by image faults, camera rotation, baseline and `max_pairs`.

    `faults` names images that cannot be used, and why; a pair with one is dropped for the reason of its
    first. `needs_baseline` drops pairs whose cameras stand at the same place (see `baseline`): without depth,
    they teach nothing.
    """
    number = np.arange(len(index0))
    known = overlap if overlap is not None else np.full(len(index0), np.nan)
    dropped: dict[str, int] = {}

    absent = np.setdiff1d(np.union1d(index0, index1), np.fromiter(scene.images, dtype=np.int64)).tolist()
    reasons = {**dict.fromkeys(absent, "image without camera"), **faults}
    bad = _faulty(index0, index1, reasons, dropped)
    T_0to1 = relative_poses(scene, index0[~bad], index1[~bad])
    number, known = number[~bad], known[~bad]
    angle = camera_angles_deg(T_0to1, config.angles)
    fits = _within(angle, config, dropped)
    if needs_baseline:
        first, second = index0[number], index1[number]
        apart = has_baseline(camera_distances(scene, first, second), first, second)
        _count(dropped, "cameras at the same place", fits & ~apart)
        fits &= apart
    keep = np.flatnonzero(fits)
    if config.max_pairs is not None and len(keep) > config.max_pairs:
        draw = generator_for(seed, scene.name, "pairs")
        dropped[f"more than {config.max_pairs} pairs"] = len(keep) - config.max_pairs
        keep = np.sort(draw.choice(keep, config.max_pairs, replace=False))
    number, T_0to1 = number[keep], T_0to1[keep]
    return Candidates(
        number=number,
        index0=index0[number],
        index1=index1[number],
        rotation_deg=angle[keep],
        overlap=known[keep],
        headers=_headers(scene, index0[number], index1[number], T_0to1),
        dropped=dropped,
    )


def _within(angle: Float64, config: MatchSetConfig, dropped: dict[str, int]) -> npt.NDArray[np.bool_]:
    near, far = angle < config.min_rotation_deg, angle > config.max_rotation_deg
    _count(dropped, f"rotation below {config.min_rotation_deg:g} deg", near)
    _count(dropped, f"rotation above {config.max_rotation_deg:g} deg", far)
    return ~(near | far)


def relative_poses(scene: Scene, index0: Int64, index1: Int64) -> Float64:
    """`T_0to1` (P, 4, 4) float64 of pairs of images that all have cameras."""
    poses, at = _stack(scene, [image.camera.T_world_to_cam for image in scene.images.values()], (4, 4))
    stacked = torch.from_numpy(poses)
    T: Float64 = relative_pose(stacked[at[index0]], stacked[at[index1]]).numpy()
    return T


def _headers(scene: Scene, index0: Int64, index1: Int64, T_0to1: Float64) -> Float32:
    Ks, at = _stack(scene, [image.camera.K for image in scene.images.values()], (3, 3))
    sizes = np.array([image.camera.size for image in scene.images.values()], dtype=np.int64).reshape(-1, 2)
    return encode_headers(
        global_index=np.stack([index0, index1], axis=1) + scene.first_global_index,
        sizes=np.concatenate([sizes[at[index0]], sizes[at[index1]]], axis=1),
        K0=Ks[at[index0]],
        K1=Ks[at[index1]],
        E_0to1=essential_from_pose(torch.from_numpy(T_0to1)).numpy(),
        T_0to1=T_0to1,
    )


def _stack(scene: Scene, matrices: list[Float64], shape: tuple[int, int]) -> tuple[Float64, Int64]:
    """Matrices of all images in one array, and the place of each scene-local id in it."""
    ids = np.fromiter(scene.images, dtype=np.int64, count=len(scene.images))
    at = np.full(int(ids.max(initial=-1)) + 1, -1, dtype=np.int64)
    at[ids] = np.arange(len(ids))
    return np.array(matrices, dtype=np.float64).reshape(-1, *shape), at


def _faulty(
    index0: Int64, index1: Int64, faults: Mapping[int, str], dropped: dict[str, int]
) -> npt.NDArray[np.bool_]:
    bad = np.zeros(len(index0), dtype=bool)
    for reason in sorted(set(faults.values())):
        ids = np.array([index for index, why in faults.items() if why == reason], dtype=np.int64)
        hit = (np.isin(index0, ids) | np.isin(index1, ids)) & ~bad
        _count(dropped, reason, hit)
        bad |= hit
    return bad


def _count(dropped: dict[str, int], reason: str, hit: npt.NDArray[np.bool_]) -> None:
    if hit.any():
        dropped[reason] = dropped.get(reason, 0) + int(hit.sum())
