"""Overhead of the extraction loop over the bare extractor: `python benchmarks/extraction.py [--images 40]`.

Bare: `extract` on images that are already decoded in memory, one after the other. Loop: `extract_features`
from JPEG files on disk to a finished HDF5 file, so it also reads, digests, decodes, stores and fsyncs. Plain:
the same steps as the loop one after the other, without threads. Ratios are of wall time and, for machines
that are not quiet, of CPU time of all threads. Images are scikit-image's photographs at 640 x 480.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from torch import nn

from matchlib.completion import digest_file
from matchlib.datasets.images import read_image, write_image
from matchlib.features.config import SiftConfig
from matchlib.features.extract import extract_features
from matchlib.features.sift import build_rootsift
from matchlib.features.store import FeatureWriter, StoreHeader
from matchlib.features.types import Extractor, Features, Image


class SmallNetwork:
    """A dense network in the style of learned extractors: 7 convolutions, 128 channels at 1/4 resolution."""

    name = "network"
    fingerprint = "benchmark"
    descriptor_dim = 128

    def __init__(self, keypoints: int = 2000) -> None:
        torch.manual_seed(0)
        widths, strides = [3, 32, 32, 64, 64, 128, 128, 128], [1, 1, 2, 1, 2, 1, 1]
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
        self._network = nn.Sequential(*layers).eval()
        self._keypoints = keypoints

    @torch.inference_mode()
    def extract(self, image: Image) -> Features:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        maps = self._network(pixels)[0]
        score, index = maps.amax(dim=0).flatten().topk(self._keypoints)
        rows, columns = index // maps.shape[2], index % maps.shape[2]
        descriptors = nn.functional.normalize(maps.flatten(1)[:, index].T, dim=1)
        return Features(
            keypoints=(4 * torch.stack([columns, rows], dim=1)).float().numpy(),
            scores=score.numpy(),
            descriptors=descriptors.contiguous().numpy(),
            image_size=(image.shape[1], image.shape[0]),
        )


def make_images(folder: Path, count: int) -> list[str]:
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    names = []
    for index in range(count):
        photo = cv2.resize(photos[index % len(photos)], (640, 480), interpolation=cv2.INTER_AREA)
        names.append(f"{index:03}.jpg")
        write_image(folder / names[-1], np.roll(photo, 7 * index, axis=1))
    return names


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds and CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def plain_loop(folder: Path, names: list[str], extractor: Extractor, out: Path) -> None:
    with FeatureWriter(out, StoreHeader(method=extractor.name, fingerprint="plain")) as writer:
        for name in names:
            digest = digest_file(folder / name)
            writer.add(name, extractor.extract(read_image(folder / name)), image_digest=digest)
        writer.finish()


def measure(extractor: Extractor, folder: Path, names: list[str], repeats: int) -> None:
    images = [read_image(folder / name) for name in names]
    extractor.extract(images[0])
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "plain": [], "loop": []}
    for repeat in range(repeats):
        out = folder.parent / f"{extractor.name}-{repeat}.h5"
        times["bare"].append(timed(lambda: [extractor.extract(image) for image in images]))
        times["plain"].append(timed(partial(plain_loop, folder, names, extractor, out.with_suffix(".plain"))))
        run = partial(extract_features, folder, names, extractor=extractor, out=out, show_progress=False)
        times["loop"].append(timed(run))
    wall = {key: min(pair[0] for pair in pairs) for key, pairs in times.items()}
    cpu = {key: min(pair[1] for pair in pairs) for key, pairs in times.items()}
    print(
        f"{extractor.name:10}"
        + "".join(f"{1000 * wall[key] / len(names):10.1f}" for key in ("bare", "plain", "loop"))
        + f"{wall['plain'] / wall['bare']:12.3f}{wall['loop'] / wall['bare']:11.3f}"
        + f"{cpu['plain'] / cpu['bare']:16.3f}{cpu['loop'] / cpu['bare']:15.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(
        f"{arguments.images} images, best of {arguments.repeats}, torch threads {torch.get_num_threads()}, "
        f"{os.cpu_count()} cores"
    )
    print("extractor    bare ms  plain ms   loop ms  plain/bare  loop/bare  cpu plain/bare  cpu loop/bare")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        names = make_images(folder, arguments.images)
        for extractor in (SmallNetwork(), build_rootsift(SiftConfig(max_keypoints=2000), None, "cpu")):
            measure(extractor, folder, names, arguments.repeats)


if __name__ == "__main__":
    main()
