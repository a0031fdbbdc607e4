"""Losses of SuperPoint's detector and descriptor: plain functions on tensors.

Source: DeTone, Malisiewicz, Rabinovich, CVPRW 2018, equations 2 to 6, and rpautrat/SuperPoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.geometry.homography import points_in_front, warp_points
from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.superpoint.network import CELL, DETECTOR_CHANNELS
from matchlib.methods.superpoint.training_config import LossConfig

PUBLISHED_CELLS = 30 * 40
"""Cells of the views of 240 x 320 pixels for which the weights of the loss were published."""


@dataclass(frozen=True, slots=True)
class DescriptorLoss:
    """Hinge loss over pairs of cells.

    loss:     scalar, not yet weighted by lambda
    positive: scalar, its share from corresponding cells (with their weight lambda_d)
    negative: scalar, its share from all others
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor


def detector_loss(logits: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
    """Cross-entropy over 65 classes, mean over the cells of each picture that count, then over pictures.

    logits: (B, 65, h, w); classes: (B, h, w) int64 in 0..64; counts: (B, h, w) bool. A picture without any
    cell that counts has loss 0, still tied to the logits. Scalar of the logits' dtype, half precision raised to
    float32. Raises ShapeError.
    """
    sizes = check_shape("logits", logits, f"B {DETECTOR_CHANNELS} h w")
    check_shape("classes", classes, f"{sizes['B']} {sizes['h']} {sizes['w']}")
    check_shape("counts", counts, f"{sizes['B']} {sizes['h']} {sizes['w']}")
    loss_Bhw = F.cross_entropy(_precise(logits), classes, reduction="none")
    weight_Bhw = counts.to(loss_Bhw)
    mean_B = (loss_Bhw * weight_Bhw).sum((1, 2)) / weight_Bhw.sum((1, 2)).clamp_min(1)
    return mean_B.mean()


def descriptor_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    counts0: Tensor,
    counts1: Tensor,
    config: LossConfig,
) -> DescriptorLoss:
    """Hinge loss over all pairs of a cell of view 0 and a cell of view 1, mean over pairs of views.

    descriptors0, descriptors1: (B, D, h, w), any length
    H_0to1:           (B, 3, 3) float64, pixels of view 0 to pixels of view 1
    counts0, counts1: (B, h, w) bool: cells that show the photograph; pairs of such cells enter the mean
    For unit descriptors d, d' and similarity t = d . d' ("normalised": after `normalise_similarity`), a pair
    costs lambda_d max(0, m_p - t) if it corresponds and max(0, t - m_n) if not; with `scale_with_cells` these are
    multiplied by h w / 1200, in the paper's form the first only. Raises ShapeError.

    differs from rpautrat/SuperPoint: cells of view 0 that show no photograph are left out as well, and in the
    form "normalised" such cells do not take part in the normalisation.
    """
    sizes = check_shape("descriptors0", descriptors0, "B D h w")
    check_shape("descriptors1", descriptors1, f"{sizes['B']} {sizes['D']} {sizes['h']} {sizes['w']}")
    check_shape("H_0to1", H_0to1, f"{sizes['B']} 3 3")
    for name, counts in (("counts0", counts0), ("counts1", counts1)):
        check_shape(name, counts, f"{sizes['B']} {sizes['h']} {sizes['w']}")
    # Pair by pair: several arrays of (h w)^2 values live at a time.
    parts = [
        _pair_loss(
            _unit_rows(descriptors0[pair]),
            _unit_rows(descriptors1[pair]),
            corresponding_cells(H_0to1[pair], (sizes["h"], sizes["w"]), config),
            counts0[pair].flatten()[:, None] & counts1[pair].flatten(),
            config,
        )
        for pair in range(sizes["B"])
    ]
    positive, negative = (torch.stack(part).mean() for part in zip(*parts, strict=True))
    return DescriptorLoss(positive + negative, positive, negative)


def corresponding_cells(H_0to1: Tensor, cells: tuple[int, int], config: LossConfig) -> Tensor:
    """(C, C) bool for C = h w cells row by row: the centre of cell c, warped, lies within the radius of c'.

    H_0to1: (3, 3) float64; cells: (h, w). A centre on or beyond the horizon corresponds to nothing.
    """
    h, w = cells
    offset = (CELL - 1) / 2 if config.cell_centres == "exact" else CELL / 2
    centres_C2 = pixel_grid(h, w, device=H_0to1.device).to(H_0to1.dtype) * CELL + offset
    warped_C2 = warp_points(centres_C2, H_0to1)
    # cdist's default takes a matrix product, which cancels: distances near the radius would fall on either side.
    distance = torch.cdist(warped_C2, centres_C2, compute_mode="donot_use_mm_for_euclid_dist")
    near: Tensor = distance <= config.correspondence_radius_px
    return near & points_in_front(centres_C2, H_0to1)[:, None]


def normalise_similarity(similarity: Tensor) -> Tensor:
    """Clamp similarities (N, M) at 0, scale each row to unit length, then each column.

    Rows and columns without any positive value stay 0. Source: rpautrat/SuperPoint.
    """
    return F.normalize(F.normalize(similarity.relu(), dim=1, eps=1e-6), dim=0, eps=1e-6)


def _pair_loss(
    descriptors0_CD: Tensor, descriptors1_CD: Tensor, same_CC: Tensor, counts_CC: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Contributions (positive, negative) of one pair of views."""
    similarity_CC = descriptors0_CD @ descriptors1_CD.T
    if config.descriptor == "normalised":
        similarity_CC = normalise_similarity(similarity_CC * counts_CC)
    positive_factor, negative_factor = _size_factors(len(counts_CC), config)
    total = counts_CC.sum().clamp_min(1)
    too_far = (config.positive_margin - similarity_CC).relu() * (same_CC & counts_CC)
    too_near = (similarity_CC - config.negative_margin).relu() * (~same_CC & counts_CC)
    return (
        positive_factor * config.lambda_d * too_far.sum() / total,
        negative_factor * too_near.sum() / total,
    )


def _size_factors(cells: int, config: LossConfig) -> tuple[float, float]:
    """What positive and negative parts are multiplied by in views of so many cells (`scale_with_cells`).

    Per cell, the number of corresponding cells is constant. So is that of similar other cells after
    normalisation, whose rows have unit length; without it, it grows with the number of cells.
    """
    factor = cells / PUBLISHED_CELLS if config.scale_with_cells else 1.0
    return (factor, factor) if config.descriptor == "normalised" else (factor, 1.0)


def _unit_rows(map_Dhw: Tensor) -> Tensor:
    """(h w, D): unit descriptors row by row of the map."""
    return F.normalize(_precise(map_Dhw).flatten(1).T, dim=1)


def _precise(values: Tensor) -> Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
