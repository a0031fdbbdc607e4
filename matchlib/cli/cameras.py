"""Verbs of the evaluations that need a camera. Features may be any program's; those of others are converted first."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

from matchlib.cli.verbs import Verbs, add_device, add_settings


def add_verbs(verbs: Verbs) -> None:
    """Declare this module's verbs."""
    from matchlib.datasets.pose_pairs import PairFormat

    one = verbs.add(
        "convert-features",
        _convert,
        "Features of another program (hloc, PoSFeat, D2-Net, R2D2, IMW) as a features file.",
    )
    one.add_argument("source", type=Path, metavar="SOURCE", help="HDF5 file, or folder of files per image")
    one.add_argument("--out", type=Path, required=True, metavar="FILE.h5")
    one.add_argument("--images", type=Path, metavar="DIR", help="the images, for sizes that the files lack")
    one.add_argument("--postfix", metavar="WORD", help="of files named <image>.WORD")

    one = verbs.add("evaluate-pose", _evaluate_pose, "Relative poses of image pairs from a features file.")
    _add_features(one)
    one.add_argument("--pairs", type=Path, required=True, metavar="LIST", help="file or folder of pairs")
    formats = get_args(PairFormat)
    one.add_argument("--format", choices=formats, default="matchlib", help="of the list; default: matchlib")
    one.add_argument("--pixel-offset", type=float, choices=(0.0, 0.5), help="of the list's K")
    one.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    add_device(one)

    one = verbs.add(
        "retrieve-pairs", _retrieve_pairs, "Pairs of images that look alike, from a features file."
    )
    one.add_argument(
        "--features", type=Path, required=True, metavar="FILE.h5", help="of any method, or hloc's"
    )
    one.add_argument(
        "--queries",
        type=Path,
        metavar="LIST",
        help="lines that begin with a query's name; default: all images",
    )
    one.add_argument("--per-image", type=int, default=50, metavar="N", help="default: 50")
    one.add_argument("--out", type=Path, required=True, metavar="FILE.txt")
    add_settings(one, "of VLAD, e.g. clusters=128")

    one = verbs.add(
        "evaluate-localisation", _evaluate_localisation, "Poses of query images from a features file."
    )
    _add_features(one)
    one.add_argument("--root", type=Path, required=True, metavar="DIR")
    layouts = ("aachen", "aachen_v1_1", "model")
    one.add_argument(
        "--layout",
        choices=layouts,
        default="model",
        help="model: sparse/, images/, queries_with_intrinsics.txt",
    )
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="every step is kept there")
    add_device(one)
    add_settings(one, "of the protocol, e.g. variant=exhaustive")

    one = verbs.add(
        "evaluate-reconstruction", _evaluate_reconstruction, "Reconstruction of a scene from a features file."
    )
    _add_features(one)
    one.add_argument("--root", type=Path, required=True, metavar="DIR", help="a scene, or a folder of scenes")
    one.add_argument("--scene", help="default: the only one there is")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="every step is kept there")
    add_device(one)
    add_settings(one, "of the protocol, e.g. repeats=3")


def _add_features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--features", type=Path, required=True, metavar="PATH", help="a features file, or another program's"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the images, where another program's lack sizes"
    )
    parser.add_argument("--label", help="name in tables; default: the file's name")


def _convert(options: argparse.Namespace) -> None:
    from matchlib.features.foreign_features import convert_features

    done = convert_features(options.source, options.out, images=options.images, postfix=options.postfix)
    for notice in done.notices:
        print(notice)
    print(f"{options.out}: {done.images} images, from {done.kind}")


def _own(options: argparse.Namespace, copy: Path) -> Path:
    """The features file itself, or ours made of another program's at `copy`."""
    from matchlib.features.foreign_features import convert_features, open_features
    from matchlib.features.store import FeatureReader

    with open_features(options.features, images=options.images) as reader:
        if isinstance(reader, FeatureReader):
            return Path(options.features)
    convert_features(options.features, copy, images=options.images, method=options.label)
    return copy


def _evaluate_pose(options: argparse.Namespace) -> None:
    from matchlib.api import choose_device
    from matchlib.datasets.pose_pairs import read_pose_pairs
    from matchlib.evaluation.pose import evaluate_pose
    from matchlib.evaluation.pose_result import write_pose_result
    from matchlib.features.store import FeatureReader

    pairs = read_pose_pairs(
        options.pairs, kind=options.format, root=options.images, pixel_offset=options.pixel_offset
    )
    features = _own(options, options.out.with_suffix(".features.h5"))
    with FeatureReader(features) as reader:
        result = evaluate_pose(reader, pairs, label=options.label, device=choose_device(options.device))
    write_pose_result(result, options.out)
    print(json.dumps({run.protocol.name: run.summary() for run in result.runs}, indent=1))


def _retrieve_pairs(options: argparse.Namespace) -> None:
    from matchlib.datasets.parsing import filled_lines
    from matchlib.features.store import FeatureReader
    from matchlib.matching.config import VladConfig
    from matchlib.matching.pair_lists import write_pair_list
    from matchlib.matching.retrieval import retrieve_pairs
    from matchlib.typed_yaml import load_typed, parse_overrides

    config = load_typed(VladConfig, parse_overrides(options.settings), "settings")
    queries = None
    if options.queries is not None:
        queries = tuple(line.split()[0] for _, line in filled_lines(options.queries))
    with FeatureReader(options.features) as reader:
        reference = tuple(name for name in reader.names if name not in set(queries or ()))
    pairs = retrieve_pairs(
        options.features, reference=reference, queries=queries, per_image=options.per_image, config=config
    )
    write_pair_list(options.out, pairs)
    print(f"{options.out}: {len(pairs)} pairs")


def _evaluate_localisation(options: argparse.Namespace) -> None:
    from matchlib.api import choose_device
    from matchlib.datasets.aachen import read_aachen
    from matchlib.evaluation.localisation_config import LocalisationProtocol
    from matchlib.evaluation.localisation_data import read_model_task
    from matchlib.evaluation.localisation_run import evaluate_localisation
    from matchlib.typed_yaml import load_typed, parse_overrides

    protocol = load_typed(LocalisationProtocol, parse_overrides(options.settings), "protocol")
    if options.layout == "model":
        dataset = read_model_task(options.root)
    else:
        dataset = read_aachen(options.root, "v1" if options.layout == "aachen" else "v1_1")
    result = evaluate_localisation(
        dataset,
        _own(options, options.out / "features.h5"),
        options.out,
        protocol=protocol,
        label=options.label,
        device=choose_device(options.device),
    )
    print(json.dumps(result.summary(), indent=1))


def _evaluate_reconstruction(options: argparse.Namespace) -> None:
    from matchlib.api import choose_device
    from matchlib.datasets.eth_benchmark import list_scenes, read_scene
    from matchlib.errors import ConfigError
    from matchlib.evaluation.reconstruction import write_reconstruction
    from matchlib.evaluation.reconstruction_config import ReconstructionProtocol
    from matchlib.evaluation.reconstruction_run import choose_pairs, evaluate_scene
    from matchlib.evaluation.reconstruction_table import reconstruction_table
    from matchlib.features.store import FeatureReader
    from matchlib.matching.at_scale import match_shard
    from matchlib.matching.pair_lists import write_pair_list
    from matchlib.matching.store import MatchReader
    from matchlib.typed_yaml import load_typed, parse_overrides

    protocol = load_typed(ReconstructionProtocol, parse_overrides(options.settings), "protocol")
    scenes = list_scenes(options.root)
    if options.scene is None and len(scenes) > 1:
        raise ConfigError(f"--scene: expected one of {', '.join(scenes)}, got none")
    scene = read_scene(options.root, options.scene or scenes[0])
    features, pairs = _own(options, options.out / "features.h5"), options.out / "pairs.txt"
    write_pair_list(pairs, choose_pairs(scene, protocol))
    matches = options.out / "matches"
    match_shard(features, pairs, matches, config=protocol.matcher, device=choose_device(options.device))
    with FeatureReader(features) as reader, MatchReader(matches) as matched:
        result = evaluate_scene(
            scene,
            reader,
            matched,
            options.out,
            protocol,
            label=options.label or features.stem,
            features_digest=reader.digest,
        )
    write_reconstruction(result, options.out / "result.json")
    print(reconstruction_table([result], with_published=False).T.to_string(header=False))
