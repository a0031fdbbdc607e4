"""Batches of two views of the same photographs, related by known homographies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from matchlib.errors import check_shape
from matchlib.geometry.homography import points_in_front, warp_points
from matchlib.geometry.sampling import inside


@dataclass(frozen=True, slots=True, kw_only=True)
class HomographyBatch:
    """B pairs with `homography` supervision; all views share one size H x W.

    image0, image1:       (B, 3, H, W) float32 RGB in [0, 1]
    H_0to1:               (B, 3, 3) float64, pixels of view 0 to pixels of view 1
    valid0, valid1:       (B, H, W) bool: the pixel shows the photograph, not the border that a warp brings in
    keypoints0/1:         labelled interest points inside each view, one (N_b, 2) float32 tensor per pair, or
                          None where the photographs carry no labels
    seeds:                one 63-bit seed per pair: any random draw for a pair must come from it
    names:                one readable name per pair, for messages and pictures
    """

    image0: Tensor
    image1: Tensor
    H_0to1: Tensor
    valid0: Tensor
    valid1: Tensor
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    keypoints0: tuple[Tensor, ...] | None = None
    keypoints1: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        sizes = check_shape("image0", self.image0, "B 3 H W")
        batch, height, width = sizes["B"], sizes["H"], sizes["W"]
        check_shape("image1", self.image1, f"{batch} 3 {height} {width}")
        check_shape("H_0to1", self.H_0to1, f"{batch} 3 3")
        check_shape("valid0", self.valid0, f"{batch} {height} {width}")
        check_shape("valid1", self.valid1, f"{batch} {height} {width}")

    def __len__(self) -> int:
        return int(self.image0.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the views."""
        return int(self.image0.shape[3]), int(self.image0.shape[2])

    def warp(self, points0_BN2: Tensor) -> tuple[Tensor, Tensor]:
        """Where pixels (B, N, 2) of view 0 lie in view 1, float32, and whether that is known, (B, N) bool.

        Known: the point lies inside both views and both show the photograph there.
        """
        wide = points0_BN2.double()
        points1 = warp_points(wide, self.H_0to1)
        known = points_in_front(wide, self.H_0to1)
        known &= _shows_photograph(self.valid0, wide) & _shows_photograph(self.valid1, points1)
        return points1.to(points0_BN2.dtype), known

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> HomographyBatch:
        """The same batch on another device."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, tuple):
                return tuple(moved(item) for item in value)
            return value

        return HomographyBatch(**{name: moved(getattr(self, name)) for name in self.__slots__})

    @staticmethod
    def stack(batches: list[HomographyBatch]) -> HomographyBatch:
        """Join batches along B."""
        joined: dict[str, Any] = {}
        for name in HomographyBatch.__slots__:
            values = [getattr(batch, name) for batch in batches]
            if isinstance(values[0], Tensor):
                joined[name] = torch.cat(values)
            else:
                joined[name] = (
                    None if values[0] is None else tuple(item for value in values for item in value)
                )
        return HomographyBatch(**joined)


def _shows_photograph(valid_BHW: Tensor, points_BN2: Tensor) -> Tensor:
    """(B, N) bool: inside the view, and the nearest pixel is valid."""
    height, width = valid_BHW.shape[1:]
    within = inside(points_BN2, height, width)
    nearest = torch.where(within[..., None], points_BN2, 0).round().long()
    index = nearest[..., 1] * width + nearest[..., 0]
    return within & valid_BHW.flatten(1).gather(1, index)
