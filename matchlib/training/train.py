"""Train one stage of any method, resumable at every moment.

    train_stage(model=..., train_pairs=..., config=StageConfig(steps=1000), spec=..., out=..., ...)

`out` ends with `weights.safetensors` (best by the stage's metric, or last without validation),
`last.safetensors`, `initial.safetensors`, `history.jsonl`, `summary.json`, `pictures/`, `tensorboard/`,
`train.log` and `.complete`. A run that is killed and started again, with the same arguments on the same
machine, ends with the same bytes in all of these but the last three.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from matchlib.completion import WORK, Lease, close_work, digest_file, open_work
from matchlib.errors import ConfigError, TrainingError
from matchlib.methods.spec import StageSpec
from matchlib.revisions import REVISIONS
from matchlib.training.checkpoint import load_checkpoint, recover, save_weights
from matchlib.training.config import StageConfig, result_settings
from matchlib.training.determinism import reproducible
from matchlib.training.distributed import (
    is_main,
    local_world_size,
    process_group,
    rank,
    share_object,
    world_size,
)
from matchlib.training.history import truncate_after
from matchlib.training.launch import available_cores
from matchlib.training.loading import BatchStream, PairSource
from matchlib.training.outputs import HISTORY, INITIAL, TrainResult, finish, finished_result
from matchlib.training.progress import Progress
from matchlib.training.replicas import averaged_statistics
from matchlib.training.run import Run
from matchlib.training.sampler import AddressedSampler, validation_batches
from matchlib.training.signals import EXIT_INTERRUPTED, StopRequest
from matchlib.training.state import TrainState
from matchlib.training.stepping import Stepper
from matchlib.training.types import TrainableModel, as_module
from matchlib.training.validation import Validation


def train_stage(
    *,
    model: TrainableModel,
    train_pairs: PairSource,
    validation_pairs: PairSource | None,
    config: StageConfig,
    spec: StageSpec,
    out: Path,
    fingerprint: str,
    seed: int,
    device: str = "cpu",
    initial_weights: Path | None = None,
    manifest: Mapping[str, Any] | None = None,
    stage: str = "train",
    stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train `model` in `out`, or continue what an earlier call began there; return at once if it is finished.

    model:           fresh from the method, on the CPU, the same in every process
    fingerprint:     digest of all that the result depends on (`completion.fingerprint`); unfinished work of
                     another fingerprint is set aside, finished work of another is replaced
    initial_weights: weights of the stage `spec.init_from`; required if, and only if, the stage has one
    manifest:        JSON value that describes configuration and data; stands in the header of the weights
    stage:           name for the marker
    stop:            asked after every step, besides the signals; true means: save and leave

    Under torchrun, every process calls this with the same arguments. On SIGTERM or SIGINT the step in hand is
    finished, a checkpoint saved, the lease released, and SystemExit(75) raised: run again to resume.
    Raises ConfigError for impossible settings, TrainingError if the training cannot go on or the checkpoint
    is of another run, DataError if another process is writing to `out`.
    """
    with contextlib.ExitStack() as scope:
        place = scope.enter_context(process_group(device))
        _check_arguments(config, spec, initial_weights)
        scope.enter_context(reproducible(place, deterministic=config.deterministic))
        request = scope.enter_context(StopRequest(stop))
        if is_main():
            scope.enter_context(Lease(out))
        finished, checkpoint_path = share_object(_open(out, fingerprint) if is_main() else None)
        if finished is not None:
            return finished
        identity = {
            **{"fingerprint": fingerprint, "stage": stage, "seed": seed, "manifest": dict(manifest or {})},
            **_identity(config, train_pairs, validation_pairs, initial_weights),
        }
        checkpoint = None if checkpoint_path is None else load_checkpoint(checkpoint_path, identity=identity)
        state = TrainState() if checkpoint is None else checkpoint.state
        # Streams first: their processes are forks, to be taken before this one has threads and files open.
        pairs = scope.enter_context(_training_stream(train_pairs, config, seed, first_step=state.step))
        validation = _validation(scope, validation_pairs, config, spec, place, seed)
        if initial_weights is not None:
            model.load_initial(load_file(initial_weights))
        run = Run(
            model=model,
            config=config,
            spec=spec,
            state=state,
            stepper=Stepper(model, config, place=place, seed=seed),
            pairs=pairs,
            validation=validation,
            progress=scope.enter_context(_progress(out, config, state.step)) if is_main() else None,
            work=out / WORK,
            identity=identity,
            environment=_environment(place),
        )
        crowding = _crowding(config.workers, processes=local_world_size(), cores=available_cores())
        if crowding is not None and run.progress is not None:
            run.progress.notice(crowding)
        if checkpoint is not None:
            run.resume(checkpoint)
        elif is_main():
            save_weights(run.work / INITIAL, run.weights(), about={})
        if not _train(run, request):
            raise SystemExit(EXIT_INTERRUPTED)
        result = None
        with averaged_statistics(as_module(model)):
            if is_main():
                result = finish(run, out=out, stage=stage, fingerprint=fingerprint, manifest=manifest or {})
            return share_object(result)


def _train(run: Run, request: StopRequest) -> bool:
    """The main loop. Returns whether the end was reached, rather than a request to stop."""
    config, state = run.config, run.state
    if state.step == 0:
        run.validate()
    while not state.is_finished(config):
        started = time.monotonic()
        loaded = run.pairs.next()
        waited_s = time.monotonic() - started
        outcome = run.stepper.step(loaded, state.step, stop=request.is_set())
        run.tell_losses(loaded, outcome)
        state.account(outcome, config)
        if run.progress is not None:
            run.progress.step_done(waited_s)
        if state.step % config.log_every == 0 or state.step == config.steps:
            run.log()
        if state.step % config.validate_every == 0 or state.step == config.steps:
            run.validate()
        is_finished = state.is_finished(config)
        if is_finished or outcome.stop or state.step % config.checkpoint_every == 0:
            run.save()
        if outcome.stop and not is_finished:
            return False
    return True


def _check_arguments(config: StageConfig, spec: StageSpec, initial_weights: Path | None) -> None:
    if config.batch_size % world_size():
        raise ConfigError(
            f"batch_size: expected a multiple of the {world_size()} processes that train, "
            f"got {config.batch_size}"
        )
    if spec.init_from is not None and initial_weights is None:
        raise ConfigError(
            f"initial_weights: this stage starts from stage '{spec.init_from}', got no weights of it"
        )
    if spec.init_from is None and initial_weights is not None:
        raise ConfigError(f"initial_weights: this stage starts from scratch, got {initial_weights}")


def _crowding(workers: int, *, processes: int, cores: int) -> str | None:
    """What to say if more processes read pairs than there are cores; None if there are enough."""
    if workers * processes <= cores:
        return None
    per_process = "" if processes == 1 else f" for each of {processes} training processes"
    return (
        f"workers: {workers}{per_process} make {workers * processes} reading processes on {cores} cores; they "
        f"wait for each other, try workers: {max(1, cores // processes)} (the result does not depend on it)"
    )


def _open(out: Path, fingerprint: str) -> tuple[TrainResult | None, Path | None]:
    """The result if `out` is finished, else the checkpoint to resume from; removes leftovers."""
    finished = finished_result(out, fingerprint)
    if finished is not None:
        close_work(out)  # left by a run that was killed after it wrote the marker
        return finished, None
    work = open_work(out, fingerprint)
    checkpoint = recover(work / "checkpoints")
    step = -1 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))
    truncate_after(work / HISTORY, step)
    if checkpoint is None:
        shutil.rmtree(out / "tensorboard", ignore_errors=True)  # curves of another run would mix with ours
    return None, checkpoint


def _identity(
    config: StageConfig, train: PairSource, validation: PairSource | None, initial_weights: Path | None
) -> dict[str, Any]:
    return {
        "revision": REVISIONS["train"],
        "config": result_settings(config),
        "train_pairs": train.digest,
        "validation_pairs": None if validation is None else validation.digest,
        "initial_weights": None if initial_weights is None else digest_file(initial_weights),
    }


def _training_stream(source: PairSource, config: StageConfig, seed: int, *, first_step: int) -> BatchStream:
    sampler = AddressedSampler(count=len(source), seed=seed)
    batches = sampler.batches(
        first_step=first_step, batch_size=config.batch_size, rank=rank(), world_size=world_size()
    )
    return BatchStream(source, batches, seed=seed, workers=config.workers)


def _validation(
    scope: contextlib.ExitStack,
    source: PairSource | None,
    config: StageConfig,
    spec: StageSpec,
    place: torch.device,
    seed: int,
) -> Validation | None:
    if source is None:
        return None
    if len(source) < 1:
        raise TrainingError("validation pairs: expected at least 1, got 0; choose another split or none")
    batches = validation_batches(
        count=len(source),
        pairs=config.validation_pairs,
        seed=seed,
        batch_size=config.batch_size,
        rank=rank(),
        world_size=world_size(),
    )
    # With more ranks than batches a rank may have none to validate; it still takes part in the mean.
    stream = BatchStream(source, itertools.cycle(batches), seed=seed, workers=(config.workers + 1) // 2)
    return Validation(scope.enter_context(stream), len(batches), spec=spec, place=place, seed=seed)


def _progress(out: Path, config: StageConfig, first_step: int) -> Progress:
    return Progress(
        out=out, work=out / WORK, first_step=first_step, steps=config.steps, batch_size=config.batch_size
    )


def _environment(place: torch.device) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "world_size": world_size(),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "threads": torch.get_num_threads(),
    }
