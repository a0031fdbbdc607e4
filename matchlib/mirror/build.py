"""The whole demo world: scenes, sequences and photographs drawn, written, packed, and listed with their checksums."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matchlib.completion import (
    MARKER,
    Lease,
    atomic_write_json,
    close_work,
    digest_file,
    fingerprint,
    open_work,
    read_marker,
    write_marker_digests,
)
from matchlib.mirror.aachen_views import aachen_images
from matchlib.mirror.aachen_writer import AACHEN_FILES, aachen_archives, write_aachen
from matchlib.mirror.archives import (
    files_below,
    write_split_zip,
    write_tar,
    write_tar_chunks,
    write_tar_gz,
    write_zip,
)
from matchlib.mirror.blendedmvs_writer import write_blendedmvs_lists, write_blendedmvs_scene
from matchlib.mirror.caps_writer import caps_scene_name, write_caps_scene
from matchlib.mirror.config import (
    ETH_SCENES,
    BlendedMVSMirrorConfig,
    CapsMirrorConfig,
    GL3DMirrorConfig,
    MirrorConfig,
)
from matchlib.mirror.eth_writer import draw_eth_scene, eth_archive, eth_scene_names, write_eth_scene
from matchlib.mirror.gl3d_writer import write_gl3d_lists, write_gl3d_scene
from matchlib.mirror.hpatches_writer import sequence_names, write_hpatches_sequence
from matchlib.mirror.photos_writer import SPLIT_POOLS, Split, write_photographs
from matchlib.mirror.scene import MirrorScene, build_scene, scene_name
from matchlib.mirror.textures import POOLS, Pool, photograph_path
from matchlib.revisions import REVISIONS

CHECKSUMS = "checksums.json"
STAGE = "mirror"

_log = logging.getLogger(__name__)

# Upstream's archive -> the files below GL3D's root that it holds.
GL3D_ARCHIVES = {
    "gl3d_imgs": "data/*/undist_images/*.jpg",
    "gl3d_cams": "data/*/geolabel/cameras.txt",
    "gl3d_kpts": "data/*/img_kpts/*.bin",
    "gl3d_depths": "data/*/depths/*.pfm",
    "gl3d_rendered_depths": "data/*/rendered_depths/*.pfm",
    "gl3d_corr": "data/*/geolabel/corr.bin",
    "gl3d_ct": "data/*/geolabel/common_track.txt",
    "gl3d_mo": "data/*/geolabel/mesh_overlap.txt",
    "gl3d_list": "list/*/*.txt",
}
BLENDEDMVS_ARCHIVE = "BlendedMVS"
HPATCHES_ARCHIVE = "hpatches-sequences-release"
CAPS_ARCHIVE = "CAPS-MegaDepth-release-light"
AACHEN = "aachen"


@dataclass(frozen=True, slots=True)
class _Task:
    """One scene, sequence or split of photographs: made in a folder of its own, moved into place when finished."""

    name: str
    place: Path
    write: Callable[[Path], None]


def build_mirror(config: MirrorConfig, out: Path, *, workers: int = 1) -> None:
    """Write all archives of the demo world into `out`, then `checksums.json` and `.complete`.

    `checksums.json` gives sha256 and bytes of each archive by name. Equal settings give equal bytes. A
    finished folder of the same settings is left alone; an interrupted run goes on with the scenes it had
    finished. `workers` threads draw scenes at the same time; their number does not change the result. Raises
    DataError if scikit-image's photographs are missing or another process is writing to `out`.
    """
    photographs = [photograph_path(name) for names in POOLS.values() for name in names]
    mark = fingerprint(stage=STAGE, revision=REVISIONS[STAGE], settings=asdict(config), inputs=photographs)
    with Lease(out):
        if _is_finished(out, mark):
            _log.info("%s: finished already", out)
            return
        _remove_archives(out)
        work = open_work(out, mark)
        tree = work / "tree"
        tasks = _gl3d_tasks(config, tree) + _blendedmvs_tasks(config, tree) + _caps_tasks(config, tree)
        tasks += _hpatches_tasks(config, tree) + _coco_tasks(config, tree)
        tasks += _aachen_tasks(config, tree) + _eth_tasks(config, tree)
        _run(tasks, work / "unfinished", workers)
        _write_lists(config, tree)
        archives = _pack(config, tree, work / "archives")
        checksums = {
            path.name: {"sha256": digest_file(path), "bytes": path.stat().st_size} for path in archives
        }
        for path in archives:
            os.replace(path, out / path.name)
        atomic_write_json(out / CHECKSUMS, checksums)
        digests = {name: str(entry["sha256"]) for name, entry in checksums.items()}
        digests[CHECKSUMS] = digest_file(out / CHECKSUMS)
        write_marker_digests(out, stage=STAGE, fingerprint=mark, digests=digests)
        close_work(out)


# ---------------------------------------------------------------- what is drawn
def scene_names(config: MirrorConfig, dataset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the training and the validation scenes of "gl3d", "blendedmvs" or "caps_megadepth"."""
    settings = _settings(config, dataset)
    indices = range(settings.train_scenes + settings.validation_scenes)
    if dataset == "caps_megadepth":
        names = tuple(caps_scene_name(index) for index in indices)
    else:
        names = tuple(scene_name(config.seed, dataset, index) for index in indices)
    return names[: settings.train_scenes], names[settings.train_scenes :]


def draw_scene(config: MirrorConfig, dataset: str, index: int) -> MirrorScene:
    """Scene number `index` of a dataset (see `scene_names`); the training scenes come first."""
    settings = _settings(config, dataset)
    pool: Pool = "training" if index < settings.train_scenes else "validation"
    scene = build_scene(
        seed=config.seed,
        dataset=dataset,
        index=index,
        pool=pool,
        images=settings.images_per_scene,
        image_size=settings.original_size if isinstance(settings, GL3DMirrorConfig) else settings.image_size,
        texture_px=config.texture_px,
        lighting_conditions=config.lighting_conditions,
        distorted=dataset == "gl3d",
    )
    return replace(scene, name=caps_scene_name(index)) if dataset == "caps_megadepth" else scene


def _settings(
    config: MirrorConfig, dataset: str
) -> GL3DMirrorConfig | BlendedMVSMirrorConfig | CapsMirrorConfig:
    if dataset == "caps_megadepth":
        return config.caps_megadepth
    return config.gl3d if dataset == "gl3d" else config.blendedmvs


def _gl3d_tasks(config: MirrorConfig, tree: Path) -> list[_Task]:
    def task(index: int, name: str) -> _Task:
        def write(folder: Path) -> None:
            scene = draw_scene(config, "gl3d", index)
            write_gl3d_scene(folder, scene, config.gl3d, seed=config.seed, supersampling=config.supersampling)

        return _Task(f"data/{name}", tree / "gl3d" / "data" / name, write)

    train, validation = scene_names(config, "gl3d")
    return [task(index, name) for index, name in enumerate(train + validation)]


def _blendedmvs_tasks(config: MirrorConfig, tree: Path) -> list[_Task]:
    def task(index: int, name: str) -> _Task:
        def write(folder: Path) -> None:
            scene = draw_scene(config, "blendedmvs", index)
            write_blendedmvs_scene(
                folder, scene, config.blendedmvs, seed=config.seed, supersampling=config.supersampling
            )

        return _Task(name, tree / "blendedmvs" / name, write)

    train, validation = scene_names(config, "blendedmvs")
    return [task(index, name) for index, name in enumerate(train + validation)]


def _hpatches_tasks(config: MirrorConfig, tree: Path) -> list[_Task]:
    def task(name: str, photograph: str) -> _Task:
        def write(folder: Path) -> None:
            write_hpatches_sequence(folder, name, photograph, config.hpatches, seed=config.seed)

        return _Task(name, tree / "hpatches" / name, write)

    return [task(name, photograph) for name, photograph in sequence_names(config.hpatches).items()]


def _coco_tasks(config: MirrorConfig, tree: Path) -> list[_Task]:
    def task(split: Split) -> _Task:
        def write(folder: Path) -> None:
            write_photographs(folder, split, config.coco, seed=config.seed)

        return _Task(split, tree / "coco" / split, write)

    return [task(split) for split in SPLIT_POOLS]


def _caps_tasks(config: MirrorConfig, tree: Path) -> list[_Task]:
    settings = config.caps_megadepth

    def task(index: int, name: str) -> _Task:
        phase = "train" if index < settings.train_scenes else "val"

        def write(folder: Path) -> None:
            scene = draw_scene(config, "caps_megadepth", index)
            write_caps_scene(
                folder / phase, scene, settings, seed=config.seed, supersampling=config.supersampling
            )

        return _Task(f"{phase}/{name}", tree / CAPS_ARCHIVE / phase / name, write)

    train, validation = scene_names(config, "caps_megadepth")
    return [task(index, name) for index, name in enumerate(train + validation)]


def _aachen_tasks(config: MirrorConfig, tree: Path) -> list[_Task]:
    def write(folder: Path) -> None:
        scene = build_scene(
            seed=config.seed,
            dataset=AACHEN,
            index=0,
            pool="validation",
            images=aachen_images(config.aachen),
            image_size=config.aachen.image_size,
            texture_px=config.texture_px,
            lighting_conditions=config.lighting_conditions,
        )
        write_aachen(
            folder / AACHEN, scene, config.aachen, seed=config.seed, supersampling=config.supersampling
        )

    return [_Task(AACHEN, tree / AACHEN, write)]


def _eth_tasks(config: MirrorConfig, tree: Path) -> list[_Task]:
    def task(name: str) -> _Task:
        def write(folder: Path) -> None:
            scene = draw_eth_scene(config, name)
            write_eth_scene(folder, name, scene, seed=config.seed, supersampling=config.supersampling)

        return _Task(name, tree / "eth" / name, write)

    return [task(name) for name in eth_scene_names(config.eth)]


def _run(tasks: Sequence[_Task], unfinished: Path, workers: int) -> None:
    """Do what is not done yet. Threads suffice: almost all time is spent in NumPy and OpenCV."""

    def do(task: _Task) -> None:
        if task.place.exists():
            return
        folder = unfinished / task.name.replace("/", "-")
        shutil.rmtree(folder, ignore_errors=True)
        task.write(folder)
        task.place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder / task.name, task.place)
        _log.info("%s: drawn", task.name)

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        for _ in pool.map(do, tasks):
            pass


def _write_lists(config: MirrorConfig, tree: Path) -> None:
    write_gl3d_lists(tree / "gl3d", config.gl3d.images_per_scene, *scene_names(config, "gl3d"))
    write_blendedmvs_lists(tree / "blendedmvs", *scene_names(config, "blendedmvs"))


# ---------------------------------------------------------------- archives
def _pack(config: MirrorConfig, tree: Path, folder: Path) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths: list[Path] = []
    root = tree / "gl3d"
    for name, pattern in GL3D_ARCHIVES.items():
        files = sorted(root.glob(pattern))
        paths += write_tar_chunks(folder / name, root, files, config.gl3d.chunk_bytes)
    root = tree / "blendedmvs"
    paths += write_split_zip(
        folder / BLENDEDMVS_ARCHIVE, root, files_below(root), config.blendedmvs.part_bytes
    )
    root = tree / "hpatches"
    packed = folder / f"{HPATCHES_ARCHIVE}.tar.gz"
    write_tar_gz(packed, root, files_below(root), f"{HPATCHES_ARCHIVE}/")
    paths.append(packed)
    root = tree / "coco"
    for split in SPLIT_POOLS:
        paths.append(folder / f"{split}.zip")
        write_zip(paths[-1], root, files_below(root / split))
    paths.append(folder / f"{CAPS_ARCHIVE}.tar")
    write_tar(paths[-1], tree / CAPS_ARCHIVE, files_below(tree / CAPS_ARCHIVE), f"{CAPS_ARCHIVE}/")
    paths += _pack_aachen(tree / AACHEN, folder)
    root = tree / "eth"
    for name in eth_scene_names(config.eth):
        paths.append(folder / f"{eth_archive(name)}.zip")
        write_zip(paths[-1], root, files_below(root / name))
    return paths


def _pack_aachen(root: Path, folder: Path) -> list[Path]:
    """Upstream has two zips, and lists, models and databases as they are."""
    paths = []
    for name, (base, files) in aachen_archives(root).items():
        paths.append(folder / name)
        if name.endswith(".zip"):
            write_zip(paths[-1], base, files)
        else:
            shutil.copyfile(files[0], paths[-1])
    return paths


def _is_finished(out: Path, mark: str) -> bool:
    marker = read_marker(out)
    return (
        marker is not None
        and marker.fingerprint == mark
        and all((out / name).is_file() for name in marker.files)
    )


def _remove_archives(out: Path) -> None:
    """Delete what an earlier run left, whether or not its marker is still there; nothing else in the folder.

    A series of chunks has no stated end, so one stale chunk would spoil the next series.
    """
    patterns = [f"{name}.tar.[0-9]*" for name in GL3D_ARCHIVES]
    patterns += [f"{BLENDEDMVS_ARCHIVE}.z[0-9]*", f"{BLENDEDMVS_ARCHIVE}.zip", f"{HPATCHES_ARCHIVE}.tar.gz"]
    patterns += [*(f"{split}.zip" for split in SPLIT_POOLS), f"{CAPS_ARCHIVE}.tar", *AACHEN_FILES]
    patterns += [f"{eth_archive(name)}.zip" for name in ETH_SCENES]
    for pattern in (MARKER, *patterns, CHECKSUMS):
        for path in out.glob(pattern):
            path.unlink()
