"""Reconstructions as a part of the report: the columns of the ETH benchmark, and the models themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matchlib.visualization.model_view import ModelPicture, model_figure
from matchlib.visualization.origins import origins_section
from matchlib.visualization.report import Cell, CellValue, Column, Row, Section, Table

Number = float | Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionEntry:
    """One method on one scene.

    label:      name in the table
    scene:      with the way its pairs were chosen, such as "Madrid, exhaustive pairs"
    images:     of the scene
    registered_images, points, ...: figures of the largest model, means over the repeats; a Cell says their spread, nan
                what a model without images or points lacks
    dense_points: a number, or why there is none, such as "no CUDA"
    models:     that the mapper made; 1 is best
    centre_error, rotation_error_deg: medians over registered images after the best similarity, centres as a share of
                the extent of the true ones; None without truth
    repeats:    runs with other seeds
    origins:    digests by name
    """

    label: str
    scene: str
    images: int
    registered_images: Number
    points: Number
    observations: Number
    mean_track_length: Number
    mean_observations_per_image: Number
    mean_reprojection_error_px: Number
    verified_pairs: Number
    inlier_matches: Number
    models: Number = 1
    dense_points: float | str = "not computed"
    repeats: int = 1
    centre_error: float | None = None
    rotation_error_deg: float | None = None
    origins: Sequence[tuple[str, str]] = ()

    @property
    def group(self) -> str:
        """What the rows of one group share."""
        return self.scene


def reconstruction_section(
    entries: Sequence[ReconstructionEntry], models: Sequence[ModelPicture] = ()
) -> Section:
    """The section on reconstruction; a failed one stands in the table with its zeros and dashes."""
    parts = [Section(title="Models", figures=[model_figure(picture) for picture in models])] if models else []
    return Section(
        title="Reconstruction",
        text=[
            "Structure from motion on unordered images; the numbers are those of the largest model. They are read "
            "together: more registered images bring harder ones, which raises the reprojection error and shortens "
            "the tracks, and a small model can look better than a large one in every column but the first."
        ],
        tables=[_table(entries)] if entries else [],
        sections=[*parts, *origins_section(entries)],
    )


def _table(entries: Sequence[ReconstructionEntry]) -> Table:
    has_truth = any(entry.centre_error is not None for entry in entries)
    columns = [
        Column(name="method"),
        Column(name="registered", group="images", decimals=0, best="highest"),
        Column(name="all", group="images", decimals=0),
        Column(name="repeats", decimals=0, help="runs with other seeds; the figures are their means"),
        Column(name="models", decimals=1, help="that the mapper made; one is best"),
        Column(name="points", group="sparse", decimals=0, best="highest"),
        Column(name="observations", group="sparse", decimals=0, help="keypoints with a point"),
        Column(
            name="track length", group="sparse", decimals=2, best="highest", help="observations per point"
        ),
        Column(name="per image", group="sparse", decimals=0, help="observations per registered image"),
        Column(name="error (px)", group="reprojection", best="lowest", help="mean over points"),
        Column(name="points", group="dense", decimals=0, help="need CUDA"),
        Column(name="pairs", group="verified", decimals=0, help="image pairs with inliers"),
        Column(name="inliers", group="verified", decimals=0),
        *(
            [
                Column(
                    name="centre",
                    group="median pose error",
                    best="lowest",
                    help="as a share of the extent of the true centres",
                ),
                Column(name="rotation (°)", group="median pose error", decimals=2, best="lowest"),
            ]
            if has_truth
            else []
        ),
    ]
    scenes = list(dict.fromkeys(entry.scene for entry in entries))
    ordered = sorted(entries, key=lambda entry: scenes.index(entry.scene))
    return Table(
        columns=columns,
        rows=[Row(cells=_cells(entry, has_truth=has_truth), group=entry.scene) for entry in ordered],
        caption="Reconstructions. Small numbers: one standard deviation over the repeats to both sides. The best of "
        "each scene is highlighted, column by column.",
    )


def _cells(entry: ReconstructionEntry, *, has_truth: bool) -> list[CellValue]:
    cells: list[CellValue] = [
        entry.label,
        entry.registered_images,
        entry.images,
        entry.repeats,
        entry.models,
        entry.points,
        entry.observations,
        entry.mean_track_length,
        entry.mean_observations_per_image,
        entry.mean_reprojection_error_px,
        entry.dense_points,
        entry.verified_pairs,
        entry.inlier_matches,
    ]
    return [*cells, entry.centre_error, entry.rotation_error_deg] if has_truth else cells
