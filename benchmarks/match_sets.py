"""Speed and memory of building match sets from `corr.bin`.

    python benchmarks/match_sets.py                                 # 400 images, 6,000 pairs
    python benchmarks/match_sets.py --images 2313 --pairs 20000     # the largest GL3D scene's images

A synthetic scene with GL3D's statistics (9,000 keypoints per image, radial distortion, about 150
correspondences a pair) is built with warm page cache, on one core, each time in a fresh process. In the same
run: a plain copy of as many bytes, and a straightforward transcription of tfmatch's steps pair by pair
(keypoints read and undistorted for each pair, set difference, one file per pair).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # one core; before NumPy and torch are imported

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from matchlib.datasets.gl3d import (  # noqa: E402
    CorrRecord,
    pixel_to_affine,
    read_cameras,
    read_corr,
    read_keypoints,
    write_cameras,
    write_corr,
    write_keypoints,
    write_lists,
)
from matchlib.datasets.types import Camera  # noqa: E402
from matchlib.match_sets.build import build_match_set  # noqa: E402
from matchlib.match_sets.config import MatchSetConfig  # noqa: E402
from matchlib.match_sets.index import RECORDS  # noqa: E402

SIZE = (4000, 3000)


def write_scene(root: Path, scene: str, images: int, pairs: int, keypoints: int, seed: int) -> None:
    """A scene of cameras on a circle; correspondences between images up to some neighbours apart, random
    rows.
    """
    rng = np.random.default_rng(seed)
    folder = root / "data" / scene
    (folder / "undist_images").mkdir(parents=True)
    cameras, frames = {}, []
    for index in range(images):
        angle = 2 * np.pi * index / 72  # 5 degrees a step
        T = np.eye(4)
        T[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        T[:3, 3] = rng.normal(size=3)
        K = np.array([[3000.0, 0, 2000], [0, 3000, 1500], [0, 0, 1]])
        cameras[index] = Camera(K=K, T_world_to_cam=T, size=SIZE, distortion=(-0.05, 0.01, 0.0))
        xy = rng.uniform((0, 0), SIZE, size=(keypoints, 2))
        affine = pixel_to_affine(
            xy, SIZE, rng.uniform(5, 60, keypoints), rng.uniform(-np.pi, np.pi, keypoints)
        )
        frames.append(affine)
        write_keypoints(folder / "img_kpts" / f"{index:08d}.bin", affine)
        (folder / "undist_images" / f"{index:08d}.jpg").write_bytes(b"not opened here")
    write_cameras(folder / "geolabel" / "cameras.txt", cameras)
    reach = -(-pairs // images) + 2
    chosen = [(i, i + step) for i in range(images) for step in range(1, reach + 1) if i + step < images]

    def records():
        for i, j in chosen[:pairs]:
            count = int(rng.gamma(2, 75)) + 11
            rows = np.empty((count, 15), dtype=np.float32)
            rows0 = rng.choice(keypoints, count, replace=False)
            rows1 = rng.choice(keypoints, count, replace=False)
            rows[:, 0:6], rows[:, 6:12] = frames[i][rows0], frames[j][rows1]
            rows[:, 12] = rng.uniform(0, 1, count)
            rows[:, 13], rows[:, 14] = rows0, rows1
            yield CorrRecord(i, j, rows)

    write_corr(folder / "geolabel" / "corr.bin", records())


def build(root: Path, scene: str, out: Path) -> None:
    """What is measured."""
    build_match_set(
        dataset_format="gl3d",
        root=root,
        scene=scene,
        out=out,
        config=MatchSetConfig(),
        seed=0,
        regenerate=True,
    )


def transcribe(root: Path, scene: str, out: Path, limit: int) -> None:
    """tfmatch's steps, pair by pair, for the first `limit` pairs; one file per pair."""
    rng = np.random.default_rng(0)
    folder = root / "data" / scene
    cameras = read_cameras(folder / "geolabel" / "cameras.txt")
    out.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(read_corr(folder / "geolabel" / "corr.bin")):
        if number == limit:
            return
        blocks, angles = [], []
        camera0, camera1 = cameras[record.index0], cameras[record.index1]
        R = camera1.T_world_to_cam[:3, :3] @ camera0.T_world_to_cam[:3, :3].T
        angle = np.rad2deg(np.arccos(np.clip((np.trace(R) - 1) / 2, -1, 1)))
        if angle < 3:
            continue
        t = camera1.T_world_to_cam[:3, 3] - R @ camera0.T_world_to_cam[:3, 3]
        E = np.cross(np.eye(3), t) @ R
        n = min(len(record.rows), 1024)
        for camera, index, column in ((camera0, record.index0, 13), (camera1, record.index1, 14)):
            affine = read_keypoints(folder / "img_kpts" / f"{index:08d}.bin").copy()
            half = np.array(camera.size) / 2
            k1, k2, k3 = camera.distortion
            pixels = (affine[:, [2, 5]] * half + half)[:, None]
            lens = np.array([k1, k2, 0, 0, k3])
            affine[:, [2, 5]] = cv2.undistortPoints(pixels, camera.K, lens, P=camera.K)[:, 0] / half - 1
            matched = record.rows[:, column].astype(int)
            others = np.setdiff1d(np.arange(len(affine)), matched)
            noise = rng.choice(others, 1024 - n, replace=False)
            blocks.append(affine[np.concatenate([matched[:n], noise])])
            angles.append(np.arctan2(affine[matched[:n], 1], affine[matched[:n], 0]))
        header = [record.index0, record.index1, n, *camera0.size, *camera1.size, *camera0.K.ravel()]
        header += [*camera1.K.ravel(), *(E / np.linalg.norm(E)).ravel(), *np.column_stack([R, t]).ravel()]
        labels = np.zeros(1024)
        labels[:n] = record.rows[:n, 12]
        values = np.concatenate([header, blocks[0].ravel(), blocks[1].ravel(), labels]).astype(np.float32)
        turned = np.rad2deg(np.abs(angles[0] - angles[1]).mean())
        values.tofile(out / f"{number}_0_{int(angle)}_{int(turned)}.match_set")


def copy(source: Path, target: Path) -> None:
    """As many bytes, in pieces of 16 MiB, written through to the disk like the records."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while block := reader.read(16 << 20):
            writer.write(block)
        os.fsync(writer.fileno())


def _child(task: Callable[..., None], args: tuple[object, ...], pipe: object) -> None:
    start = time.perf_counter()
    task(*args)
    seconds = time.perf_counter() - start
    pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure(*runs: tuple[object, ...]) -> list[tuple[float, float]]:
    """Run (function, *arguments) at the same time, each in a fresh process: seconds and peak MiB of each."""
    context = multiprocessing.get_context("spawn")
    started = []
    for task, *args in runs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(task, tuple(args), sender))
        process.start()
        started.append((process, receiver))
    results = []
    for process, receiver in started:
        while process.is_alive() and not receiver.poll(1):
            pass
        if not receiver.poll():
            raise SystemExit("a measured process failed")
        results.append(receiver.recv())
        process.join()
    return results


def main() -> None:
    """Make the scenes, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--keypoints", type=int, default=9000)
    parser.add_argument("--transcribed-pairs", type=int, default=500, help="pairs for the slow comparison")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="match_sets_", dir=args.folder))
    try:
        root = folder / "gl3d"
        scenes = ("scene_a", "scene_b")
        for seed, scene in enumerate(scenes):
            write_scene(root, scene, args.images, args.pairs, args.keypoints, seed)
        write_lists(root, "bench", dict.fromkeys(scenes, args.images), scenes, ())
        pairs = sum(1 for _ in read_corr(root / "data" / "scene_a" / "geolabel" / "corr.bin"))
        measure((build, root, "scene_a", folder / "a"))  # warms the page cache
        ((seconds, peak),) = measure((build, root, "scene_a", folder / "a"))
        ((copy_s, _),) = measure((copy, folder / "a" / RECORDS, folder / "copy"))
        limit = min(pairs, args.transcribed_pairs)
        ((slow_s, _),) = measure((transcribe, root, "scene_a", folder / "files", limit))
        ((alone_b, _),) = measure((build, root, "scene_b", folder / "b"))
        together = measure((build, root, "scene_a", folder / "a"), (build, root, "scene_b", folder / "b"))
        slow_rate = limit / slow_s
        rate = pairs / seconds
        print(f"{args.images} images, {args.keypoints} keypoints each, {pairs} pairs, 1,024 slots")
        print(f"build:           {rate:8.0f} pairs/s   {seconds:.2f} s   peak {peak:.0f} MiB")
        print(
            f"copy of records: {pairs / copy_s:8.0f} pairs/s   build:  {seconds / copy_s:.2f} times its time"
        )
        print(f"transcription:   {slow_rate:8.0f} pairs/s   build is {rate / slow_rate:.1f} times as fast")
        scaling = (seconds + alone_b) / max(t for t, _ in together)
        print(f"two processes:   {scaling:8.2f} times the throughput of one")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
