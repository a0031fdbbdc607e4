"""PoSFeat's keypoint stage beside direct transcriptions, time and memory of forward and backward, as a Markdown table.

    python benchmarks/keypoint_loss.py [--quick] [--threads 2] [--repeats 3] [--clock cpu] [--no-memory]

Two parts of a training step at 640 x 480: the loss of one pair with 4800 proposals in each image, and the keypoint head
on one image. The transcription of the loss makes the arrays of all pairs and leaves the gradient to autograd; that of
the head enlarges the maps and joins them. The contenders take turns, and the minimum over the turns counts. `--clock
cpu` counts the processor's time of all threads. Memory is the growth of the resident high-water mark over that before,
each contender in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from measuring import growth_mib, own_process, write
from torch import Tensor
from torch.nn import functional as F

from matchlib.geometry.epipolar import fundamental_from_pose
from matchlib.methods.posfeat.config import KeypointLossConfig, NetworkConfig
from matchlib.methods.posfeat.head import KeypointHead
from matchlib.methods.posfeat.keypoint_loss import keypoint_loss
from matchlib.methods.posfeat.proposals import Proposals, propose

SIZE = (640, 480)
QUICK_SIZE = (320, 240)
WARM_UP_SIZE = (64, 32)
DESCRIPTOR_DIM = 128

Run = Callable[[], object]


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    size = QUICK_SIZE if options.quick else SIZE
    if options.measure_memory:
        sys.stdout.write(f"{memory_of(options.measure_memory, size)}\n")
        return
    write(
        f"{size[0]} x {size[1]}, {options.threads} threads, minimum of {options.repeats}, {options.clock} time; "
        f"torch {torch.__version__}\n\n"
        "| contender | forward + backward, ms | of transcription | memory, MiB |\n|---|---|---|---|\n"
    )
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for part in (loss_contenders, head_contenders):
        runs = part(size)
        seconds = measure(runs, options.repeats, clock)
        slowest = next(iter(seconds.values()))
        for name, value in seconds.items():
            memory = separate_memory(name, options) if options.memory else "-"
            write(f"| {name} | {value * 1e3:.0f} | {value / slowest:.2f} | {memory} |\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="at 320 x 240: a quarter of the proposals")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out the memory column"
    )
    parser.add_argument("--measure-memory", metavar="CONTENDER", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- the loss
def loss_contenders(size: tuple[int, int]) -> dict[str, Run]:
    """Inputs are made once: scores of noise, descriptors of image 1 those of image 0 in another order, disturbed."""
    config = KeypointLossConfig()
    generator = torch.Generator().manual_seed(0)
    width, height = size
    scores = [F.softplus(torch.randn(1, 1, height, width, generator=generator)) for _ in range(2)]
    drawn = [propose(s, config.cell_px, [7], name) for s, name in zip(scores, ("0", "1"), strict=True)]
    leaves = [Proposals(p.points, p.log_prob.detach().requires_grad_(), p.accepted) for p in drawn]
    count = drawn[0].points.shape[1]
    first = F.normalize(torch.randn(1, count, DESCRIPTOR_DIM, generator=generator), dim=2)
    order = torch.randperm(count, generator=generator)
    second = F.normalize(first[:, order] + 0.05 * torch.randn(first.shape, generator=generator), dim=2)
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], dtype=torch.float64)
    T = torch.eye(4, dtype=torch.float64)[None]
    T[:, :3, 3] = torch.tensor([1.0, 0.1, 0.2])
    F_0to1 = fundamental_from_pose(T, K, K)

    def ours() -> None:
        keypoint_loss(leaves[0], leaves[1], first, second, F_0to1, config).loss.backward()

    def direct() -> None:
        transcribed_loss(leaves[0], leaves[1], first, second, F_0to1.float(), config).backward()

    return {"loss, transcription": direct, "loss, matchlib": ours}


def transcribed_loss(
    first: Proposals, second: Proposals, f: Tensor, g: Tensor, F_0to1: Tensor, config: KeypointLossConfig
) -> Tensor:
    """The published formulas on arrays of all pairs."""
    with torch.no_grad():
        affinity = -config.temperature * (1 - f @ g.mT)
        log_P = affinity.log_softmax(2) + affinity.log_softmax(1)
        P = log_P.exp()
        x0, x1 = (F.pad(p.points, (0, 1), value=1.0) for p in (first, second))
        lines1, lines0 = x0 @ F_0to1.mT, x1 @ F_0to1
        d1 = (lines1 @ x1.mT).abs() / lines1[..., :2].norm(dim=2)[:, :, None].clamp_min(1e-8)
        d0 = (x0 @ lines0.mT).abs() / lines0[..., :2].norm(dim=2)[:, None, :].clamp_min(1e-8)
        good = (d0 < config.reward_threshold_px) & (d1 < config.reward_threshold_px)
        reward = torch.where(good, config.good, config.bad)
    both = first.accepted[:, :, None] & second.accepted[:, None, :]
    log_pi = first.log_prob[:, :, None] + second.log_prob[:, None, :]
    reinforce = (both * reward * P * (log_P + log_pi)).sum((1, 2))
    counted = sum((p.log_prob * p.accepted).sum(1) for p in (first, second))
    return (-reinforce + config.keypoint_penalty * counted).mean()


# ---------------------------------------------------------------- the head
def head_contenders(size: tuple[int, int]) -> dict[str, Run]:
    generator = torch.Generator().manual_seed(0)
    head = KeypointHead(NetworkConfig())
    head.initialise(generator)
    width, height = size
    fine, early = (torch.randn(1, c, height // 4, width // 4, generator=generator) for c in (128, 64))
    image = torch.randn(1, 3, height, width, generator=generator)

    def ours() -> None:
        head(fine, early, image).sum().backward()

    def direct() -> None:
        transcribed_head(head, fine, early, image).sum().backward()

    return {"head, transcription": direct, "head, matchlib": ours}


def transcribed_head(head: KeypointHead, fine: Tensor, early: Tensor, image: Tensor) -> Tensor:
    """The table of the layers, row by row."""
    coarse = head.relu(F.instance_norm(head.conv1(torch.cat([fine, early], 1))))
    resized = F.interpolate(coarse, image.shape[2:], mode="bilinear", align_corners=False)
    joined = torch.cat([resized, F.instance_norm(head.convimg(image))], 1)
    hidden = head.relu(F.instance_norm(head.conv2(joined)))
    return F.softplus(F.instance_norm(head.conv3(hidden)))


# ---------------------------------------------------------------- measuring
def measure(runs: dict[str, Run], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of the fastest of `repeats` turns; a first turn warms up."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


def separate_memory(contender: str, options: argparse.Namespace) -> str:
    quick = ["--quick"] if options.quick else []
    return own_process(__file__, "--threads", str(options.threads), "--measure-memory", contender, *quick)


def memory_of(contender: str, size: tuple[int, int]) -> int:
    """Growth of the resident high-water mark in MiB; a run on a small image first loads the libraries."""
    part = loss_contenders if contender.startswith("loss") else head_contenders
    part(WARM_UP_SIZE)[contender]()
    return growth_mib(part(size)[contender])


if __name__ == "__main__":
    main()
