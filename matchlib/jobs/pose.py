"""Relative poses: the list of pairs, and the evaluation of one features file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matchlib.config import PoseConfig
from matchlib.datasets.pose_pairs import PosePair, PosePairSet, read_pose_pairs, write_pose_pairs
from matchlib.jobs.data import DatasetIndex, read_image_set, read_index, write_image_set
from matchlib.match_sets.opened import MatchSetSource, OpenedSets
from matchlib.typed_yaml import load_typed
from matchlib.workflow import match_set_folder

SECTION = "evaluate_pose"


def write_pose_list(
    settings: Mapping[str, Any], *, index: Path, match_sets: Path, out: Path, images: Path
) -> None:
    """The pairs that all methods are evaluated on, and the images (`write_image_set`) that features are needed of.

    settings: the section `evaluate_pose` of the configuration; index: of its dataset
    match_sets: folder of the dataset's finished match sets, for pairs of the validation scenes
    Raises DataError where there are no pairs.
    """
    config = load_typed(PoseConfig, dict(settings), SECTION)
    found = read_index(index)
    if config.list is None:
        pairs = pairs_of_scenes(found, match_sets, max_pairs=config.max_pairs)
    else:
        root = Path(found.root)
        pairs = read_pose_pairs(
            root / config.list,
            kind=config.list_format,
            root=root / config.images,
            name=config.dataset,
            pixel_offset=config.pixel_offset,
            epipolar_threshold=config.epipolar_threshold,
        )
    write_image_set(pairs.root, pairs.image_names, images, resize_long_side=config.extract_long_side)
    write_pose_pairs(pairs, out)


def pairs_of_scenes(index: DatasetIndex, match_sets: Path, *, max_pairs: int) -> PosePairSet:
    """Pairs of a dataset's validation scenes, as its match sets hold them, every n-th where there are too many.

    Raises DataError for match sets that are not finished, or if there is no pair.
    """
    root = Path(index.root)
    opened = OpenedSets(
        [
            MatchSetSource(
                dataset_format=index.format,
                root=root,
                scene=scene,
                folder=match_sets / match_set_folder(scene),
                min_rotation_deg=0.0,
                max_rot_diff_deg=180.0,
            )
            for scene in index.validation
        ],
        supervision="pose",
    )
    chosen = np.unique(np.linspace(0, len(opened) - 1, min(max_pairs, len(opened))).round().astype(int))
    rows = []
    for place in chosen.tolist():
        pair = opened.find(place)
        (image0, _), (image1, _) = pair.files
        geometry = pair.geometry
        rows.append(
            PosePair(
                name0=image0.relative_to(root).as_posix(),
                name1=image1.relative_to(root).as_posix(),
                K0=geometry.K0,
                K1=geometry.K1,
                T_0to1=geometry.T_0to1,
                scene=pair.name.partition("/")[0],
                size0=geometry.size0,
                size1=geometry.size1,
            )
        )
    return PosePairSet(name=index.dataset, root=root, pairs=tuple(rows))


def run_pose(
    settings: Mapping[str, Any],
    *,
    features: Path,
    pairs: Path,
    images: Path,
    label: str,
    out: Path,
    device: str = "auto",
) -> None:
    """Evaluate one features file by all protocols of the section `evaluate_pose`; files as of `write_pose_list`."""
    from matchlib.api import choose_device
    from matchlib.evaluation.pose import evaluate_pose
    from matchlib.evaluation.pose_result import write_pose_result
    from matchlib.features.store import FeatureReader

    config = load_typed(PoseConfig, dict(settings), SECTION)
    listed = read_pose_pairs(pairs, kind="matchlib", root=read_image_set(images).root)
    with FeatureReader(features) as reader:
        result = evaluate_pose(
            reader, listed, config.protocols, label=label, device=choose_device(device), show_progress=False
        )
    write_pose_result(result, out)


def write_pose_tables(results: Sequence[Path], out: Path) -> None:
    """Join results into `<out>.csv` and `<out>.json`."""
    from matchlib.evaluation.pose_result import read_pose_result
    from matchlib.evaluation.pose_table import pose_table
    from matchlib.evaluation.table import write_table

    write_table(pose_table([read_pose_result(path) for path in results]), out)
