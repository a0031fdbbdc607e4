"""Reconstructions side by side: a data frame, and the rows that the benchmark's own script prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from matchlib.completion import atomic_write
from matchlib.evaluation.reconstruction import (
    POSE_FIGURES,
    STATISTICS,
    ReconstructionResult,
    ReconstructionRun,
)
from matchlib.evaluation.reconstruction_published import PublishedReconstruction, published_rows

_HEAD = (
    "scene",
    "method",
    "source",
    "protocol",
    "matcher",
    "pixel_offset",
    "images",
    "pairs",
    "matched_pairs",
    "matches",
    "repeats",
)
_SCRIPT_COLUMNS = (
    "registered_images",
    "points",
    "observations",
    "mean_track_length",
    "mean_observations_per_image",
    "mean_reprojection_error_px",
)
_SAME_IN_REPEATS = ("verified_pairs", "inlier_matches")  # verification is done once
_EMPTY_COLUMNS = 4  # of the script's rows, for figures of the descriptors that it does not compute
COLUMNS: tuple[str, ...] = (
    *_HEAD,
    *(
        name
        for figure in STATISTICS
        for name in ((figure,) if figure in _SAME_IN_REPEATS else (figure, f"{figure}_sd"))
    ),
    "dense_points",
    *POSE_FIGURES,
    "features_digest",
)


def reconstruction_table(
    results: Sequence[ReconstructionResult], *, with_published: bool = True
) -> pd.DataFrame:
    """One row per scene and method, scenes together; columns `COLUMNS`.

    Figures are means over the repeats that have them, `<figure>_sd` their standard deviation (missing for fewer than
    two). A reconstruction that failed has counts of 0, and no means of tracks, observations and errors.
    `dense_points` is a number, or says why there is none ("no CUDA"). Errors of camera centres are shares of the mean
    distance of the true centres to their mean. Registering more images usually raises the reprojection error and
    shortens tracks: read the columns together.
    with_published: published rows of the same scene follow, their source in `source`.
    """
    rows: list[dict[str, Any]] = []
    for scene in dict.fromkeys(result.scene for result in results):
        of_scene = [result for result in results if result.scene == scene]
        rows += [_evaluated(result) for result in of_scene]
        if with_published:
            sizes = dict.fromkeys(result.images for result in of_scene)
            rows += [_published(row) for images in sizes for row in published_rows(scene, images)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def script_rows(results: Sequence[ReconstructionResult]) -> str:
    """The rows that the benchmark's script prints, one per repeat, as lines of a Markdown table.

    Scene, method, images, registered images, points, observations, track length, observations per image, reprojection
    error, dense points, four empty columns, inlier pairs, inlier matches. A method of several repeats gets its seed.
    What a failed reconstruction lacks is empty.
    """
    return "".join(
        f"| {' | '.join(_script_row(result, run))} |\n" for result in results for run in result.runs
    )


def write_script_rows(results: Sequence[ReconstructionResult], path: Path) -> None:
    """Write `script_rows` to a text file, atomically."""
    atomic_write(path, script_rows(results))


def _evaluated(result: ReconstructionResult) -> dict[str, Any]:
    spreads = {f"{figure}_sd": result.spread(figure) for figure in STATISTICS}
    return {
        "scene": result.scene,
        "method": result.label,
        "source": "evaluated",
        "protocol": result.protocol.name,
        "matcher": result.protocol.matcher_name,
        "pixel_offset": result.protocol.database.pixel_offset,
        "images": result.images,
        "pairs": result.pairs,
        "matched_pairs": result.matched_pairs,
        "matches": result.matches,
        "repeats": len(result.runs),
        **{figure: result.mean(figure) for figure in STATISTICS},
        **{name: spread for name, spread in spreads.items() if name in COLUMNS},
        "dense_points": result.dense_note or round(result.mean("dense_points")),
        **{figure: result.mean(figure) for figure in POSE_FIGURES},
        "features_digest": result.features_digest,
    }


def _published(row: PublishedReconstruction) -> dict[str, Any]:
    figures = {figure: getattr(row, figure, None) for figure in (*STATISTICS, "dense_points")}
    return {
        "scene": row.scene,
        "method": row.method,
        "source": f"published: {row.source}",
        "images": row.images,
        **figures,
    }


def _script_row(result: ReconstructionResult, run: ReconstructionRun) -> list[str]:
    statistics = run.statistics
    dense = run.dense_note if statistics.dense_points is None else str(statistics.dense_points)
    return [
        result.scene,
        result.label if len(result.runs) == 1 else f"{result.label} (seed {run.seed})",
        str(result.images),
        *("" if (figure := getattr(statistics, name)) is None else str(figure) for name in _SCRIPT_COLUMNS),
        dense,
        *[""] * _EMPTY_COLUMNS,
        str(statistics.verified_pairs),
        str(statistics.inlier_matches),
    ]
