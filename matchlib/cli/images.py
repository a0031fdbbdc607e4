"""Verbs on images and features: extract, match, export."""

from __future__ import annotations

import argparse
from pathlib import Path

from matchlib.cli.verbs import Verbs, add_method


def add_verbs(verbs: Verbs) -> None:
    """Declare this module's verbs."""
    one = verbs.add(
        "extract", _extract, "Features of one image or of all of a folder, as HDF5 that hloc reads too."
    )
    add_method(one)
    one.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="searched with its subfolders; or one image"
    )
    one.add_argument("--out", type=Path, required=True, metavar="FILE.h5")
    resize = one.add_mutually_exclusive_group()
    resize.add_argument(
        "--resize-short-side", type=int, metavar="PX", help="shrink images first; default: original size"
    )
    resize.add_argument(
        "--resize-long-side", type=int, metavar="PX", help="resize images first, smaller or larger"
    )
    one = verbs.add("match", _match, "Match two images and draw the result.")
    one.add_argument("first", type=Path)
    one.add_argument("second", type=Path)
    one.add_argument("--out", type=Path, default=Path("matches.png"), metavar="FILE.png")
    add_method(one)
    one = verbs.add("export", _export, "A features file in a layout that other programs read.")
    one.add_argument("features", type=Path, metavar="FILE.h5")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument(
        "--format",
        choices=("npz", "posfeat-npz", "imw-h5", "hloc-h5"),
        default="npz",
        help="npz, posfeat-npz: a file per image; imw-h5: four files per folder of images; hloc-h5: one feat.h5 "
        "(FILE.h5 itself is one that hloc reads); default: npz",
    )
    one.add_argument(
        "--postfix", default="posfeat", metavar="WORD", help="of posfeat-npz: <image>.WORD; default: posfeat"
    )
    one.add_argument("--half", action="store_true", help="of hloc-h5: descriptors in half precision")


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
    config = ExtractionConfig(
        resize_short_side=options.resize_short_side, resize_long_side=options.resize_long_side
    )
    is_one = options.images.is_file()
    folder = options.images.parent if is_one else options.images
    names = [options.images.name] if is_one else list_images(folder)
    report = extract_features(folder, names, extractor=extractor, out=options.out, config=config)
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


def _export(options: argparse.Namespace) -> None:
    from matchlib.features.exports import export_features
    from matchlib.features.store import FeatureReader

    with FeatureReader(options.features) as reader:
        files = export_features(
            reader,
            options.out,
            layout=options.format,
            postfix=options.postfix,
            half_descriptors=options.half,
        )
        print(f"{options.out}: {len(reader)} images in {files} files")
