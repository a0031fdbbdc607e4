"""What the loss is computed on: pixels drawn in view 0, their partners, and negatives mined in view 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.msnet.config import LossConfig
from matchlib.methods.msnet.network import DESCRIPTOR_STRIDE
from matchlib.ops.mining import hardest_negatives
from matchlib.photo_pairs.batch import HomographyBatch
from matchlib.randomness import generator_for


@dataclass(frozen=True, slots=True)
class Correspondences:
    """N pixels (N, 2) of view 0 and their true positions (N, 2) in view 1, float32, in pixels; N may be 0."""

    points0: Tensor
    points1: Tensor

    def __len__(self) -> int:
        return int(self.points0.shape[0])


def draw_correspondences(batch: HomographyBatch, *, most: int, purpose: str) -> list[Correspondences]:
    """For each pair up to `most` pixels of view 0, uniformly among those whose true position is known.

    Drawn from the seed of the pair and `purpose`. Positions are exact: differs from the published code, which
    cuts them to integers.
    """
    width, height = batch.size
    grid = pixel_grid(height, width, device=batch.image0.device)
    points1, known = batch.warp(grid.expand(len(batch), -1, 2))
    drawn = []
    for index, seed in enumerate(batch.seeds):
        candidates = known[index].nonzero()[:, 0]
        generator = generator_for(seed, "msnet", purpose)
        chosen = generator.choice(len(candidates), min(most, len(candidates)), replace=False)
        pixels = candidates[torch.from_numpy(chosen).to(candidates.device)]
        drawn.append(Correspondences(grid[pixels], points1[index, pixels]))
    return drawn


@torch.no_grad()
def mine_negatives(
    descriptors0_ND: Tensor,
    map1_Dhw: Tensor,
    points1_N2: Tensor,
    valid1_HW: Tensor,
    config: LossConfig,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The cells of view 1 most like the descriptors, off the true positions.

    Returns (x, y) in cells (N, 2) float32, and (N,) bool: false, and (0, 0), where no cell is left.

    descriptors0_ND: of unit length; map1_Dhw is brought to it here (differs from the published V2, whose map
                     is compared as it is, so that short descriptors seem near)
    valid1_HW:       cells whose pixel does not show the photograph are no candidates
    The phase of the search grid is drawn from `seed`.
    """
    height, width = map1_Dhw.shape[1:]
    generator = generator_for(seed, "msnet", "mining phase")
    interval = config.mining_interval
    x, y = (int(generator.integers(min(interval, size))) for size in (width, height))
    # Mining refuses values that are not finite; the loss shows them to the trainer, which skips the step.
    queries, candidates = (torch.nan_to_num(t) for t in (descriptors0_ND, F.normalize(map1_Dhw, dim=0)))
    mined = hardest_negatives(
        queries[None],
        candidates[None],
        points1_N2[None] / DESCRIPTOR_STRIDE,
        config.mining_radius_cells,
        interval=interval,
        phase=(x, y),
        valid=valid1_HW[None, ::DESCRIPTOR_STRIDE, ::DESCRIPTOR_STRIDE],
    )
    index = mined.index[0, :, 0]
    is_mined = index >= 0
    index = index.clamp_min(0)
    return torch.stack([index % width, index // width], dim=1).float(), is_mined
