"""What the reconstruction of a scene gives: statistics per repeat, pose errors where the truth is known, one JSON file.

The steps that make it are in `matchlib.evaluation.reconstruction_run`. This module needs NumPy only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from matchlib.errors import ConfigError, ShapeError
from matchlib.evaluation.reconstruction_config import ReconstructionProtocol
from matchlib.evaluation.result_files import incomplete, read_layout, write_layout
from matchlib.sfm.statistics import ModelStatistics
from matchlib.typed_yaml import load_typed

LAYOUT = "matchlib-reconstruction-1"
DenseNote = Literal["", "not asked", "no CUDA", "no model"]
STATISTICS: tuple[str, ...] = (
    "registered_images",
    "points",
    "observations",
    "mean_track_length",
    "mean_observations_per_image",
    "mean_reprojection_error_px",
    "verified_pairs",
    "inlier_matches",
    "models",
)
"""Figures of every repeat; those that are means are missing for a model of no image, or no point."""
POSE_FIGURES: tuple[str, ...] = (
    "centre_error_median",
    "centre_error_max",
    "rotation_error_median_deg",
    "rotation_error_max_deg",
    "pairwise_rotation_median_deg",
    "pairwise_rotation_max_deg",
)
"""Figures of repeats whose poses could be compared with true ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseErrors:
    """Pose errors of one model after the similarity that fits its camera centres best to the true ones.

    names:        images compared, sorted
    missing:      images of known pose that the model lacks
    centre:       distance of each centre to the true one, as a share of the mean distance of true centres to their mean
    rotation_deg: angle of each rotation to the true one
    pairwise_rotation_median_deg, _max_deg: errors of relative rotations of all pairs, which need no alignment
    """

    names: tuple[str, ...]
    missing: tuple[str, ...]
    centre: tuple[float, ...]
    rotation_deg: tuple[float, ...]
    pairwise_rotation_median_deg: float
    pairwise_rotation_max_deg: float

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.centre) == len(self.rotation_deg) > 0:
            raise ShapeError(
                f"pose errors: expected one centre and rotation error per image, got {len(self.names)} images, "
                f"{len(self.centre)} and {len(self.rotation_deg)}"
            )

    def figures(self) -> dict[str, float]:
        """The figures of `POSE_FIGURES`."""
        return {
            "centre_error_median": float(np.median(self.centre)),
            "centre_error_max": max(self.centre),
            "rotation_error_median_deg": float(np.median(self.rotation_deg)),
            "rotation_error_max_deg": max(self.rotation_deg),
            "pairwise_rotation_median_deg": self.pairwise_rotation_median_deg,
            "pairwise_rotation_max_deg": self.pairwise_rotation_max_deg,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionRun:
    """One repeat: the model of most images, under one seed.

    dense_note: why `statistics.dense_points` is None; empty where it is a number
    poses:      None without true poses, and for models of too few images to align
    """

    seed: int
    statistics: ModelStatistics
    dense_note: DenseNote = "not asked"
    poses: PoseErrors | None = None

    def __post_init__(self) -> None:
        if (self.statistics.dense_points is None) != bool(self.dense_note):
            raise ShapeError(
                f"dense points: expected a number or a note, got {self.statistics.dense_points} and "
                f"'{self.dense_note}'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionResult:
    """All repeats of one method on one scene.

    label:           name in tables
    images:          of the scene's database
    pairs:           that were matched; matched_pairs: of them, with enough matches; matches: theirs in all
    features_digest: digest of the features that these numbers come from
    """

    label: str
    scene: str
    protocol: ReconstructionProtocol
    features_digest: str
    images: int
    pairs: int
    matched_pairs: int
    matches: int
    runs: tuple[ReconstructionRun, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ShapeError(f"{self.label} on {self.scene}: expected at least one repeat, got none")

    def values(self, figure: str) -> tuple[float, ...]:
        """A figure of `STATISTICS`, "dense_points" or `POSE_FIGURES`, of every repeat that has it.

        Raises KeyError for another name.
        """
        if figure in POSE_FIGURES:
            return tuple(run.poses.figures()[figure] for run in self.runs if run.poses is not None)
        if figure not in (*STATISTICS, "dense_points"):
            raise KeyError(figure)
        found = (getattr(run.statistics, figure) for run in self.runs)
        return tuple(float(value) for value in found if value is not None)

    def mean(self, figure: str) -> float:
        """Mean over the repeats that have the figure; nan if none has it."""
        values = self.values(figure)
        return float(np.mean(values)) if values else math.nan

    def spread(self, figure: str) -> float:
        """Standard deviation over the repeats (divided by their number less one); nan for fewer than two."""
        values = self.values(figure)
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def dense_note(self) -> str:
        """Why there is no number of dense points, once for each reason; empty where every repeat has one."""
        return ", ".join(dict.fromkeys(run.dense_note for run in self.runs if run.dense_note))


def write_reconstruction(result: ReconstructionResult, path: Path) -> None:
    """Write a result as JSON, atomically. Equal results give equal bytes."""
    write_layout(path, LAYOUT, dataclasses.asdict(result))


def read_reconstruction(path: Path) -> ReconstructionResult:
    """Read what `write_reconstruction` wrote. Raises DataError naming the file when it is absent or something else."""
    body = read_layout(path, LAYOUT)
    try:
        protocol = load_typed(ReconstructionProtocol, body["protocol"], str(path))
        runs = tuple(_run(run) for run in body["runs"])
        return ReconstructionResult(**(body | {"protocol": protocol, "runs": runs}))
    except (KeyError, TypeError, ShapeError, ConfigError) as error:
        raise incomplete(path, error) from error


def _run(body: Mapping[str, Any]) -> ReconstructionRun:
    poses = body["poses"]
    if poses is not None:
        lists = {key: tuple(value) for key, value in poses.items() if isinstance(value, list)}
        poses = PoseErrors(**(poses | lists))
    return ReconstructionRun(
        seed=body["seed"],
        statistics=ModelStatistics(**body["statistics"]),
        dense_note=body["dense_note"],
        poses=poses,
    )
