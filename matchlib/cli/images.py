"""Verbs on images and features: extract, match, export."""

from __future__ import annotations

import argparse
from pathlib import Path

from matchlib.cli.verbs import Verbs, add_method


def add_verbs(verbs: Verbs) -> None:
    """Declare this module's verbs."""
    one = verbs.add("extract", _extract, "Features of all images of a folder, as HDF5 that hloc reads too.")
    add_method(one)
    one.add_argument("--images", type=Path, required=True, metavar="DIR", help="searched with its subfolders")
    one.add_argument("--out", type=Path, required=True, metavar="FILE.h5")
    one.add_argument(
        "--resize-short-side", type=int, metavar="PX", help="shrink images first; default: original size"
    )
    one = verbs.add("match", _match, "Match two images and draw the result.")
    one.add_argument("first", type=Path)
    one.add_argument("second", type=Path)
    one.add_argument("--out", type=Path, default=Path("matches.png"), metavar="FILE.png")
    add_method(one)
    one = verbs.add("export-npz", _export_npz, "A features file as one npz per image.")
    one.add_argument("features", type=Path, metavar="FILE.h5")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")


def _extract(options: argparse.Namespace) -> None:
    from matchlib.api import build_extractor
    from matchlib.datasets.images import list_images
    from matchlib.features.config import ExtractionConfig
    from matchlib.features.extract import extract_features
    from matchlib.typed_yaml import parse_overrides

    settings = parse_overrides(options.settings)
    extractor = build_extractor(
        options.method, weights=options.weights, settings=settings, device=options.device
    )
    config = ExtractionConfig(resize_short_side=options.resize_short_side)
    report = extract_features(
        options.images, list_images(options.images), extractor=extractor, out=options.out, config=config
    )
    print(f"{options.out}: {report.images} images, {len(report.unreadable)} unreadable")


def _match(options: argparse.Namespace) -> None:
    from matchlib.api import match
    from matchlib.typed_yaml import parse_overrides
    from matchlib.visualization.match_picture import match_picture

    features0, features1, matches = match(
        options.first,
        options.second,
        options.method,
        weights=options.weights,
        settings=parse_overrides(options.settings),
        device=options.device,
    )
    match_picture(options.first, options.second, features0, features1, matches, options.out)
    print(
        f"{len(features0)} and {len(features1)} keypoints, {len(matches)} mutual nearest neighbours: {options.out}"
    )


def _export_npz(options: argparse.Namespace) -> None:
    from matchlib.features.npz import export_npz
    from matchlib.features.store import FeatureReader

    with FeatureReader(options.features) as reader:
        print(f"{options.out}: {export_npz(reader, options.out)} files")
