"""Posed pairs with exact truth: a plane of random colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from matchlib.datasets.batch import PairBatch


def _texture(points: torch.Tensor, seed: int) -> torch.Tensor:
    """A smooth random colour (..., 3) in [0, 1] for each point (..., 2) of a plane: waves of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    count = 60
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    frequency = 2 ** (0.5 + 2.0 * torch.rand(count, generator=generator))  # waves per unit, up to 6
    direction = torch.stack([angle.cos(), angle.sin()]) * frequency
    phase = 2 * math.pi * torch.rand(count, generator=generator)
    mixing = torch.randn(count, 3, generator=generator) / count**0.5
    return (0.5 + 0.35 * torch.sin(2 * math.pi * points.float() @ direction + phase) @ mixing).clamp(0, 1)


def make_posed_pair(size: tuple[int, int] = (128, 96), seed: int = 0) -> PairBatch:
    """Two views of the plane z = 2 of camera 0, of `size` = (width, height), never without a baseline."""
    width, height = size
    K = torch.tensor(
        [[height, 0, (width - 1) / 2], [0, height, (height - 1) / 2], [0, 0, 1]], dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(5000 + seed)
    x, y, z = (0.2 * (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1)).tolist()
    turn = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    heading = 2 * math.pi * torch.rand(1, generator=generator, dtype=torch.float64)
    t = torch.cat([0.35 * heading.cos(), 0.35 * heading.sin(), torch.zeros(1, dtype=torch.float64)])
    T_0to1 = torch.eye(4, dtype=torch.float64)
    T_0to1[:3, :3], T_0to1[:3, 3] = torch.matrix_exp(turn), t
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    rays = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1) @ torch.linalg.inv(K).T
    normal1 = T_0to1[:3, 2]
    depth0 = torch.full((height, width), 2.0, dtype=torch.float64)
    depth1 = (2.0 + normal1 @ t) / (rays @ normal1)
    on_plane1 = (rays * depth1[..., None] - t) @ T_0to1[:3, :3]
    return PairBatch(
        image0=_texture((rays * 2.0)[..., :2], seed).permute(2, 0, 1)[None],
        image1=_texture(on_plane1[..., :2], seed).permute(2, 0, 1)[None],
        depth0=depth0[None].float(),
        depth1=depth1[None].float(),
        K0=K[None].float(),
        K1=K[None].float(),
        T_0to1=T_0to1[None].float(),
        seeds=(seed + 17,),
        names=(f"plane/{seed}",),
    )


@pytest.fixture
def posed_pair() -> Callable[..., PairBatch]:
    return make_posed_pair
