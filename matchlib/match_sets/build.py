"""Making the match set of one scene."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from matchlib.completion import (
    MANIFEST,
    MARKER,
    WORK,
    Lease,
    atomic_write,
    close_work,
    digest_file,
    fingerprint,
    open_work,
    read_marker,
    write_marker_digests,
)
from matchlib.datasets.types import FORMATS, Scene
from matchlib.errors import ConfigError
from matchlib.match_sets.candidates import Candidates, select_candidates
from matchlib.match_sets.config import MatchSetConfig
from matchlib.match_sets.from_corr import CorrSource
from matchlib.match_sets.from_depth import DepthSource
from matchlib.match_sets.from_list import list_faults, listed_pairs, no_correspondences
from matchlib.match_sets.index import IMAGES, INDEX, RECORDS, PairRow, format_images
from matchlib.match_sets.inputs import (
    Faults,
    SourceKind,
    check_share,
    choose_source,
    corr_faults,
    describe,
    input_digest,
)
from matchlib.match_sets.keypoints import Correspondences, Filled, fill_record
from matchlib.match_sets.layout import HEADER_FLOATS, record_floats
from matchlib.match_sets.progress import RecordLog
from matchlib.registry import load_symbol
from matchlib.revisions import REVISIONS

_log = logging.getLogger(__name__)
STAGE = "match_sets"
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Source:
    """All pairs of a scene's source: ids (P,), overlaps (P,) where they are known, and `load` for the
    correspondences of one pair by its number.
    """

    faults: Faults
    index0: npt.NDArray[np.int64]
    index1: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.float64] | None
    load: Callable[[int], Correspondences]


@dataclass(frozen=True, slots=True)
class _Demands:
    """The room of a record, and the least keypoints per image and correspondences that a pair must bring."""

    slots: int
    min_keypoints: int
    min_inliers: int


def build_match_set(
    *,
    dataset_format: str,
    root: Path,
    scene: str,
    out: Path,
    config: MatchSetConfig,
    seed: int,
    regenerate: bool = False,
) -> None:
    """Make the match set of one scene: `records.f32`, `index.csv`, `images.csv`, then `.complete`.

    dataset_format: a name of `matchlib.datasets.types.FORMATS`; root and scene: as its `read_scene` takes
                    them. What the scene has decides where its pairs come from (`MatchSetConfig.source`)
    out:            folder of the result; its state while work goes on is in `out/work`
    seed:           every draw is a function of (seed, scene, pair number, image)
    Returns at once if `out` is finished for the same inputs, settings and code revision, unless `regenerate`.
    Otherwise continues what an interrupted attempt of the same fingerprint left. Images and pairs that cannot
    be used are counted and named in the log. Raises DataError for a cut `corr.bin` or keypoint file, for too
    many unusable images, and while another process writes to `out`; ConfigError if the format has no such
    supervision.
    """
    read = _read_scene_of(dataset_format)
    loaded = read(root, scene)
    kind = choose_source(loaded, config.source)
    identity = fingerprint(
        stage=STAGE,
        revision=REVISIONS[STAGE],
        settings={
            "config": asdict(config),
            "seed": seed,
            "scene": scene,
            "format": dataset_format,
            "inputs": input_digest(loaded, kind),
        },
    )
    with Lease(out):
        if not regenerate and _is_current(out, identity):
            _log.info("%s: up to date", out)
            return
        _clear(out, everything=regenerate)
        work = open_work(out, identity)
        demands = _demands(kind, config)
        with RecordLog(work, record_floats(demands.slots)) as log:
            faults = _run(loaded, kind, work, log, config, demands, seed)
            digests = log.finish(out)
        usable = {i: image for i, image in loaded.images.items() if i not in faults.reasons}
        files = {i: (image.image_path, image.depth_path) for i, image in usable.items()}
        atomic_write(out / IMAGES, format_images(files, root))
        digests[IMAGES] = digest_file(out / IMAGES)
        write_marker_digests(out, stage=STAGE, fingerprint=identity, digests=digests)
        close_work(out)
        _report(out, log, faults)


def _read_scene_of(dataset_format: str) -> Callable[[Path, str], Scene]:
    spec = FORMATS.get(dataset_format)
    if spec.read_scene is None or not spec.gives & {"depth_pose", "pose", "tracks"}:
        gives = ", ".join(sorted(spec.gives))
        raise ConfigError(
            f"match sets need pose, depth_pose or tracks, but dataset format '{dataset_format}' gives {gives}"
        )
    return cast(Callable[[Path, str], Scene], load_symbol(spec.read_scene))


def _is_current(out: Path, identity: str) -> bool:
    marker = read_marker(out)
    return (
        marker is not None
        and marker.fingerprint == identity
        and all((out / name).is_file() for name in marker.files)
    )


def _clear(out: Path, *, everything: bool) -> None:
    """Take back the marker before anything it speaks of changes."""
    for name in (MARKER, MANIFEST, RECORDS, INDEX, IMAGES):
        (out / name).unlink(missing_ok=True)
    if everything:
        shutil.rmtree(out / WORK, ignore_errors=True)


def _demands(kind: SourceKind, config: MatchSetConfig) -> _Demands:
    if kind == "list":
        return _Demands(slots=0, min_keypoints=0, min_inliers=0)
    min_keypoints = config.min_keypoints
    if min_keypoints is None:
        min_keypoints = config.slots if kind == "corr" else 0
    return _Demands(config.slots, min_keypoints, config.min_inliers)


def _run(
    scene: Scene,
    kind: SourceKind,
    work: Path,
    log: RecordLog,
    config: MatchSetConfig,
    demands: _Demands,
    seed: int,
) -> Faults:
    """Work through all candidates from where the log stands."""
    with ExitStack() as stack:
        source = _open_source(scene, kind, work, config, stack)
        if source.faults.reasons:
            _log.warning("scene %s: %s", scene.name, describe(source.faults))
        check_share(scene, source.faults, config.max_unreadable_share)
        candidates = select_candidates(
            scene,
            source.index0,
            source.index1,
            overlap=source.overlap,
            faults=source.faults.reasons,
            config=config,
            seed=seed,
            # With depth, a pair is of use without baseline too; `PosePairs` leaves it out when it loads such sets.
            needs_baseline=kind == "list",
        )
        log.begin(candidates.dropped)
        _write_records(scene, candidates, source.load, log, config, demands, seed)
    return source.faults


def _open_source(
    scene: Scene, kind: SourceKind, work: Path, config: MatchSetConfig, stack: ExitStack
) -> _Source:
    """Look for faults and list the pairs; what has to be closed goes on the stack."""
    if kind == "list":
        faults = list_faults(scene)
        return _Source(faults, *listed_pairs(scene), None, no_correspondences)
    if kind == "corr" and scene.corr_path is not None:
        corr = stack.enter_context(CorrSource(scene, scene.corr_path))
        faults = corr_faults(scene, corr.index)
        return _Source(faults, corr.index.index0, corr.index.index1, None, corr.load)
    depth = DepthSource(scene, config.depth, work)
    faults = depth.prepare()
    index0, index1, overlap = depth.pairs()

    def load(number: int) -> Correspondences:
        return depth.load(int(index0[number]), int(index1[number]))

    return _Source(faults, index0, index1, overlap, load)


def _write_records(
    scene: Scene,
    candidates: Candidates,
    load: Callable[[int], Correspondences],
    log: RecordLog,
    config: MatchSetConfig,
    demands: _Demands,
    seed: int,
) -> None:
    floats = record_floats(demands.slots)
    chunk = max(1, _CHUNK_BYTES // (4 * floats))
    buffer = np.empty((chunk, floats), dtype=np.float32)
    bar = tqdm(total=len(candidates), initial=log.position, desc=scene.name, unit="pair", disable=None)
    with bar:
        while log.position < len(candidates):
            end = min(log.position + chunk, len(candidates))
            buffer.fill(0)
            rows: list[PairRow] = []
            dropped: dict[str, int] = {}
            for place in range(log.position, end):
                pair = load(int(candidates.number[place]))
                reason = _why_dropped(pair, demands)
                if reason is not None:
                    dropped[reason] = dropped.get(reason, 0) + 1
                    continue
                record = buffer[len(rows)]
                record[:HEADER_FLOATS] = candidates.headers[place]
                filled = fill_record(
                    record,
                    pair,
                    slots=demands.slots,
                    noise=config.noise,
                    angle_rule=config.angles,
                    seed=seed,
                    address=(scene.name, int(candidates.number[place])),
                )
                rows.append(_row(candidates, place, filled))
            log.append(buffer[: len(rows)], rows, dropped, position=end)
            bar.update(end - bar.n)


def _row(candidates: Candidates, place: int, filled: Filled) -> PairRow:
    overlap = float(candidates.overlap[place])
    return PairRow(
        pair=int(candidates.number[place]),
        index0=int(candidates.index0[place]),
        index1=int(candidates.index1[place]),
        inliers=filled.inliers,
        rows0=filled.rows0,
        rows1=filled.rows1,
        rotation_deg=float(candidates.rotation_deg[place]),
        rot_diff_deg=filled.rot_diff_deg,
        overlap=None if np.isnan(overlap) else overlap,
    )


def _why_dropped(pair: Correspondences, demands: _Demands) -> str | None:
    if min(len(pair.keypoints0), len(pair.keypoints1)) < demands.min_keypoints:
        return f"fewer than {demands.min_keypoints} keypoints"
    if len(pair.rows0) < demands.min_inliers:
        return f"fewer than {demands.min_inliers} correspondences"
    return None


def _report(out: Path, log: RecordLog, faults: Faults) -> None:
    """The closing line: "1 204 pairs kept, 37 dropped: 31 rotation below 3 deg, 6 fewer than 11
    correspondences".
    """
    dropped = sorted(log.dropped.items(), key=lambda item: (-item[1], item[0]))
    line = f"{_spaced(log.kept)} pairs kept, {_spaced(sum(log.dropped.values()))} dropped"
    if dropped:
        line += ": " + ", ".join(f"{_spaced(count)} {reason}" for reason, count in dropped)
    if faults.reasons:
        line += f" ({len(faults.reasons)} images cannot be used)"
    level = logging.WARNING if log.kept == 0 else logging.INFO
    _log.log(level, "%s: %s", out, line)


def _spaced(count: int) -> str:
    return f"{count:,}".replace(",", " ")
