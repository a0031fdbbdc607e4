"""What a second process brings: one global batch, taken by one process or shared by two.

    python benchmarks/two_processes.py [--steps 20] [--batch 4] [--size 192]
    python benchmarks/two_processes.py --method posfeat --stage desc

Trains the same steps with the trainer itself as one process with one thread, one process with two threads,
and two processes (gloo) with one thread each, and prints the median time of a step, its ratio to the first,
and what each process did: pairs it loaded and processor seconds per step. The default model is a plain
convolutional network; `--method` takes any method that trains on posed pairs. Pairs are random images in
memory, so reading costs the same everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from random_pairs import PosedPairs
from trainer_overhead import ConvNet

from matchlib.errors import ConfigError
from matchlib.methods.spec import METHODS, StageSpec
from matchlib.registry import load_symbol
from matchlib.training.config import StageConfig
from matchlib.training.distributed import process_group, rank
from matchlib.training.launch import torchrun_command
from matchlib.training.train import train_stage

WARM_UP = 3  # steps: buckets, memory and caches settle
SETTINGS = ((1, 1), (1, 2), (2, 1))


def train_and_time(options: argparse.Namespace) -> None:
    """The child: train, and write this rank's times and counts to `<out>/rank<k>.json`."""
    torch.set_num_threads(options.threads)
    source = PosedPairs(size=options.size)
    moments: list[tuple[float, float]] = []

    def note_the_time() -> bool:  # asked once per step, before it
        moments.append((time.perf_counter(), time.process_time()))
        return False

    steps = options.steps + WARM_UP
    with process_group("cpu"):
        model, spec, config = _subject(options)
        result = train_stage(
            model=model,
            train_pairs=source,
            validation_pairs=None,
            config=dataclasses.replace(
                config,
                steps=steps,
                batch_size=options.batch,
                image_size=options.size,
                warmup_steps=0,
                workers=0,
                log_every=steps,
                checkpoint_every=steps,
            ),
            spec=spec,
            out=options.out / "stage",
            fingerprint="benchmark",
            seed=0,
            initial_weights=_parent_weights(model, spec, options.out),
            stop=note_the_time,
        )
        wall_s, cpu_s = np.diff(np.array(moments[WARM_UP:]), axis=0).T
        found = {
            "step_s": float(np.median(wall_s)),
            "cpu_s": float(np.median(cpu_s)),
            "pairs": len(source.loaded) / steps,
            "skipped": result.nonfinite,
        }
        (options.out / f"rank{rank()}.json").write_text(json.dumps(found))


def _subject(options: argparse.Namespace) -> tuple[Any, StageSpec, StageConfig]:
    if options.method is None:
        torch.manual_seed(0)
        return ConvNet(), StageSpec(needs="depth_pose", metric="difference"), StageConfig(steps=1)
    spec = METHODS.get(options.method)
    stages = spec.stages
    stage = options.stage or next(iter(stages))
    if spec.trainable is None or stage not in stages:
        raise ConfigError(f"--stage: {options.method} trains {', '.join(stages) or 'nothing'}, got {stage}")
    if stages[stage].needs not in ("pose", "depth_pose"):
        raise ConfigError(f"--method: expected one that trains on posed pairs, got {options.method} {stage}")
    settings = spec.config()
    model = cast(Any, load_symbol(spec.trainable))(settings, stage, 0)
    return model, stages[stage], StageConfig(steps=1, learning_rate=1e-4)


def _parent_weights(model: Any, spec: StageSpec, out: Path) -> Path | None:
    """New weights, for a stage that starts from another one's: for the time of a step they are as good."""
    if spec.init_from is None:
        return None
    from safetensors.torch import save_file

    path = out / f"initial{rank()}.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def measure(arguments: list[str], *, processes: int, threads: int) -> list[dict[str, float]]:
    """Start the child in so many processes; what each of them found, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        child = [__file__, *arguments, "--threads", str(threads), "--out", folder]
        command = torchrun_command(child, processes=processes) if processes > 1 else [sys.executable, *child]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        paths = [Path(folder) / f"rank{number}.json" for number in range(processes)]
        return [json.loads(path.read_text()) for path in paths]


def main() -> None:
    """Compare the three settings, or be one of their processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="pairs per step over all processes, even")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels")
    parser.add_argument("--method", help="a method instead of the plain network")
    parser.add_argument("--stage", help="its stage; default: the first")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out is not None:
        train_and_time(options)
        return
    first = None
    for processes, threads in SETTINGS:
        found = measure(sys.argv[1:], processes=processes, threads=threads)
        step_s = max(part["step_s"] for part in found)
        first = first or step_s
        work = ", ".join(f"{part['pairs']:g} pairs {part['cpu_s']:.3f} cpu-s" for part in found)
        print(
            f"{processes} process(es) x {threads} thread(s): {1e3 * step_s:7.1f} ms/step, "
            f"x{first / step_s:.2f}; per process and step: {work}"
        )
        if any(part["skipped"] for part in found):
            print("  some steps were not finite and were skipped: the times are of no use")


if __name__ == "__main__":
    main()
