"""The `matchlib` command: what the graph does, one step at a time, without Snakemake.

Parses, calls one function, prints its result. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matchlib import __version__
from matchlib.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (0 done, 1 a stated error, 75 interrupted: run again to go on)."""
    from matchlib.logs import log_to

    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        with log_to(None):
            run: Callable[[argparse.Namespace], int | None] = options.run
            return run(options) or 0
    except BrokenPipeError:  # `matchlib plan | head`
        sys.stderr.close()
        return 1


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """`inference.max_keypoints=2000 loss.descriptor=circle` as a nested mapping; values are read as YAML."""
    import yaml

    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}': expected KEY=VALUE, e.g. inference.max_keypoints=2000")
        *parents, last = key.split(".")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{word}': {parent} was given a value before")
        place[last] = yaml.safe_load(value)
    return settings


# ---------------------------------------------------------------- verbs
def _extract(options: argparse.Namespace) -> None:
    from matchlib.api import build_extractor
    from matchlib.datasets.images import list_images
    from matchlib.features.config import ExtractionConfig
    from matchlib.features.extract import extract_features

    settings = parse_settings(options.settings)
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
    from matchlib.visualization.match_picture import match_picture

    features0, features1, matches = match(
        options.first,
        options.second,
        options.method,
        weights=options.weights,
        settings=parse_settings(options.settings),
        device=options.device,
    )
    match_picture(options.first, options.second, features0, features1, matches, options.out)
    print(
        f"{len(features0)} and {len(features1)} keypoints, {len(matches)} mutual nearest neighbours: {options.out}"
    )


def _train(options: argparse.Namespace) -> int | None:
    from matchlib.api import choose_device
    from matchlib.jobs import read_training_job, run_training
    from matchlib.training.launch import run_processes

    processes = _processes(options.processes)
    if processes > 1 and "LOCAL_RANK" not in os.environ:  # torchrun's children carry it
        again = [
            "-m",
            "matchlib",
            "train",
            str(options.job),
            "--out",
            str(options.out),
            "--device",
            options.device,
        ]
        return run_processes(again, processes=processes)
    run_training(read_training_job(options.job), options.out, device=choose_device(options.device))
    return None


def _processes(wanted: str) -> int:
    if wanted != "auto":
        return int(wanted)
    import torch

    return max(1, torch.cuda.device_count())


def _evaluate_hpatches(options: argparse.Namespace) -> None:
    from matchlib.evaluation.config import HPatchesProtocol
    from matchlib.evaluation.hpatches import write_result
    from matchlib.evaluation.hpatches_run import evaluate_hpatches
    from matchlib.typed_yaml import load_typed

    protocol = load_typed(HPatchesProtocol, parse_settings(options.settings), "protocol")
    result = evaluate_hpatches(options.features, options.root, protocol=protocol, label=options.label)
    if options.out is not None:
        write_result(result, options.out)
    print(json.dumps(result.summary(), indent=1))


def _plan(options: argparse.Namespace) -> None:
    from matchlib.config import load_workflow
    from matchlib.downloads.plan import plan, render_plan
    from matchlib.typed_yaml import read_yaml

    path: Path = options.configfile
    workflow = load_workflow(read_yaml(path) or {}, where=str(path), folder=path.resolve().parent)
    datasets = workflow.config.datasets
    sources = list({source.name: source for source in workflow.sources.values()}.values())
    roots = {workflow.sources[name].name: Path(d.root) for name, d in datasets.items() if d.root is not None}
    rows = plan(sources, Path("data/archives"), roots=roots, mirror_root=Path("results/mirror"))
    print(render_plan(sources, rows), end="")


def _download(options: argparse.Namespace) -> None:
    from matchlib.downloads.config import read_source
    from matchlib.downloads.dataset import download_archive, unpack_dataset

    source = read_source(options.source)
    archives = options.data / "archives" / source.name
    for archive in source.archives:
        download_archive(source, archive.name, archives / archive.name)
    unpack_dataset(source, archives, options.data / source.name)
    print(options.data / source.name)


def _export_npz(options: argparse.Namespace) -> None:
    from matchlib.features.npz import export_npz
    from matchlib.features.store import FeatureReader

    with FeatureReader(options.features) as reader:
        print(f"{options.out}: {export_npz(reader, options.out)} files")


def _export_match_sets(options: argparse.Namespace) -> None:
    from matchlib.match_sets.tfmatch_files import export_match_sets

    print(f"{options.out}: {export_match_sets(options.folder, options.out)} files")


def _import_match_sets(options: argparse.Namespace) -> None:
    from matchlib.match_sets.tfmatch_files import import_match_sets

    paths = sorted(options.folder.glob("*.match_set"))
    import_match_sets(paths, options.out, first_global_index=options.first_global_index)
    print(f"{options.out}: {len(paths)} pairs")


def _match_set(options: argparse.Namespace) -> None:
    from matchlib.match_sets.build import build_match_set
    from matchlib.match_sets.config import MatchSetConfig
    from matchlib.typed_yaml import load_typed

    build_match_set(
        dataset_format=options.format,
        root=options.root,
        scene=options.scene,
        out=options.out,
        config=load_typed(MatchSetConfig, parse_settings(options.settings), "match sets"),
        seed=options.seed,
        regenerate=options.regenerate,
    )


def _build_extension(options: argparse.Namespace) -> None:
    from matchlib.ops.build import build_extension

    print(build_extension(options.out))


def _verify(options: argparse.Namespace) -> int:
    from matchlib.completion import MARKER, verify_folder

    found = {folder: verify_folder(folder) for folder in options.folders}
    faults = [fault for folder_faults in found.values() for fault in folder_faults]
    for fault in faults:
        print(fault)
    print(f"{len(found)} folders, {len(faults)} faults")
    if faults:
        markers = " ".join(str(folder / MARKER) for folder, folder_faults in found.items() if folder_faults)
        print(f"to make them again: snakemake --cores N {markers}")
    return 1 if faults else 0


def _methods(_: argparse.Namespace) -> None:
    from matchlib.methods.spec import METHODS

    for name in METHODS.names():
        stages = ", ".join(f"{s} (needs {spec.needs})" for s, spec in METHODS.get(name).stages.items())
        print(f"{name}: {stages or 'not trained'}")


def _settings(options: argparse.Namespace) -> None:
    import yaml

    from matchlib.config import settings_help
    from matchlib.methods.spec import METHODS

    print(yaml.safe_dump(settings_help(METHODS.get(options.method).config), sort_keys=False), end="")


def _schema(_: argparse.Namespace) -> None:
    from matchlib.config_reference import schema_text

    print(schema_text(), end="")


def _config_reference(_: argparse.Namespace) -> None:
    from matchlib.config_reference import reference_text

    print(reference_text(), end="")


# ---------------------------------------------------------------- the parser
def build_parser() -> argparse.ArgumentParser:
    """All verbs with their options."""
    parser = argparse.ArgumentParser(prog="matchlib", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    one = verb("extract", _extract, "Features of all images of a folder, as HDF5 that hloc reads too.")
    _add_method(one)
    one.add_argument("--images", type=Path, required=True, metavar="DIR", help="searched with its subfolders")
    one.add_argument("--out", type=Path, required=True, metavar="FILE.h5")
    one.add_argument(
        "--resize-short-side", type=int, metavar="PX", help="shrink images first; default: original size"
    )
    one = verb("match", _match, "Match two images and draw the result.")
    one.add_argument("first", type=Path)
    one.add_argument("second", type=Path)
    one.add_argument("--out", type=Path, default=Path("matches.png"), metavar="FILE.png")
    _add_method(one)
    one = verb("evaluate-hpatches", _evaluate_hpatches, "HPatches accuracy of a features file.")
    one.add_argument("--features", type=Path, required=True, metavar="FILE.h5")
    one.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the sequences")
    one.add_argument("--label", help="name in tables; default: the file's name")
    one.add_argument("--out", type=Path, metavar="FILE.json")
    one.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="of the protocol, e.g. sequences=all_present"
    )
    one = verb(
        "train", _train, "Run the training stage that a job file describes; resumes what was interrupted."
    )
    one.add_argument("job", type=Path, help="results/train/<run>/<stage>.job.json")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    one.add_argument(
        "--processes", default="auto", metavar="N", help="processes on this machine; auto: one per GPU"
    )
    one = verb("match-set", _match_set, "Match set of one scene.")
    one.add_argument("--format", required=True, help="gl3d, blendedmvs, rgbd, ...")
    one.add_argument("--root", type=Path, required=True, metavar="DIR")
    one.add_argument("--scene", required=True)
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--regenerate", action="store_true", help="build again although it is finished")
    one.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="of the match set, e.g. min_rotation_deg=0"
    )
    one = verb("export-match-sets", _export_match_sets, "A match set as TFMatch's files, one per pair.")
    one.add_argument("folder", type=Path, help="finished match set of one scene")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one = verb("import-match-sets", _import_match_sets, "TFMatch's files of one scene as a match set.")
    one.add_argument("folder", type=Path, help="folder with *.match_set")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument(
        "--first-global-index", type=int, default=0, help="of the scene, in image_index_offset.txt"
    )
    one = verb("export-npz", _export_npz, "A features file as one npz per image.")
    one.add_argument("features", type=Path, metavar="FILE.h5")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one = verb("download", _download, "Fetch and unpack one dataset; resumes what was interrupted.")
    one.add_argument("source", type=Path, help="its description, e.g. config/datasets/hpatches.yaml")
    one.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    one = verb("plan", _plan, "What would be downloaded for a configuration: files, sizes, hosts, licences.")
    one.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    one = verb(
        "build-extension", _build_extension, "Compile the native operators as far as this machine can."
    )
    one.add_argument("--out", type=Path, default=Path("build/extension"), metavar="DIR")
    one = verb(
        "verify", _verify, "Check finished folders against their markers; a marker that lies is removed."
    )
    one.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    verb("methods", _methods, "List all methods and their training stages.")
    one = verb("settings", _settings, "All settings of a method with their defaults, as YAML.")
    one.add_argument("method")
    verb("schema", _schema, "JSON schema of the configuration file.")
    verb("config-reference", _config_reference, "Every key of the configuration file, as Markdown.")
    return parser


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", default="rootsift", help="see `matchlib methods`; default: rootsift")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors of a trained method")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="of the method, e.g. inference.multi_scale=true"
    )
