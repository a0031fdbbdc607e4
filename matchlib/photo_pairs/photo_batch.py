"""Batches of photographs on their way to the device, where their two views are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import ShapeError, check_shape
from matchlib.geometry.homography import points_in_front, warp_points
from matchlib.geometry.sampling import inside
from matchlib.photo_pairs.batch import HomographyBatch
from matchlib.photo_pairs.config import WarpConfig
from matchlib.photo_pairs.homographies import FRAME_TOLERANCE_PX
from matchlib.photo_pairs.photometric import change_view


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoBatch:
    """B photographs with the homographies of their two views; small, so that it is cheap to hand on.

    photos:                     (B, 3, H, W) uint8 RGB frames
    H_photo_to_0, H_photo_to_1: (B, 3, 3) float64, pixels of the frame to pixels of the views, H[2, 2] = 1
    labels:                     interest points in pixels of the frame, one (K_b, 2) float32 tensor per
                                photograph, or None where there are no labels
    warps:                      settings of each pair
    seeds, names:               as in HomographyBatch
    """

    photos: Tensor
    H_photo_to_0: Tensor
    H_photo_to_1: Tensor
    labels: tuple[Tensor, ...] | None
    warps: tuple[WarpConfig, ...]
    seeds: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        batch = check_shape("photos", self.photos, "B 3 H W")["B"]
        check_shape("H_photo_to_0", self.H_photo_to_0, f"{batch} 3 3")
        check_shape("H_photo_to_1", self.H_photo_to_1, f"{batch} 3 3")

    def __len__(self) -> int:
        return int(self.photos.shape[0])

    @staticmethod
    def stack(batches: list[PhotoBatch]) -> PhotoBatch:
        """Join batches along B. Raises ShapeError if only some have labels."""
        joined: dict[str, Any] = {}
        for name in PhotoBatch.__slots__:
            values = [getattr(batch, name) for batch in batches]
            if isinstance(values[0], Tensor):
                joined[name] = torch.cat(values)
            elif all(value is None for value in values):
                joined[name] = None
            elif any(value is None for value in values):
                raise ShapeError(f"{name}: expected them in all batches or in none, got them in some")
            else:
                joined[name] = tuple(item for value in values for item in value)
        return PhotoBatch(**joined)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> HomographyBatch:
        """The views of all pairs, made on the device: warped, then changed photometrically.

        Every pair is treated by itself and by its own seed, so its views do not depend on the rest of the batch.
        """
        photos = self.photos.to(device, non_blocking=non_blocking).float().div_(255)
        # Homographies are inverted and joined on the CPU: nine numbers each, the same bits for every device.
        H_0to1 = torch.stack(
            [
                H_1 @ torch.linalg.inv(H_0)
                for H_0, H_1 in zip(self.H_photo_to_0, self.H_photo_to_1, strict=True)
            ]
        )
        views = [self._view(photos, view) for view in (0, 1)]
        return HomographyBatch(
            image0=views[0][0],
            image1=views[1][0],
            H_0to1=(H_0to1 / H_0to1[:, 2:, 2:]).to(device, non_blocking=non_blocking),
            valid0=views[0][1],
            valid1=views[1][1],
            seeds=self.seeds,
            names=self.names,
            keypoints0=views[0][2],
            keypoints1=views[1][2],
        )

    def _view(self, photos: Tensor, view: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """Images (B, 3, H, W), valid masks (B, H, W) and keypoints of view 0 or 1."""
        H_B33 = self.H_photo_to_1 if view else self.H_photo_to_0
        H_inverse = torch.stack([torch.linalg.inv(H) for H in H_B33]).to(photos.device)
        warped, shows_photo = read_view(photos, H_inverse)
        images = [
            change_view(image, config.photometric, seed=seed, view=view)
            for image, config, seed in zip(warped, self.warps, self.seeds, strict=True)
        ]
        valid = torch.stack(
            [erode(mask, config.border_px) for mask, config in zip(shows_photo, self.warps, strict=True)]
        )
        keypoints = None
        if self.labels is not None:
            keypoints = tuple(
                _keypoints(labels.to(photos.device), H, mask)
                for labels, H, mask in zip(self.labels, H_B33.to(photos.device), valid, strict=True)
            )
        return torch.stack(images), valid, keypoints


def read_view(photos: Tensor, H_view_to_photo: Tensor) -> tuple[Tensor, Tensor]:
    """Photographs (B, C, H, W) seen through homographies, and where a view pixel shows its photograph, (B, H, W) bool.

    H_view_to_photo: (B, 3, 3) float64 on the same device, exact inverses of homographies with H[2, 2] = 1, so that
    w > 0 before the horizon. Bilinear between pixel centres; black outside.
    """
    height, width = photos.shape[-2:]
    x = torch.arange(width, dtype=torch.float64, device=photos.device)
    y = torch.arange(height, dtype=torch.float64, device=photos.device)[:, None]
    # Term by term, not as a matrix product: the bits must not depend on the size of the batch.
    h = H_view_to_photo[:, :, :, None, None].unbind(1)
    px, py, w = (row[:, 0] * x + (row[:, 1] * y + row[:, 2]) for row in h)
    is_in_front = w > 0
    px, py = px / w, py / w
    limit = FRAME_TOLERANCE_PX
    shows_photo = is_in_front & (px >= -limit) & (px <= width - 1 + limit)
    shows_photo &= (py >= -limit) & (py <= height - 1 + limit)
    # grid_sample with align_corners puts -1 and 1 at the centres of the outermost pixels. Beyond 3 nothing is read.
    grid = torch.stack([px * (2 / (width - 1)) - 1, py * (2 / (height - 1)) - 1], dim=-1)
    grid = torch.where(is_in_front[..., None], grid, 3.0).clamp(-3.0, 3.0).float()
    images = F.grid_sample(photos, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return images, shows_photo


def erode(valid_HW: Tensor, radius_px: int) -> Tensor:
    """(H, W) bool without the pixels within `radius_px` of one that is not valid. The image's own edge takes none."""
    if radius_px == 0:
        return valid_HW
    offset = torch.arange(-radius_px, radius_px + 1, device=valid_HW.device) ** 2
    disc = (offset[:, None] + offset <= radius_px**2).float()
    invalid = (~valid_HW).float()[None, None]
    return F.conv2d(invalid, disc[None, None], padding=radius_px)[0, 0] < 0.5


def _keypoints(labels_K2: Tensor, H_photo_to_view: Tensor, valid_HW: Tensor) -> Tensor:
    """The labels (N, 2) float32 that lie in the view where its nearest pixel is valid."""
    height, width = valid_HW.shape
    wide = labels_K2.double()
    points = warp_points(wide, H_photo_to_view)
    is_seen = points_in_front(wide, H_photo_to_view) & inside(points, height, width)
    points = points[is_seen]
    x, y = points.round().long().unbind(-1)
    return points[valid_HW[y, x]].float()
