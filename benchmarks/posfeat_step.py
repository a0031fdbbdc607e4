"""Where the time of a training step of PoSFeat's stage desc goes, beside a direct transcription, as a Markdown table.

    python benchmarks/posfeat_step.py [--size 320 240] [--pairs 2] [--threads 2] [--repeats 3]

The transcription does what the formulas and the released loader say, word by word: two SIFT detections per pair in the
loader, a forward pass for each image with its coarse map, convolutions of enlarged maps in the decoder, all sampled
descriptors of the line and the window search as arrays (B, D, N, K) by grid_sample, autograd through the window's. Both
take the same network, images and queries. The contenders take turns, and the minimum over the turns counts; wall time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from measuring import write
from torch import Tensor
from torch.nn import functional as F

from matchlib.geometry.epipolar import clip_lines, epipolar_lines, fundamental_from_pose
from matchlib.methods.posfeat.config import DescriptorLossConfig, NetworkConfig
from matchlib.methods.posfeat.descriptor_loss import descriptor_loss
from matchlib.methods.posfeat.epipolar_search import draw_queries, window_offsets
from matchlib.methods.posfeat.network import DescriptionNet, UpBlock, normalise
from matchlib.ops.extension import load_extension

CONFIG = DescriptorLossConfig(weights="batch", jitter=False)
SIFT_FEATURES = 10_000
PARTS = ("data", "forward", "search and loss", "backward")


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    load_extension()
    rng = np.random.default_rng(0)
    width, height = options.size
    stored = rng.integers(0, 255, (2 * options.pairs, height, width, 3), dtype=np.uint8)
    for place, image in enumerate(stored):  # smooth enough for SIFT to find what it finds in photographs
        stored[place] = cv2.GaussianBlur(image, (0, 0), 1.5)
    network = DescriptionNet(NetworkConfig())
    network.initialise(torch.Generator().manual_seed(0))
    network.train()
    runs: dict[str, Callable[[], list[float]]] = {
        "transcription": lambda: transcription(network, stored),
        "matchlib": lambda: matchlib_step(network, stored),
    }
    seconds = {name: np.full(len(PARTS), np.inf) for name in runs}
    for turn in range(options.repeats + 1):
        for name, run in runs.items():
            marks = np.diff(run())
            if turn:  # the first is a warm-up
                seconds[name] = np.minimum(seconds[name], marks)
    report(seconds, options)


def report(seconds: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    width, height = options.size
    write(
        f"{options.pairs} pairs, {width} x {height}, {options.threads} threads, minimum of {options.repeats}; torch "
        f"{torch.__version__}\n\n| part | transcription, ms | matchlib, ms | ratio |\n|---|---|---|---|\n"
    )
    theirs, ours = seconds["transcription"], seconds["matchlib"]
    rows = [*zip(PARTS, theirs, ours, strict=True), ("step", theirs.sum(), ours.sum())]
    rows.append(
        ("all but the network's convolutions (data, search)", theirs[[0, 2]].sum(), ours[[0, 2]].sum())
    )
    for name, slow, fast in rows:
        write(f"| {name} | {slow * 1e3:.0f} | {fast * 1e3:.0f} | {fast / slow:.2f} |\n")


def as_tensors(stored: np.ndarray) -> Tensor:
    return torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 255


def geometry(pairs: int, size: tuple[int, int]) -> Tensor:
    """(B, 3, 3) float64: a sideways and forward motion."""
    T = torch.eye(4, dtype=torch.float64).repeat(pairs, 1, 1)
    T[:, :3, 3] = torch.tensor([1.0, 0.2, 0.3], dtype=torch.float64)
    K = torch.tensor([[size[0], 0, size[0] / 2], [0, size[0], size[1] / 2], [0, 0, 1]], dtype=torch.float64)
    return fundamental_from_pose(T, K.expand(pairs, 3, 3), K.expand(pairs, 3, 3))


def matchlib_step(network: DescriptionNet, stored: np.ndarray) -> list[float]:
    """The times at which data, forward, search and backward end, after that of the start."""
    pairs, size = len(stored) // 2, (stored.shape[2], stored.shape[1])
    marks = [time.perf_counter()]
    images = as_tensors(stored)
    marks.append(time.perf_counter())
    maps = network(normalise(images), towers=2).fine
    marks.append(time.perf_counter())
    found = descriptor_loss(
        maps[:pairs], maps[pairs:], geometry(pairs, size), size, tuple(range(pairs)), CONFIG, "exact"
    )
    marks.append(time.perf_counter())
    found.loss.backward()
    marks.append(time.perf_counter())
    network.zero_grad()
    return marks


def transcription(network: DescriptionNet, stored: np.ndarray) -> list[float]:
    pairs, size = len(stored) // 2, (stored.shape[2], stored.shape[1])
    marks = [time.perf_counter()]
    detector = cv2.SIFT_create(nfeatures=SIFT_FEATURES)
    for image in stored:
        detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    images = as_tensors(stored)
    marks.append(time.perf_counter())
    halves = [normalise(images[:pairs]), normalise(images[pairs:])]
    maps = []
    for half in halves:
        encoded = network._encode(half, 1)
        network.conv_coarse(encoded[-1]).mean((2, 3))
        maps.append(decoded(network, encoded))
    marks.append(time.perf_counter())
    lines = geometry(pairs, size)
    seeds = tuple(range(pairs))
    loss = sum(
        one_direction(maps[i], maps[1 - i], F_own, f"queries of image {i}", size, seeds)
        for i, F_own in enumerate((lines, lines.mT))
    )
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    network.zero_grad()
    return marks


def decoded(network: DescriptionNet, encoded: tuple[Tensor, ...]) -> Tensor:
    _, x1, x2, x3 = encoded
    x = network.iconv3(torch.cat([x2, enlarged(network.upconv3, x3)], dim=1))
    x = network.iconv2(torch.cat([x1, enlarged(network.upconv2, x)], dim=1))
    return network.conv_fine(x)


def enlarged(block: UpBlock, x: Tensor) -> Tensor:
    return block.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


def one_direction(
    own: Tensor, other: Tensor, F_own: Tensor, purpose: str, size: tuple[int, int], seeds: tuple[int, ...]
) -> Tensor:
    queries = draw_queries(size, CONFIG.cell_px, seeds, purpose, own.device)
    extent = torch.tensor(size, dtype=torch.float32)

    def read(maps: Tensor, places: Tensor, padding: str) -> Tensor:
        return F.grid_sample(maps, 2 * (places + 0.5) / extent - 1, padding_mode=padding, align_corners=False)

    described = F.normalize(read(own, queries[:, :, None], "border")[..., 0], dim=1)  # (B, D, N)
    warm = CONFIG.temperature * F.normalize(other, dim=1)
    lines = epipolar_lines(queries.double(), F_own)
    ends, valid = clip_lines(lines, size)
    ends = ends.float()
    with torch.no_grad():
        along = torch.linspace(0, 1, CONFIG.line_samples)[:, None]
        places = torch.lerp(ends[:, :, :1], ends[:, :, 1:], along)
        similarity = torch.einsum("bdn,bdnk->bnk", described, read(warm, places, "border")).softmax(-1)
        centre = places.gather(2, similarity.argmax(-1)[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    offsets = window_offsets(size, (other.shape[-1], other.shape[-2]), CONFIG).float()
    places = centre[:, :, None] + offsets
    probability = torch.einsum("bdn,bdnk->bnk", described, read(warm, places, "zeros")).softmax(-1)
    mean = (probability[..., None] * places).sum(2)
    scaled, scale = places / extent * 2, mean / extent * 2
    variance = (probability[..., None] * scaled.square()).sum(2) - scale.square()
    spread = variance.clamp_min(1e-10).sqrt().sum(-1)
    distance = (torch.cat([mean, torch.ones_like(mean[..., :1])], -1) * lines.float()).sum(-1).abs()
    mask = valid & (distance < CONFIG.max_distance * min(size))
    weight = ((1 / spread) / (1 / spread).mean()).detach() * mask
    return (weight / (weight.mean() + 1e-8) * distance).mean()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
