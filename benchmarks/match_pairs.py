"""Time and memory of matching a long pair list, as a ratio to the bare matrix products of the same pairs.

    python benchmarks/match_pairs.py [--images 7000] [--pairs 60000] [--timed 60] [--keypoints 10000] [--threads 2]

The pair list has the size of the largest published one and its kind: images at places, paired with neighbours, a
tenth of the pairs at random, as wrong retrievals are. Loads are counted for the whole list. Matched are only its first
`--timed` pairs in the planned order, since all would take a day on a processor, and the features are made when they are
read, since they would fill 36 GB of disk. With `--features FILE` they are read from a file, and all its images paired.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from matchlib.features.store import FeatureReader
from matchlib.features.types import Features
from matchlib.matching.at_scale import match_pairs
from matchlib.matching.config import MatcherConfig
from matchlib.matching.feed import FeatureFeed, FeatureSource
from matchlib.matching.matcher import match_descriptors
from matchlib.matching.order import Int64, count_loads, number_images, plan_order
from matchlib.matching.pair_lists import Pair, exhaustive_pairs
from matchlib.ops.matmul import uses_onednn


class MadeFeatures:
    """Features that are made when they are read: a quarter of two images' points are common to both, up to noise."""

    digest = "made by the benchmark"

    def __init__(self, images: int, keypoints: int, width: int) -> None:
        self.names = tuple(f"{number:05d}.jpg" for number in range(images))
        draw = np.random.default_rng(0)
        self._common = draw.standard_normal((4 * keypoints, width), np.float32)
        self._keypoints = keypoints

    def read(self, name: str) -> Features:
        draw = np.random.default_rng(int(name[:5]))
        n = self._keypoints
        rows = self._common[draw.permutation(4 * n)[:n]]
        rows += 0.5 * draw.standard_normal(rows.shape, np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return Features(
            keypoints=draw.uniform(0, 1000, (n, 2)).astype(np.float32),
            scores=draw.uniform(size=n).astype(np.float32),
            descriptors=rows,
            image_size=(1000, 1000),
        )


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    source: FeatureSource
    if options.features is not None:
        source = FeatureReader(options.features)
        pairs = exhaustive_pairs(source.names)
    else:
        source = MadeFeatures(options.images, options.keypoints, options.width)
        pairs = made_pairs(source.names, options.pairs)
    report_loads(pairs, options)
    chosen = first_in_order(pairs, options.timed)
    for title, config in (
        ("mutual", MatcherConfig()),
        ("ratio 0.75 one way", MatcherConfig(kind="mutual_ratio", ratio=0.75)),
        ("ratio 0.75 both ways", MatcherConfig(kind="mutual_ratio", ratio=0.75, both_directions=True)),
    ):
        report_time(title, config, source, chosen, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process {peak:.2f} GiB (with a cache of {options.cache_mib} MiB)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=7000)
    parser.add_argument("--pairs", type=int, default=60000)
    parser.add_argument("--timed", type=int, default=60, help="pairs that are matched")
    parser.add_argument("--keypoints", type=int, default=10000)
    parser.add_argument("--width", type=int, default=128, help="numbers in a descriptor")
    parser.add_argument("--cache-mib", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds of this process, on a machine that others use too; with one thread only",
    )
    parser.add_argument("--features", type=Path, help="read this features file instead of making features")
    return parser.parse_args()


def made_pairs(names: tuple[str, ...], count: int) -> tuple[Pair, ...]:
    """Images at 60 sights, each paired with near ones; a tenth of the pairs at random. In random order."""
    draw = np.random.default_rng(1)
    sights = draw.uniform(0, 100, (60, 2))
    places = sights[draw.integers(60, size=len(names))] + draw.normal(0, 2.5, (len(names), 2))
    _, near = cKDTree(places).query(places, k=min(31, len(names)))
    found: set[tuple[int, int]] = set()
    while len(found) < min(count, len(names) * (len(names) - 1) // 2):
        first = int(draw.integers(len(names)))
        second = int(draw.integers(len(names)) if draw.uniform() < 0.1 else draw.choice(near[first, 1:]))
        if first != second:
            found.add((min(first, second), max(first, second)))
    listed = draw.permutation(np.array(sorted(found)))
    return tuple((names[first], names[second]) for first, second in listed)


def report_loads(pairs: tuple[Pair, ...], options: argparse.Namespace) -> None:
    names, pairs_P2 = number_images(pairs)
    start = now(options)
    order = plan_order(pairs_P2)
    seconds = now(options) - start
    capacity = max(1, options.cache_mib * 2**20 // (options.keypoints * options.width * 4))
    loads = {"as listed": count_loads(pairs_P2, capacity), "planned": count_loads(pairs_P2[order], capacity)}
    print(
        f"{len(pairs)} pairs of {len(names)} images, planned in {seconds:.1f} s; memory for {capacity} images"
    )
    for title, count in loads.items():
        print(
            f"  loads {title:10s} {count:7d}  {count / len(pairs):.3f} per pair  {count / len(names):.2f} per image"
        )


def first_in_order(pairs: tuple[Pair, ...], count: int) -> tuple[Pair, ...]:
    return tuple(pairs[at] for at in plan_order(number_images(pairs)[1])[:count])


def report_time(
    title: str,
    config: MatcherConfig,
    source: FeatureSource,
    pairs: tuple[Pair, ...],
    options: argparse.Namespace,
) -> None:
    """The whole, and its parts alone: each with the same pairs in the same order."""
    wait_for_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        start = now(options)
        match_pairs(
            *(source, pairs, Path(folder) / "out"),
            config=config,
            device=options.device,
            cache_bytes=options.cache_mib * 2**20,
            show_progress=False,
        )
        whole = now(options) - start
    names, pairs_P2 = number_images(pairs)
    waiting, products, matching = parts_alone(source, names, pairs_P2[plan_order(pairs_P2)], config, options)
    print(
        f"{title}: {len(pairs)} pairs in {whole:.1f} s, {len(pairs) / whole:.2f} per second; bare products "
        f"{products:.1f} s, so {whole / products:.2f} times those (matching alone {matching / products:.2f}; waiting "
        f"for features {waiting:.1f} s)"
    )


def parts_alone(
    source: FeatureSource,
    names: tuple[str, ...],
    pairs_P2: Int64,
    config: MatcherConfig,
    options: argparse.Namespace,
) -> tuple[float, float, float]:
    """Seconds of waiting for features, of the bare products, and of matching features that are in memory.

    Product and matching of a pair take turns, so that other load on the machine hits both alike.
    """
    feed = FeatureFeed(
        *(source, names, pairs_P2),
        device=options.device,
        cache_bytes=options.cache_mib * 2**20,
        max_keypoints=None,
    )
    buffer = torch.empty(options.keypoints**2, device=options.device)
    bare_product(
        buffer[:4].view(2, 2), buffer[:4].view(2, 2), buffer[4:]
    )  # a first call prepares the library
    waiting = products = matching = 0.0
    since = now(options)
    for image0, image1 in feed:
        waiting += now(options) - since
        a_ND, b_MD = image0.descriptors, image1.descriptors
        products += timed(partial(bare_product, a_ND, b_MD, buffer), options)
        matching += timed(partial(match_descriptors, a_ND, b_MD, config), options)
        since = now(options)
    return waiting, products, matching


def bare_product(a_ND: torch.Tensor, b_MD: torch.Tensor, buffer: torch.Tensor) -> None:
    """All similarities into memory that exists already, by the faster library (see `ops.matmul`)."""
    before = torch.get_float32_matmul_precision()
    if uses_onednn(a_ND):
        torch.set_float32_matmul_precision("medium")  # full float32 on processors without AMX
    try:
        torch.mm(a_ND, b_MD.T, out=buffer[: len(a_ND) * len(b_MD)].view(len(a_ND), len(b_MD)))
    finally:
        torch.set_float32_matmul_precision(before)


def timed(run: Callable[[], object], options: argparse.Namespace) -> float:
    start = now(options)
    run()
    wait_for_device(options.device)
    return now(options) - start


def now(options: argparse.Namespace) -> float:
    return time.process_time() if options.clock == "cpu" else time.perf_counter()


def wait_for_device(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
