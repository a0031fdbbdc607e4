"""Exact synthetic training pairs for methods that need depth and pose."""

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
    frequency = 2 ** (0.5 + 2.5 * torch.rand(count, generator=generator))  # up to 8 per unit
    direction = torch.stack([angle.cos(), angle.sin()]) * frequency
    phase = 2 * math.pi * torch.rand(count, generator=generator)
    mixing = torch.randn(count, 3, generator=generator) / count**0.5
    return (0.5 + 0.35 * torch.sin(2 * math.pi * points.float() @ direction + phase) @ mixing).clamp(0, 1)


def _rotation(axis_angle: torch.Tensor) -> torch.Tensor:
    x, y, z = axis_angle.tolist()
    generator = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.matrix_exp(generator)


def make_planar_pair(size: int = 64, seed: int = 0, motion: float = 1.0) -> PairBatch:
    """Two views of the textured plane z = 2 of camera 0, with exact depth; `motion` scales the pose."""
    K = torch.tensor([[size, 0, (size - 1) / 2], [0, size, (size - 1) / 2], [0, 0, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1000 + seed)
    R = _rotation(0.12 * motion * (2 * torch.rand(3, generator=generator) - 1))
    t = 0.2 * motion * (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1)
    T_0to1 = torch.eye(4, dtype=torch.float64)
    T_0to1[:3, :3], T_0to1[:3, 3] = R, t
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ torch.linalg.inv(K).T
    normal1 = R @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    depth0 = torch.full((size, size), 2.0, dtype=torch.float64)
    depth1 = (2.0 + normal1 @ t) / (rays @ normal1)
    on_plane1 = (rays * depth1[..., None] - t) @ R
    image0 = _texture((rays * 2.0)[..., :2], seed).permute(2, 0, 1)
    image1 = _texture(on_plane1[..., :2], seed).permute(2, 0, 1)
    return PairBatch(
        image0=image0[None],
        image1=image1[None],
        depth0=depth0[None].float(),
        depth1=depth1[None].float(),
        K0=K[None].float(),
        K1=K[None].float(),
        T_0to1=T_0to1[None].float(),
        seeds=(seed + 17,),
        names=(f"plane-{seed}",),
    )


@pytest.fixture
def planar_pair() -> Callable[..., PairBatch]:
    return make_planar_pair
