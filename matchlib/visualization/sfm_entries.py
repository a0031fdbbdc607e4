"""Results of the evaluations that need a camera, as entries of their sections in the report."""

from __future__ import annotations

import math

import numpy as np

from matchlib.evaluation.localisation import LocalisationResult
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.evaluation.pose_result import PoseResult, PoseRun
from matchlib.evaluation.reconstruction import ReconstructionResult
from matchlib.visualization.localisation_section import LocalisationEntry
from matchlib.visualization.pose_section import PoseEntry
from matchlib.visualization.reconstruction_section import ReconstructionEntry
from matchlib.visualization.report import Cell


def pose_entries(result: PoseResult) -> list[PoseEntry]:
    """One entry for each protocol that the pairs were evaluated under."""
    return [_pose_entry(result, run) for run in result.runs]


def localisation_entries(result: LocalisationResult, *, unit: str = "m") -> list[LocalisationEntry]:
    """One entry for each condition. unit: of the scene; the thresholds are in it."""
    entries = []
    for condition in result.conditions:
        queries, errors = result.queries_of(condition), result.errors(condition)
        shares, interval = result.shares(condition), result.interval(condition)
        recalls = []
        if shares is not None and interval is not None:
            for (distance, degrees), share, low, high in zip(
                result.thresholds, shares, *interval, strict=True
            ):
                recalls.append((distance, degrees, _percent(share, low, high)))
        entries.append(
            LocalisationEntry(
                label=result.label,
                benchmark=f"{result.dataset}, {result.way}",
                condition=condition,
                pixel_offset=result.pixel_offset,
                queries=len(queries),
                registered=sum(query.is_localised for query in queries),
                recalls=recalls,
                position=None if errors is None else errors[0],
                rotation_deg=None if errors is None else errors[1],
                unit=unit,
                origins=[("features", result.features_digest)],
            )
        )
    return entries


def reconstruction_entry(result: ReconstructionResult) -> ReconstructionEntry:
    """The means over the repeats, with one standard deviation to both sides where there are several."""
    has_truth = bool(result.values("centre_error_median"))
    dense = result.mean("dense_points")
    return ReconstructionEntry(
        label=result.label,
        scene=f"{result.scene}, protocol {result.protocol.name}, {result.pairs} pairs",
        images=result.images,
        registered_images=_repeated(result, "registered_images"),
        points=_repeated(result, "points"),
        observations=_repeated(result, "observations"),
        mean_track_length=_repeated(result, "mean_track_length"),
        mean_observations_per_image=_repeated(result, "mean_observations_per_image"),
        mean_reprojection_error_px=_repeated(result, "mean_reprojection_error_px"),
        verified_pairs=result.mean("verified_pairs"),
        inlier_matches=result.mean("inlier_matches"),
        models=result.mean("models"),
        dense_points=dense if math.isfinite(dense) else result.dense_note,
        repeats=len(result.runs),
        centre_error=result.mean("centre_error_median") if has_truth else None,
        rotation_error_deg=result.mean("rotation_error_median_deg") if has_truth else None,
        origins=[("features", result.features_digest)],
    )


def _pose_entry(result: PoseResult, run: PoseRun) -> PoseEntry:
    summary = run.summary()
    intervals = summary["interval"]
    names = [(t, f"auc@{t:g}") for t in run.protocol.auc_deg]
    precision = summary["precision"]
    origins = [("pairs", result.pairs_digest), ("features", result.features_digest)]
    return PoseEntry(
        label=result.label,
        pair_set=result.dataset,
        estimator=run.protocol.estimator_name,
        resize=_resize(result, run.protocol),
        matcher=result.matcher_name(run.protocol),
        auc=[(t, _percent(summary[name], *intervals.get(name, (None, None)))) for t, name in names],
        precision=Cell(value=precision, **_bounds(*intervals.get("precision", (None, None)))),
        errors_deg=np.array([pair.pose_error_deg for pair in run.pairs], dtype=np.float64),
        pair_names=[(pair.name0, pair.name1) for pair in run.pairs],
        mean_matches=summary["matches"],
        mean_inliers=summary["inliers"],
        origins=[*origins, ("matches", result.matches_digest)] if result.matches_digest else origins,
    )


def _resize(result: PoseResult, protocol: PoseProtocol) -> str:
    """What the protocol asks for, and what was done to the images of the features where that is something else."""
    asked, done = protocol.resize_name, result.features_resize
    return asked if done == asked else f"{asked} (features: {done})"


def _percent(share: float, low: float | None, high: float | None) -> Cell:
    scaled = [None if bound is None else 100 * float(bound) for bound in (low, high)]
    return Cell(value=100 * float(share), **_bounds(*scaled))


def _bounds(low: float | None, high: float | None) -> dict[str, float | None]:
    return {"low": low, "high": high}


def _repeated(result: ReconstructionResult, figure: str) -> Cell:
    mean, spread = result.mean(figure), result.spread(figure)
    if not math.isfinite(spread):
        return Cell(value=mean)
    return Cell(value=mean, low=mean - spread, high=mean + spread)
