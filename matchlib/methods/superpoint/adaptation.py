"""Homographic adaptation: interest points of a photograph from a detector's opinion of many warps of it.

Source: DeTone et al., CVPRW 2018, section 5; details after rpautrat/SuperPoint. One difference: the count that
divides the sum of probabilities is the sum of the very weights that entered it (eroded mask, read back
bilinearly), so that the result is a mean everywhere; the source divides by a count that is eroded on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.features.types import Float32, Image
from matchlib.geometry.homography import points_in_front, warp_points
from matchlib.geometry.sampling import inside, pixel_grid, sample_bilinear
from matchlib.methods.superpoint.config import AdaptationConfig
from matchlib.methods.superpoint.network import CELL, SuperPointNetwork, check_image, grey_from_image
from matchlib.methods.superpoint.postprocess import heatmap, select_keypoints
from matchlib.photo_pairs.homographies import adaptation_homographies
from matchlib.randomness import generator_for

Detector = Callable[[Tensor], Tensor]
"""Grey views (B, 1, H, W) in [0, 1] to probabilities (B, H, W)."""


class AdaptationLabeller:
    """See `matchlib.photo_pairs.labelling.Labeller`."""

    def __init__(self, network: SuperPointNetwork, config: AdaptationConfig, *, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._network = network
        self._config = config
        self._device = next(network.parameters()).device

    @torch.inference_mode()
    def label(self, image: Image, seed: int) -> Float32:
        """Interest points (K, 3) float32: x, y in pixels of the (H, W, 3) uint8 RGB image, score; best first.

        The warps are a function of `seed`. An image without pixels has none. Raises ShapeError.
        """
        check_image(image)
        if not image.size:
            return np.zeros((0, 3), np.float32)
        config = self._config
        frame = frame_of(image, config)
        height, width = frame.image.shape[:2]
        generator = generator_for(seed, "superpoint", "adaptation")
        homographies = adaptation_homographies(config.views, (width, height), generator, config.warps)
        heat_HW = adapted_heatmap(
            self._probability,
            grey_from_image(frame.image, self._device),
            torch.from_numpy(homographies),
            config,
        )
        points_N2, scores_N = select_keypoints(heat_HW, config.detection)
        original_N2 = frame.to_original(points_N2.cpu().numpy())
        return np.column_stack([original_N2, scores_N.cpu().numpy()]).astype(np.float32)

    def _probability(self, views_B1HW: Tensor) -> Tensor:
        return heatmap(self._network.detector_logits(views_B1HW), softmax=self._config.detection.softmax)


@torch.no_grad()
def adapted_heatmap(
    detect: Detector, grey_11HW: Tensor, homographies_V33: Tensor, config: AdaptationConfig
) -> Tensor:
    """The detector's map of a frame, (H, W), aggregated over V views of it; on the device of the frame.

    homographies_V33: float64, pixels of the frame to pixels of the view. Views are as large as the frame and
    black where they do not show it. Detections there, and within `border_erosion` of there, do not count.
    Pixels that no view (or fewer than `min_views`) shows have probability 0. The identity as the only view
    gives exactly the map of plain detection. Raises ShapeError.
    """
    check_shape("grey", grey_11HW, "1 1 H W")
    check_shape("homographies", homographies_V33, "V 3 3")
    height, width = grey_11HW.shape[2:]
    total_HW, count_HW, largest_HW = (grey_11HW.new_zeros(height, width) for _ in range(3))
    homographies_V33 = homographies_V33.to(grey_11HW.device, torch.float64)
    for first in range(0, len(homographies_V33), config.batch_size):
        H_B33 = homographies_V33[first : first + config.batch_size]
        views, shown = _warp(grey_11HW.expand(len(H_B33), -1, -1, -1), torch.linalg.inv(H_B33))
        mask_B1HW = _erode(shown[:, None].float(), config.border_erosion)
        weighted = detect(views)[:, None] * mask_B1HW
        back, _ = _warp(torch.cat([weighted, mask_B1HW], dim=1), H_B33)
        total_HW += back[:, 0].sum(dim=0)
        count_HW += back[:, 1].sum(dim=0)
        largest_HW = torch.maximum(largest_HW, back[:, 0].amax(dim=0))
    if config.aggregate == "sum":
        aggregated_HW = torch.where(count_HW > 0, total_HW / count_HW, 0.0)
    else:
        aggregated_HW = largest_HW
    return torch.where(count_HW >= config.min_views, aggregated_HW, 0.0)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the detector sees of a photograph: a part of it, resized.

    image:  (h, w, 3) uint8 RGB, h and w multiples of 8
    origin: (x, y) of the part's first pixel in the photograph
    extent: (width, height) of the part in pixels of the photograph
    """

    image: Image
    origin: tuple[int, int]
    extent: tuple[int, int]

    def to_original(self, points_N2: Float32) -> Float32:
        """Positions (N, 2) of frame pixels in the photograph; corners of areas lie on corners of areas."""
        size = (self.image.shape[1], self.image.shape[0])
        ratio = np.array(self.extent) / np.array(size)
        original = (points_N2 + 0.5) * ratio - 0.5 + np.array(self.origin)
        return np.asarray(original, dtype=np.float32)


def frame_of(image: Image, config: AdaptationConfig) -> Frame:
    """The frame of an (H, W, 3) uint8 image, H and W above 0, that `config.frame` and `config.size` ask for.

    Enlarges photographs that are smaller. "crop" cuts whole pixels of the photograph before it resizes.
    """
    height, width = image.shape[:2]
    if config.frame == "crop":
        size = config.size
        extent = (
            max(1, min(width, round(height * size[0] / size[1]))),
            max(1, min(height, round(width * size[1] / size[0]))),
        )
    else:
        side = math.sqrt(config.size[0] * config.size[1])
        shape = math.sqrt(width / height)
        size = (_whole_cells(side * shape), _whole_cells(side / shape))
        extent = (width, height)
    origin = ((width - extent[0]) // 2, (height - extent[1]) // 2)
    part = image[origin[1] : origin[1] + extent[1], origin[0] : origin[0] + extent[0]]
    shrinks = size[0] * size[1] < extent[0] * extent[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(part, size, interpolation=interpolation)
    return Frame(np.asarray(resized, np.uint8), origin, extent)


def _whole_cells(length: float) -> int:
    return max(1, round(length / CELL)) * CELL


def _warp(maps_BCHW: Tensor, H_out_to_in_B33: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) read bilinearly at H of every output pixel, 0 outside, and which pixels lie inside,
    (B, H, W) bool."""
    count, channels, height, width = maps_BCHW.shape
    pixels_N2 = pixel_grid(height, width, device=maps_BCHW.device).double()
    points_BN2 = warp_points(pixels_N2, H_out_to_in_B33)
    known_BN = points_in_front(pixels_N2, H_out_to_in_B33) & inside(points_BN2, height, width)
    values_BCN = sample_bilinear(maps_BCHW, points_BN2.to(maps_BCHW.dtype)) * known_BN[:, None]
    return values_BCN.reshape(count, channels, height, width), known_BN.reshape(count, height, width)


def _erode(mask_B1HW: Tensor, radius: int) -> Tensor:
    """The mask without pixels within `radius` of one that it does not hold; outside the map counts as held."""
    if radius == 0:
        return mask_B1HW
    axis = torch.arange(-radius, radius + 1, device=mask_B1HW.device)
    disc = (axis[:, None] ** 2 + axis**2 <= radius**2).to(mask_B1HW.dtype)
    missing = F.conv2d(1 - mask_B1HW, disc[None, None], padding=radius)
    return (missing < 0.5).to(mask_B1HW.dtype)
