"""Relative poses as a part of the report: a table of AUC, curves and histograms of errors, best and worst pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from matchlib.errors import DataError, ShapeError, check_shape
from matchlib.visualization.draw import Image, draw_matches, encode_jpeg
from matchlib.visualization.origins import origins_section
from matchlib.visualization.recall_curves import ErrorPanel, ErrorSample, histogram_figure, recall_figure
from matchlib.visualization.report import Cell, CellValue, Column, Figure, Row, Section, Table

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_LIMIT_DEG = 20.0
_PICTURE_HEIGHT_PX = 300
_PICTURES_BYTES = 1_000_000
"""Of all pictures together; in the page, four characters stand for three bytes."""
_JPEG_QUALITIES = (85, 75, 65, 55, 45, 35, 25)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseEntry:
    """One method on one set of pairs with one estimator.

    label:        name in the table
    pair_set:     such as "MegaDepth-1500"; methods of one set, resize and estimator are compared
    estimator:    with its threshold, such as "OpenCV RANSAC, 0.5 px"
    resize:       such as "long side 1600", or "original size"
    matcher:      such as "mutual nearest, ratio 0.8"
    auc:          threshold in degrees -> percent, with its interval
    precision:    share of matches that fulfil the true epipolar constraint, with its interval; None: not measured
    errors_deg:   (P,) pose error of each pair, inf for a failure, in the order of `pair_names`
    pair_names:   the two images of each pair
    mean_matches, mean_inliers: per pair
    origins:      digests of pairs, features and matches by name, for the last table
    """

    label: str
    pair_set: str
    estimator: str
    resize: str
    matcher: str
    auc: Sequence[tuple[float, Cell]]
    precision: Cell | None
    errors_deg: Float64
    pair_names: Sequence[tuple[str, str]]
    mean_matches: float
    mean_inliers: float
    origins: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        check_shape(f"{self.label}: errors_deg", self.errors_deg, str(len(self.pair_names)))

    @property
    def group(self) -> str:
        """What the rows of one group share; estimators alone move AUC by more than methods do."""
        return (
            f"{self.pair_set}, {self.estimator}, {self.resize}, {self.matcher}, {len(self.pair_names)} pairs"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosePicture:
    """Matches of one method on one pair, to be drawn.

    label:            of the method
    estimator:        of the pose, as in `PoseEntry`
    pair:             names of the two images
    image0, image1:   (H, W, 3) uint8 RGB
    keypoints0, keypoints1: (M, 2), of the matches, in pixels of the images
    errors_px:        (M,) distance to the true epipolar line, the larger of both images; nan where unknown
    error_deg:        of the estimated pose; inf for a failure
    """

    label: str
    estimator: str
    pair: tuple[str, str]
    image0: Image
    image1: Image
    keypoints0: Float32
    keypoints1: Float32
    errors_px: Float64
    error_deg: float


def choose_pairs(entries: Sequence[PoseEntry], count: int = 2) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The pairs on which all methods together do best and worst, as indices; equal means keep their order.

    Errors count up to 20 degrees, so that one failure is not worse than all else together. With fewer than
    2 `count` pairs each is named once. Raises DataError if the methods were not measured on the same pairs.
    """
    if not entries:
        return (), ()
    names = tuple(entries[0].pair_names)
    for entry in entries[1:]:
        if tuple(entry.pair_names) != names:
            raise DataError(
                f"pictures: expected '{entry.label}' on the pairs of '{entries[0].label}', got others; choose the "
                f"pairs of each set apart"
            )
    mean = np.mean([np.minimum(entry.errors_deg, _LIMIT_DEG) for entry in entries], axis=0)
    ranked = np.argsort(mean, kind="stable")
    best = min(count, math.ceil(len(ranked) / 2))
    worst = min(count, len(ranked) - best)
    return tuple(map(int, ranked[:best])), tuple(map(int, ranked[len(ranked) - worst :][::-1]))


def pose_section(
    entries: Sequence[PoseEntry], *, best: Sequence[PosePicture] = (), worst: Sequence[PosePicture] = ()
) -> Section:
    """The section on relative poses. Entries without AUC thresholds in common are refused with a ShapeError."""
    parts = []
    if best or worst:
        parts.append(_pictures_part(best, worst))
    groups = list(dict.fromkeys(entry.group for entry in entries))
    panels = [_panel(group, [entry for entry in entries if entry.group == group]) for group in groups]
    return Section(
        title="Relative pose",
        text=[
            "From the matches of two images, their relative pose is estimated and compared with the true one. The "
            "error is the larger of two angles: between the rotations, and between the directions of the "
            "translations. AUC@t is the area under the curve of recall up to t degrees, in percent of the whole. "
            "Only rows of one group compare: the estimator and its threshold alone move AUC by more than ten points."
        ],
        tables=[_table(entries)] if entries else [],
        figures=[_recall(panels, entries), _histogram(panels)] if entries else [],
        sections=[*parts, *origins_section(entries)],
    )


# ---------------------------------------------------------------- table
def _table(entries: Sequence[PoseEntry]) -> Table:
    thresholds = [threshold for threshold, _ in entries[0].auc]
    for entry in entries:
        if [threshold for threshold, _ in entry.auc] != thresholds:
            raise ShapeError(f"{entry.label}: auc: expected the thresholds {thresholds} of the first entry")
    columns = [
        Column(name="method"),
        *(Column(name=f"@{t:g}°", group="AUC (%)", decimals=1, best="highest") for t in thresholds),
        Column(name="precision", help="share of matches close to the true epipolar line", best="highest"),
        Column(
            name="median", group="error (°)", decimals=2, best="lowest", help="of all pairs, failures too"
        ),
        Column(name="failed", group="pairs", decimals=0, help="no pose found"),
        Column(name="matches", group="mean per pair", decimals=0),
        Column(name="inliers", group="mean per pair", decimals=0),
    ]
    order = list(dict.fromkeys(entry.group for entry in entries))
    ordered = sorted(entries, key=lambda entry: order.index(entry.group))
    return Table(
        columns=columns,
        rows=[Row(cells=_cells(entry), group=entry.group) for entry in ordered],
        caption="Relative pose. Small numbers: bootstrap intervals over pairs. The best of each group is highlighted.",
    )


def _cells(entry: PoseEntry) -> list[CellValue]:
    median = float(np.median(entry.errors_deg)) if len(entry.errors_deg) else math.nan
    return [
        entry.label,
        *(cell for _, cell in entry.auc),
        entry.precision,
        median,
        int(np.isinf(entry.errors_deg).sum()),
        entry.mean_matches,
        entry.mean_inliers,
    ]


# ---------------------------------------------------------------- figures
def _panel(group: str, entries: Sequence[PoseEntry]) -> ErrorPanel:
    return ErrorPanel(
        title=", ".join(group.split(", ")[:2]),
        axis="pose error (degrees)",
        limit=_LIMIT_DEG,
        samples=[ErrorSample(label=entry.label, errors=entry.errors_deg) for entry in entries],
        marks=[t for t, _ in entries[0].auc if t < _LIMIT_DEG],
    )


def _recall(panels: Sequence[ErrorPanel], entries: Sequence[PoseEntry]) -> Figure:
    figures = "; ".join(
        f"{entry.label} ({entry.group}) " + ", ".join(f"{cell.value:.1f} at {t:g}°" for t, cell in entry.auc)
        for entry in entries
    )
    return Figure(
        kind="svg",
        data=recall_figure(panels),
        caption="Recall: share of pairs with a pose error up to the threshold. Dashed: thresholds of the table.",
        alt=f"Curves of recall over pose errors. AUC in percent: {figures}.",
    )


def _histogram(panels: Sequence[ErrorPanel]) -> Figure:
    return Figure(
        kind="svg",
        data=histogram_figure(panels, name="share of pairs"),
        caption=f"Pose errors in bins of one degree; set apart: above {_LIMIT_DEG:g}°, with the failures.",
        alt="Histograms of the pose errors of each method.",
    )


def _pictures_part(best: Sequence[PosePicture], worst: Sequence[PosePicture]) -> Section:
    max_bytes = _PICTURES_BYTES // (len(best) + len(worst))
    estimators = "; ".join(dict.fromkeys(picture.estimator for picture in (*best, *worst)))
    titled = (("Pairs with the smallest errors", best), ("Pairs with the largest errors", worst))
    return Section(
        title="Matches of the best and the worst pairs",
        text=[
            f"The same pairs for all methods, with the matches that the estimator was given ({estimators}). Colours "
            "are distances to the true epipolar line, the larger of both images: green up to 1 px, yellow 3 px, orange "
            "5 px or more. A match may lie on its line and still be wrong. Select a picture to enlarge it."
        ],
        sections=[
            Section(title=title, figures=[_picture(picture, max_bytes) for picture in pictures])
            for title, pictures in titled
            if pictures
        ],
    )


def _picture(picture: PosePicture, max_bytes: int) -> Figure:
    matches = draw_matches(
        picture.image0,
        picture.image1,
        picture.keypoints0,
        picture.keypoints1,
        errors_px=picture.errors_px,
        height_px=_PICTURE_HEIGHT_PX,
    )
    error = f"pose error {picture.error_deg:.1f}°" if math.isfinite(picture.error_deg) else "no pose found"
    words = f"{picture.label}: {len(picture.keypoints0)} matches, {error}"
    names = " and ".join(picture.pair)
    return Figure(
        kind="jpeg",
        data=_jpeg_within(matches, max_bytes),
        caption=f"{words} ({names})",
        alt=f"{names} side by side, matches as lines from green (close to the epipolar line) to orange: {words}.",
    )


def _jpeg_within(image: Image, max_bytes: int) -> bytes:
    """The image as a JPEG file of the best quality that fits; of the lowest one if none does."""
    encoded = b""
    for quality in _JPEG_QUALITIES:
        encoded = encode_jpeg(image, quality=quality)
        if len(encoded) <= max_bytes:
            break
    return encoded
