"""What a PCK evaluation gives: one row per image pair, curves and figures from them, JSON files. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.errors import ConfigError, ShapeError
from matchlib.evaluation.config import SPLITS, BootstrapConfig, Split
from matchlib.evaluation.metrics import Float, bootstrap_interval, intervals_by_name
from matchlib.evaluation.pck_config import HarrisQueries, PCKProtocol
from matchlib.evaluation.result_files import incomplete, read_layout, write_layout
from matchlib.features.dense import MemberPairs

LAYOUT = "matchlib-pck-1"
ABLATION_LAYOUT = "matchlib-pck-ablation-1"
HEADLINE_PX = (1.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKPair:
    """Figures of the pair (1, k) of one sequence.

    points:     number of queries
    candidates: number of places that each was compared with
    correct:    share of queries within the protocol's threshold (inclusive)
    curve:      the same at each threshold of the protocol's curve
    """

    sequence: str
    k: int
    points: int
    candidates: int
    correct: float
    curve: tuple[float, ...]

    @property
    def split(self) -> Split:
        """`illumination` for sequences named i_*, else `viewpoint`; where the folder lies does not matter."""
        return "illumination" if self.sequence.startswith("i_") else "viewpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKResult:
    """All pairs of one method under one protocol, in order of sequence and k.

    label:         name in tables
    members:       names of the members of the descriptor set
    member_pairs:  which of them were compared with each other
    uses_truth:    whether the method was given the true scale: an oracle, no competitor
    fingerprint:   the describer's digest of method, settings and weights
    points_digest: digest of the query points; results with different ones do not compare
    left_out:      pairs without query points, as "v_bark 1-4"
    """

    label: str
    protocol: PCKProtocol
    members: tuple[str, ...]
    member_pairs: MemberPairs
    uses_truth: bool
    fingerprint: str
    points_digest: str
    pairs: tuple[PCKPair, ...]
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pair in self.pairs:
            if len(pair.curve) != len(self.protocol.curve_px):
                raise ShapeError(
                    f"curve of {pair.sequence} 1-{pair.k}: expected {len(self.protocol.curve_px)} values, "
                    f"got {len(pair.curve)}"
                )

    def pairs_of(self, split: Split) -> tuple[PCKPair, ...]:
        """The pairs of one split, in order."""
        return tuple(pair for pair in self.pairs if split in ("all", pair.split))

    def pck(self, split: Split = "all") -> float:
        """Mean over the pairs of a split of the share within the protocol's threshold; nan for none."""
        return float(self._mean(split)[0])

    def curve(self, split: Split = "all") -> Float:
        """The same at each threshold of the protocol's curve, (T,) float64."""
        return self._mean(split)[1:]

    def interval(self, split: Split = "all") -> Float:
        """Bootstrap interval over sequences, (2, 1 + T) float64: lower and upper end of `pck`, then of `curve`.

        nan for fewer than two sequences.
        """
        pairs, values = self.pairs_of(split), self._values(split)
        if not pairs:
            return np.full((2, values.shape[1]), np.nan)
        names, row_of = np.unique([pair.sequence for pair in pairs], return_inverse=True)
        sums = np.zeros((len(names), values.shape[1]))
        np.add.at(sums, row_of, values)
        counts = np.bincount(row_of, minlength=len(names))

        def statistic(drawn: npt.NDArray[np.int64]) -> Float:
            return np.asarray(sums[drawn].sum(axis=0) / counts[drawn].sum())

        # Addressed by the split alone: methods are compared over the same draws of sequences.
        return bootstrap_interval(statistic, len(names), self.protocol.bootstrap, purpose=f"pck/{split}")

    def summary(self) -> dict[str, Any]:
        """Figures by name, for tables: per split that has pairs a dict `all`, `illumination`, `viewpoint`.

        Each holds `pairs`, `points` (mean), `pck`, `pck@1`, `pck@3`, `pck@5`, `pck@10` (those in the curve),
        and `interval` (figure name -> [low, high]; empty for a single sequence).
        """
        return {split: self._split_summary(split) for split in SPLITS if self.pairs_of(split)}

    def _split_summary(self, split: Split) -> dict[str, Any]:
        pairs, interval = self.pairs_of(split), self.interval(split)
        columns = {"pck": 0} | {
            f"pck@{t:g}": 1 + self.protocol.curve_px.index(t)
            for t in HEADLINE_PX
            if t in self.protocol.curve_px
        }
        mean = self._mean(split)
        return {
            "pairs": len(pairs),
            "points": float(np.mean([pair.points for pair in pairs])),
            **{name: float(mean[column]) for name, column in columns.items()},
            "interval": intervals_by_name(list(columns), interval[:, list(columns.values())]),
        }

    def _values(self, split: Split) -> Float:
        """(P, 1 + T): share at the threshold, then the curve, of each pair."""
        rows = [(pair.correct, *pair.curve) for pair in self.pairs_of(split)]
        return np.array(rows, dtype=np.float64).reshape(-1, 1 + len(self.protocol.curve_px))

    def _mean(self, split: Split) -> Float:
        values = self._values(split)
        return np.asarray(values.mean(axis=0)) if len(values) else np.full(values.shape[1], np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKAblation:
    """The same descriptors and points searched exactly and by FLANN.

    flann:      None for sets of descriptors, which have no approximate search
    same_index: share of queries of each pair for which FLANN finds the exact nearest candidate, or another at
                the same place, in the order of the pairs; empty without `flann`
    """

    exact: PCKResult
    flann: PCKResult | None = None
    same_index: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.flann is None:
            if self.same_index:
                raise ShapeError(f"ablation: expected no share without FLANN, got {len(self.same_index)}")
            return
        pairs = [[(pair.sequence, pair.k) for pair in result.pairs] for result in (self.exact, self.flann)]
        if pairs[0] != pairs[1] or len(self.same_index) != len(pairs[0]):
            raise ShapeError("ablation: expected the same pairs in both results and one share for each")

    @property
    def results(self) -> tuple[PCKResult, ...]:
        """The exact result, and FLANN's where there is one."""
        return (self.exact,) if self.flann is None else (self.exact, self.flann)

    def agreement(self, split: Split = "all") -> float:
        """Mean of `same_index` over the pairs of a split; nan for none."""
        if self.flann is None:
            return float("nan")
        shares = [
            share
            for pair, share in zip(self.exact.pairs, self.same_index, strict=True)
            if split in ("all", pair.split)
        ]
        return float(np.mean(shares)) if shares else float("nan")


# ---------------------------------------------------------------- files
def write_pck_result(result: PCKResult, path: Path) -> None:
    """Write a result as JSON, atomically. Equal results give equal bytes."""
    write_layout(path, LAYOUT, dataclasses.asdict(result))


def read_pck_result(path: Path) -> PCKResult:
    """Read what `write_pck_result` wrote. Raises DataError naming the file."""
    body = read_layout(path, LAYOUT)
    try:
        return _result_from(body)
    except (KeyError, TypeError, AttributeError, ShapeError, ConfigError) as error:
        raise incomplete(path, error) from error


def write_pck_ablation(ablation: PCKAblation, path: Path) -> None:
    """Write an ablation as JSON, atomically. Equal ablations give equal bytes."""
    write_layout(path, ABLATION_LAYOUT, dataclasses.asdict(ablation))


def read_pck_ablation(path: Path) -> PCKAblation:
    """Read what `write_pck_ablation` wrote. Raises DataError naming the file."""
    body = read_layout(path, ABLATION_LAYOUT)
    try:
        return PCKAblation(
            exact=_result_from(body["exact"]),
            flann=None if body["flann"] is None else _result_from(body["flann"]),
            same_index=tuple(body["same_index"]),
        )
    except (KeyError, TypeError, AttributeError, ShapeError, ConfigError) as error:
        raise incomplete(path, error) from error


def _result_from(body: Mapping[str, Any]) -> PCKResult:
    protocol = dict(body["protocol"])
    protocol |= {
        "harris": HarrisQueries(**protocol["harris"]),
        "curve_px": tuple(protocol["curve_px"]),
        "bootstrap": BootstrapConfig(**protocol["bootstrap"]),
    }
    fields = dict(body) | {
        "protocol": PCKProtocol(**protocol),
        "members": tuple(body["members"]),
        "left_out": tuple(body["left_out"]),
        "pairs": tuple(PCKPair(**(row | {"curve": tuple(row["curve"])})) for row in body["pairs"]),
    }
    return PCKResult(**fields)
