"""Features of image sets, and the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchlib.config import HPatchesConfig
from matchlib.jobs.data import read_image_set
from matchlib.typed_yaml import load_typed


def run_extraction(
    *,
    method: str,
    settings: Mapping[str, Any],
    weights: Path | None,
    images: Path,
    out: Path,
    device: str = "auto",
) -> None:
    """Features of every image of an image set (`jobs.data.write_image_set`), in one HDF5 file."""
    from matchlib.api import build_extractor
    from matchlib.features.config import ExtractionConfig
    from matchlib.features.extract import extract_features

    wanted = read_image_set(images)
    config = ExtractionConfig(resize_long_side=wanted.resize_long_side)
    extractor = build_extractor(method, weights=weights, settings=settings, device=device)
    extract_features(root=wanted.root, names=wanted.names, extractor=extractor, out=out, config=config)


def run_hpatches(
    settings: Mapping[str, Any],
    *,
    features: Path,
    root: Path,
    label: str,
    result: Path,
    homographies: Sequence[Path],
    device: str = "auto",
) -> None:
    """Evaluate one features file on HPatches sequences and write all its results.

    settings:     the section `evaluate_hpatches` of the configuration
    homographies: a file per homography protocol of the settings, in their order
    """
    from matchlib.api import choose_device
    from matchlib.evaluation.homography import evaluate_homography
    from matchlib.evaluation.homography_result import write_homography_result
    from matchlib.evaluation.hpatches import write_result
    from matchlib.evaluation.hpatches_run import evaluate_hpatches

    config = load_typed(HPatchesConfig, dict(settings), "evaluate_hpatches")
    place = choose_device(device)
    for protocol, path in zip(config.homography_protocols, homographies, strict=True):
        found = evaluate_homography(
            features, root, protocol=protocol, sequences=config.protocol.sequences, label=label, device=place
        )
        write_homography_result(found, path)
    write_result(
        evaluate_hpatches(features, root, protocol=config.protocol, label=label, device=place), result
    )


def run_pck_points(settings: Mapping[str, Any], *, root: Path, out: Path) -> None:
    """Choose the places that every method is asked about, for one protocol (`evaluate_pck.protocols`)."""
    from matchlib.evaluation.pck_config import PCKProtocol
    from matchlib.evaluation.pck_points import write_points

    write_points(root, load_typed(PCKProtocol, dict(settings), "evaluate_pck.protocols"), out)


def run_pck(
    protocols: Sequence[Mapping[str, Any]],
    *,
    method: str,
    settings: Mapping[str, Any],
    weights: Path | None,
    root: Path,
    points: Sequence[Path],
    label: str,
    out: Sequence[Path],
    device: str = "auto",
) -> None:
    """Evaluate one method by several PCK protocols.

    protocols:   of `evaluate_pck.protocols`, each with its file of `run_pck_points` in `points` and its result in `out`
    method, settings, weights: as `api.build_describer` takes them
    """
    from matchlib.api import build_describer
    from matchlib.evaluation.pck import evaluate_pck
    from matchlib.evaluation.pck_config import PCKProtocol
    from matchlib.evaluation.pck_result import write_pck_result

    describer = build_describer(method, weights=weights, settings=settings, device=device)
    for protocol, places, path in zip(protocols, points, out, strict=True):
        chosen = load_typed(PCKProtocol, dict(protocol), "evaluate_pck.protocols")
        write_pck_result(evaluate_pck(describer, root, places, protocol=chosen, label=label), path)


def run_pck_ablation(
    protocol: Mapping[str, Any],
    *,
    method: str,
    settings: Mapping[str, Any],
    weights: Path | None,
    root: Path,
    points: Path,
    label: str,
    out: Path,
    device: str = "auto",
) -> None:
    """The same descriptors searched exactly and approximately; arguments as of `run_pck`."""
    from matchlib.api import build_describer
    from matchlib.evaluation.pck import evaluate_pck_ablation
    from matchlib.evaluation.pck_config import PCKProtocol
    from matchlib.evaluation.pck_result import write_pck_ablation

    describer = build_describer(method, weights=weights, settings=settings, device=device)
    chosen = load_typed(PCKProtocol, dict(protocol), "evaluate_pck.protocols")
    write_pck_ablation(evaluate_pck_ablation(describer, root, points, protocol=chosen, label=label), out)
