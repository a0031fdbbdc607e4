"""Verbs around training: train, draw its pictures, label photographs, import weights, build the native operators."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from matchlib.cli.verbs import Verbs, add_device, add_settings


def add_verbs(verbs: Verbs) -> None:
    """Declare this module's verbs."""
    one = verbs.add(
        "train", _train, "Run the training stage that a job file describes; resumes what was interrupted."
    )
    one.add_argument("job", type=Path, help="results/train/<run>/<stage>.job.json")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_device(one)
    one.add_argument(
        "--processes", default="auto", metavar="N", help="processes on this machine; auto: one per GPU"
    )
    one = verbs.add(
        "training-pictures",
        _training_pictures,
        "Draw the pictures of a training stage for validation pairs, from one weights file or checkpoint.",
    )
    one.add_argument("job", type=Path, help="results/train/<run>/<stage>.job.json")
    one.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="safetensors of the stage, e.g. work/checkpoints/step-00000100/model.safetensors",
    )
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument("--pairs", type=int, default=8, metavar="N", help="validation pairs; default: 8")
    add_device(one)
    one = verbs.add(
        "label", _label, "Label photographs with a trained detector; resumes what was interrupted."
    )
    one.add_argument("--method", default="superpoint", help="a method that labels; default: superpoint")
    one.add_argument("--weights", type=Path, required=True, metavar="FILE")
    one.add_argument("--index", type=Path, required=True, help="results/datasets/<name>.json")
    one.add_argument("--shard", default="0/1", metavar="K/N", help="every N-th photograph from number K")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_device(one)
    add_settings(one, "of the method, e.g. adaptation.views=50")
    one = verbs.add("import-weights", _import_weights, "A weights file of another program as one of ours.")
    one.add_argument("file", type=Path, help="e.g. superpoint_v6_from_tf.pth")
    one.add_argument("--method", required=True, help="see `matchlib methods`")
    one.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    add_settings(one, "of the method, e.g. network.layout=vgg")
    one = verbs.add(
        "build-extension", _build_extension, "Compile the native operators as far as this machine can."
    )
    one.add_argument("--out", type=Path, default=Path("build/extension"), metavar="DIR")


def _train(options: argparse.Namespace) -> int | None:
    from matchlib.api import choose_device
    from matchlib.jobs.training import read_training_job, run_training
    from matchlib.training.launch import run_processes

    processes = _processes(options.processes, options.device)
    if processes > 1 and "LOCAL_RANK" not in os.environ:  # torchrun's children carry it
        again = ["-m", "matchlib", "train", str(options.job)]
        again += ["--out", str(options.out), "--device", options.device]
        return run_processes(again, processes=processes)
    run_training(read_training_job(options.job), options.out, device=choose_device(options.device))
    return None


def _training_pictures(options: argparse.Namespace) -> None:
    from matchlib.api import choose_device
    from matchlib.jobs.pictures import draw_training_pictures
    from matchlib.jobs.training import read_training_job

    job = read_training_job(options.job)
    device = choose_device(options.device)
    count = draw_training_pictures(job, options.weights, options.out, pairs=options.pairs, device=device)
    print(f"{options.out}: pictures of {count} pairs")


def _processes(wanted: str, device: str) -> int:
    from matchlib.errors import ConfigError

    if wanted != "auto":
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ConfigError(f"--processes: expected auto or a number of at least 1, got '{wanted}'")
        return int(wanted)
    if device not in ("auto", "cuda"):  # the CPU, or one GPU by its number
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _label(options: argparse.Namespace) -> None:
    from matchlib.errors import ConfigError
    from matchlib.jobs.data import label_shard
    from matchlib.typed_yaml import parse_overrides

    shard, slash, shards = options.shard.partition("/")
    if not (slash and shard.isdigit() and shards.isdigit() and int(shard) < int(shards)):
        raise ConfigError(f"--shard: expected K/N with K < N, e.g. 0/4, got '{options.shard}'")
    label_shard(
        method=options.method,
        settings=parse_overrides(options.settings),
        weights=options.weights,
        index=options.index,
        shard=int(shard),
        shards=int(shards),
        seed=options.seed,
        out=options.out,
        device=options.device,
    )


def _import_weights(options: argparse.Namespace) -> None:
    from matchlib.api import import_weights
    from matchlib.typed_yaml import parse_overrides

    import_weights(options.method, options.file, options.out, settings=parse_overrides(options.settings))
    print(options.out)


def _build_extension(options: argparse.Namespace) -> None:
    from matchlib.ops.build import build_extension

    print(build_extension(options.out))
