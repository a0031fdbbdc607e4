"""Small HPatches folders and describers whose PCK is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from matchlib.datasets.hpatches import write_homography
from matchlib.datasets.images import write_image
from matchlib.features.dense import MemberPairs

SIZE = (96, 72)
Place = Callable[[Tensor, int], Tensor]


def textured_image(k: int, size: tuple[int, int] = SIZE, margin: int = 0) -> np.ndarray:
    """Noise in red and green inside a flat margin; blue is 10 k everywhere, so that image k can be told."""
    image = np.full((size[1], size[0], 3), 100, np.uint8)
    inside = (slice(margin, size[1] - margin), slice(margin, size[0] - margin))
    shape = image[inside].shape[:2]
    image[*inside, :2] = np.random.default_rng(7).integers(0, 256, (*shape, 2))
    image[..., 2] = 10 * k
    return image


def write_world(root: Path, homographies: dict[str, list[np.ndarray]], *, margin: int = 0) -> Path:
    """One sequence per name with its five homographies; all images are textured and of SIZE."""
    for name, matrices in homographies.items():
        for k in range(1, 7):
            write_image(root / name / f"{k}.ppm", textured_image(k, margin=margin))
        for k, H in enumerate(matrices, start=2):
            write_homography(root / name / f"H_1_{k}", H)
    return root


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def encode(points: Tensor) -> Tensor:
    """(N, 8) unit vectors whose dot product falls strictly with the distance, up to some 100 px."""
    angles = points.double() * (np.pi / 400)
    parts = [f(a * angles) for a in (1, 3) for f in (torch.cos, torch.sin)]
    vectors = torch.cat(parts, dim=1)
    return (vectors / vectors.norm(dim=1, keepdim=True)).float()


@dataclass
class ToyDense:
    k: int
    describer: ToyDescriber

    def at(self, points: Tensor) -> Tensor:
        places = self.describer.place(points.double(), self.k)
        members = [encode(places) for _ in self.describer.members]
        return torch.stack(members, dim=1)


@dataclass
class ToyDescriber:
    """The descriptor of a point of image k is the code of `place(point, k)`: where image 1 has its partner."""

    place: Place = lambda points, k: points
    name: str = "toy"
    fingerprint: str = "f" * 64
    descriptor_dim: int = 8
    members: tuple[str, ...] = ("only",)
    member_pairs: MemberPairs = "all"
    uses_true_scale: bool = False
    seen: list[tuple[int, np.ndarray | None]] = field(default_factory=list)

    def describe(self, image: np.ndarray, *, scale: np.ndarray | None = None) -> ToyDense:
        k = int(image[0, 0, 2]) // 10
        self.seen.append((k, scale))
        return ToyDense(k, self)


class RandomDescriber(ToyDescriber):
    """Descriptors that say nothing: other random vectors in every image."""

    def describe(self, image: np.ndarray, *, scale: np.ndarray | None = None) -> RandomDense:
        self.seen.append((int(image[0, 0, 2]) // 10, scale))
        return RandomDense(seed=len(self.seen))


@dataclass
class RandomDense:
    seed: int

    def at(self, points: Tensor) -> Tensor:
        vectors = torch.randn(len(points), 1, 8, generator=torch.Generator().manual_seed(self.seed))
        return vectors / vectors.norm(dim=2, keepdim=True)
