"""Verbs on datasets: download, plan, match sets, pairs with poses, verify."""

from __future__ import annotations

import argparse
from pathlib import Path

from matchlib.cli.verbs import Verbs, add_settings


def add_verbs(verbs: Verbs) -> None:
    """Declare this module's verbs."""
    one = verbs.add("match-set", _match_set, "Match set of one scene.")
    one.add_argument("--format", required=True, help="gl3d, blendedmvs, rgbd, ...")
    one.add_argument("--root", type=Path, required=True, metavar="DIR")
    one.add_argument("--scene", required=True)
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--regenerate", action="store_true", help="build again although it is finished")
    add_settings(one, "of the match set, e.g. min_rotation_deg=0")
    one = verbs.add("export-match-sets", _export_match_sets, "A match set as TFMatch's files, one per pair.")
    one.add_argument("folder", type=Path, help="finished match set of one scene")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one = verbs.add("import-match-sets", _import_match_sets, "TFMatch's files of one scene as a match set.")
    one.add_argument("folder", type=Path, help="folder with *.match_set")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument(
        "--first-global-index", type=int, default=0, help="of the scene, in image_index_offset.txt"
    )
    _add_caps_dataset(verbs)
    one = verbs.add("download", _download, "Fetch and unpack one dataset; resumes what was interrupted.")
    one.add_argument("source", type=Path, help="its description, e.g. config/datasets/hpatches.yaml")
    one.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    one = verbs.add(
        "plan", _plan, "What would be downloaded for a configuration: files, sizes, hosts, licences."
    )
    one.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    add_settings(one, "of the configuration, e.g. datasets.hpatches.root=/data/hpatches")
    one = verbs.add(
        "verify", _verify, "Check finished folders against their markers; a marker that lies is removed."
    )
    one.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")


def _add_caps_dataset(verbs: Verbs) -> None:
    from matchlib.datasets.caps_megadepth import PHASES

    one = verbs.add(
        "caps-dataset",
        _caps_dataset,
        "Images, cameras and pairs as CAPS' MegaDepth has them, from a COLMAP model or from scenes with depth.",
    )
    source = one.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--colmap", type=Path, metavar="MODEL_DIR", help="cameras, images, points3D (.bin or .txt)"
    )
    source.add_argument("--dataset", metavar="FORMAT", help="gl3d, blendedmvs, rgbd, ...")
    one.add_argument("--images", type=Path, metavar="DIR", help="with --colmap: the images of the model")
    one.add_argument("--scene", metavar="NAME", help="with --colmap: name of the scene to write, e.g. 0000")
    one.add_argument("--root", type=Path, metavar="DIR", help="with --dataset: its root")
    one.add_argument("--scenes", nargs="+", metavar="SCENE", help="with --dataset: which; default: all")
    one.add_argument("--out", type=Path, required=True, metavar="ROOT", help="root of the dataset to write")
    one.add_argument("--phase", default="train", choices=PHASES, help="default: train")
    one.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar="PX", help="default: 640 480")
    one.add_argument("--max-rotation", type=float, default=80.0, metavar="DEG", help="default: 80")
    one.add_argument(
        "--min-covisible", type=int, default=30, metavar="N", help="common 3D points; default: 30"
    )
    one.add_argument(
        "--min-overlap", type=float, default=0.1, metavar="SHARE", help="of known depth; default: 0.1"
    )
    one.add_argument(
        "--max-unreadable", type=float, default=0.1, metavar="SHARE", help="of the images; default: 0.1"
    )
    one.add_argument("--quality", type=int, default=95, help="of the JPEG files; default: 95")


def _caps_dataset(options: argparse.Namespace) -> None:
    from matchlib.jobs.caps import CapsBuildConfig, build_from_colmap, build_from_dataset, scenes_of

    config = CapsBuildConfig(
        size=tuple(options.size),
        max_rotation_deg=options.max_rotation,
        min_covisible=options.min_covisible,
        min_overlap=options.min_overlap,
        max_unreadable_share=options.max_unreadable,
        jpeg_quality=options.quality,
    )
    phase, out = options.phase, options.out
    if options.colmap is not None:
        _check_together(options, "colmap", needs=("images", "scene"), refuses=("root", "scenes"))
        one = build_from_colmap(
            options.colmap, options.images, out, scene=options.scene, phase=phase, config=config
        )
        print(f"{one.folder}: {one.images} images, {one.pairs} pairs")
        return
    _check_together(options, "dataset", needs=("root",), refuses=("images", "scene"))
    for scene in options.scenes or scenes_of(options.dataset, options.root):
        one = build_from_dataset(options.dataset, options.root, scene, out, phase=phase, config=config)
        print(f"{one.folder}: {one.images} images, {one.pairs} pairs")


def _check_together(
    options: argparse.Namespace, with_option: str, *, needs: tuple[str, ...], refuses: tuple[str, ...]
) -> None:
    """Options that belong to another one; argparse cannot say that."""
    from matchlib.errors import ConfigError

    for name in needs:
        if getattr(options, name) is None:
            raise ConfigError(f"--{name}: needed with --{with_option}; see matchlib caps-dataset --help")
    for name in refuses:
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name}: has no meaning with --{with_option}; leave it out")


def _match_set(options: argparse.Namespace) -> None:
    from matchlib.match_sets.build import build_match_set
    from matchlib.match_sets.config import MatchSetConfig
    from matchlib.typed_yaml import load_typed, parse_overrides

    build_match_set(
        dataset_format=options.format,
        root=options.root,
        scene=options.scene,
        out=options.out,
        config=load_typed(MatchSetConfig, parse_overrides(options.settings), "match sets"),
        seed=options.seed,
        regenerate=options.regenerate,
    )


def _export_match_sets(options: argparse.Namespace) -> None:
    from matchlib.match_sets.tfmatch_files import export_match_sets

    print(f"{options.out}: {export_match_sets(options.folder, options.out)} files")


def _import_match_sets(options: argparse.Namespace) -> None:
    from matchlib.match_sets.tfmatch_files import import_match_sets

    paths = sorted(options.folder.glob("*.match_set"))
    import_match_sets(paths, options.out, first_global_index=options.first_global_index)
    print(f"{options.out}: {len(paths)} pairs")


def _download(options: argparse.Namespace) -> None:
    from matchlib.downloads.config import read_source
    from matchlib.downloads.dataset import download_archive, unpack_dataset

    source = read_source(options.source)
    archives = options.data / "archives" / source.name
    for archive in source.archives:
        download_archive(source, archive.name, archives / archive.name)
    unpack_dataset(source, archives, options.data / source.name)
    print(options.data / source.name)


def _plan(options: argparse.Namespace) -> None:
    from matchlib.downloads.plan import plan, render_plan
    from matchlib.typed_yaml import merged, parse_overrides, read_yaml
    from matchlib.workflow_checks import load_workflow

    path: Path = options.configfile
    config = merged(read_yaml(path) or {}, parse_overrides(options.settings))
    workflow = load_workflow(config, where=str(path), folder=path.resolve().parent)
    datasets = workflow.config.datasets
    sources = list({source.name: source for source in workflow.sources.values()}.values())
    roots = {workflow.sources[name].name: Path(d.root) for name, d in datasets.items() if d.root is not None}
    rows = plan(sources, Path("data/archives"), roots=roots, mirror_root=Path("results/mirror"))
    print(render_plan(sources, rows), end="")


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
