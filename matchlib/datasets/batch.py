"""Batches of training pairs, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from matchlib.errors import check_shape

if TYPE_CHECKING:  # the graph imports every module of this package, and must not pay for torch
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseBatch:
    """B pairs with `pose` supervision; images of a batch share one size H x W.

    image0, image1: (B, 3, H, W) float32 RGB in [0, 1]
    K0, K1:         (B, 3, 3) float32, pixels of these H x W images
    T_0to1:         (B, 4, 4) float32, camera-0 to camera-1 coordinates; scene units, never without translation
    seeds:          one 63-bit seed per pair: any random draw for a pair must come from it
    names:          one readable name per pair, for messages and pictures
    """

    image0: Tensor
    image1: Tensor
    K0: Tensor
    K1: Tensor
    T_0to1: Tensor
    seeds: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = check_shape("image0", self.image0, "B 3 H W")
        batch, height, width = sizes["B"], sizes["H"], sizes["W"]
        check_shape("image1", self.image1, f"{batch} 3 {height} {width}")
        check_shape("K0", self.K0, f"{batch} 3 3")
        check_shape("K1", self.K1, f"{batch} 3 3")
        check_shape("T_0to1", self.T_0to1, f"{batch} 4 4")

    def __len__(self) -> int:
        return int(self.image0.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking) if hasattr(value, "device") else value
            for f in fields(self)
            for value in (getattr(self, f.name),)
        }
        return type(self)(**moved)

    @classmethod
    def stack(cls, batches: list[Self]) -> Self:
        """Join batches along B; used as `collate_fn` over single pairs."""
        import torch

        joined: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(batch, f.name) for batch in batches]
            is_tensor = isinstance(values[0], torch.Tensor)
            joined[f.name] = torch.cat(values) if is_tensor else tuple(item for v in values for item in v)
        return cls(**joined)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch(PoseBatch):
    """B pairs with `depth_pose` supervision.

    depth0, depth1: (B, H, W) float32 z-depth in scene units, 0 = unknown, of the images of `PoseBatch`
    """

    depth0: Tensor
    depth1: Tensor

    def __post_init__(self) -> None:
        PoseBatch.__post_init__(self)
        batch, _, height, width = self.image0.shape
        check_shape("depth0", self.depth0, f"{batch} {height} {width}")
        check_shape("depth1", self.depth1, f"{batch} {height} {width}")
