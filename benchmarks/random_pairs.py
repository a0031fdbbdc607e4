"""Pairs of random images in memory: what the benchmarks of training read, so that reading costs the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from matchlib.datasets.batch import PairBatch
from matchlib.randomness import torch_generator_for


@dataclass(frozen=True)
class PosedPairs:
    """Random square images of side `size` with a plausible camera, moved sideways by a tenth of the depth.

    loaded: the indices that this process loaded, in order
    """

    size: int
    loaded: list[int] = field(default_factory=list)
    digest: str = "memory"

    def __len__(self) -> int:
        return 16

    def load(self, index: int, seed: int) -> PairBatch:
        """One pair; the same every time."""
        self.loaded.append(index)
        side = self.size
        images = torch.rand(2, 1, 3, side, side, generator=torch_generator_for(0, index))
        K = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]], dtype=torch.float32)[None]
        T_0to1 = torch.eye(4)[None].clone()
        T_0to1[:, 0, 3] = 0.1
        depth = torch.ones(1, side, side)
        return PairBatch(
            image0=images[0],
            image1=images[1],
            depth0=depth,
            depth1=depth,
            K0=K,
            K1=K,
            T_0to1=T_0to1,
            seeds=(seed,),
            names=(f"pair{index}",),
        )
