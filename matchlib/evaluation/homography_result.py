"""What a homography evaluation gives: one row per image pair, figures from them, one JSON file. NumPy
only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.evaluation.config import SPLITS, BootstrapConfig, HomographyProtocol, SequenceSet, Split
from matchlib.evaluation.metrics import Float, auc, bootstrap_interval, intervals_by_name
from matchlib.evaluation.result_files import (
    homography_protocol_from,
    incomplete,
    read_result_file,
    write_result_file,
)

LAYOUT = "matchlib-homography-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class HomographyPair:
    """Pair (1, k) of one sequence.

    matches:         number of matches given to the estimator
    corner_error_px: mean corner error in px of the protocol's frame; inf if estimation failed
    """

    sequence: str
    k: int
    matches: int
    corner_error_px: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HomographyResult:
    """All pairs of one method under one protocol."""

    label: str
    protocol: HomographyProtocol
    sequences: SequenceSet
    features_digest: str
    pairs: tuple[HomographyPair, ...]

    def pairs_of(self, split: Split) -> tuple[HomographyPair, ...]:
        """The pairs of one split, in order."""
        is_illumination = split == "illumination"
        return tuple(
            p for p in self.pairs if split == "all" or p.sequence.startswith("i_") == is_illumination
        )

    def errors_px(self, split: Split = "all") -> Float:
        """Corner error per pair, (P,) float64."""
        return np.array([pair.corner_error_px for pair in self.pairs_of(split)], dtype=np.float64)

    def summary(self, bootstrap: BootstrapConfig | None = None) -> dict[str, Any]:
        """Figures by name, for tables and JSON.

        `label`, `protocol`, `estimator`, `features_digest`, and per split that has pairs a dict `all`,
        `illumination`, `viewpoint` with `pairs`, `matches` (mean), `failed` (pairs without a homography),
        `correct@N`, `auc@N`, and `interval` (figure name -> [low, high]; empty for a single sequence).
        """
        bootstrap = bootstrap or BootstrapConfig()
        head: dict[str, Any] = {
            "label": self.label,
            "protocol": self.protocol.name,
            "estimator": self.protocol.estimator_name,
            "features_digest": self.features_digest,
        }
        splits = [split for split in SPLITS if self.pairs_of(split)]
        return head | {split: self._split_summary(split, bootstrap) for split in splits}

    def _split_summary(self, split: Split, bootstrap: BootstrapConfig) -> dict[str, Any]:
        pairs, errors = self.pairs_of(split), self.errors_px(split)
        names = [f"correct@{t:g}" for t in self.protocol.correct_px]
        names += [f"auc@{t:g}" for t in self.protocol.auc_px]
        sequence_of = np.unique([pair.sequence for pair in pairs], return_inverse=True)[1]
        rows_of = [np.flatnonzero(sequence_of == row) for row in range(int(sequence_of.max()) + 1)]

        def figures(drawn: npt.NDArray[np.int64]) -> Float:
            sample = errors[np.concatenate([rows_of[row] for row in drawn])]
            correct = [float(np.mean(sample <= t)) for t in self.protocol.correct_px]
            return np.array([*correct, *auc(sample, self.protocol.auc_px)])

        interval = bootstrap_interval(
            figures, len(rows_of), bootstrap, purpose=f"homography/{self.protocol.name}/{split}"
        )
        return {
            "pairs": len(pairs),
            "matches": float(np.mean([pair.matches for pair in pairs])),
            "failed": int(np.isinf(errors).sum()),
            **dict(zip(names, figures(np.arange(len(rows_of))).tolist(), strict=True)),
            "interval": intervals_by_name(names, interval),
        }


def write_homography_result(result: HomographyResult, path: Path) -> None:
    """Write a result as JSON, atomically."""
    write_result_file(path, LAYOUT, dataclasses.asdict(result))


def read_homography_result(path: Path) -> HomographyResult:
    """Read what `write_homography_result` wrote. Raises DataError naming the file."""
    body = read_result_file(path, LAYOUT)
    try:
        return HomographyResult(
            label=body["label"],
            protocol=homography_protocol_from(body["protocol"]),
            sequences=body["sequences"],
            features_digest=body["features_digest"],
            pairs=tuple(HomographyPair(**row) for row in body["pairs"]),
        )
    except (KeyError, TypeError) as error:
        raise incomplete(path, error) from error
