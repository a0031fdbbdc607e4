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
from matchlib.geometry.sampling import inside, pixel_grid, sample_bilinear
from matchlib.methods.superpoint.network import CELL, DETECTOR_CHANNELS
from matchlib.methods.superpoint.training_config import LossConfig

PUBLISHED_CELLS = 30 * 40
"""Cells of the views of 240 x 320 pixels for which the weights of the loss were published."""


@dataclass(frozen=True, slots=True)
class DescriptorLoss:
    """Loss of the descriptors.

    loss:     scalar, not yet weighted by lambda
    positive: scalar, its share from corresponding cells (with their weight lambda_d; dual_softmax: minus the mean
              scaled similarity of corresponding places)
    negative: scalar, its share from all others (dual_softmax: the mean logarithm of the sum of exponentials)
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
    """Loss of the form `config.descriptor`, mean over pairs of views.

    "paper" and "normalised": hinge loss over all pairs of a cell of view 0 and a cell of view 1; "dual_softmax": see
    `dual_softmax_loss`.

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
    if config.descriptor == "dual_softmax":
        both = zip(descriptors0, descriptors1, H_0to1, counts0, counts1, strict=True)
        positive, negative = (
            torch.stack(part).mean()
            for part in zip(*(_both_ways(*pair, config) for pair in both), strict=True)
        )
        return DescriptorLoss(positive + negative, positive, negative)
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


def dual_softmax_loss(
    map0_Dhw: Tensor, map1_Dhw: Tensor, H_0to1: Tensor, counts0: Tensor, counts1: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Contributions (positive, negative) of the cells of view 0 that the warp takes into view 1.

    The descriptor of a cell is compared with those read from view 1 at the exact places that all these cells are
    warped to, times `softmax_scale`; the loss is the mean of the cross-entropies over places and over cells. Places
    nearer than `correspondence_radius_px` to the true one do not compete. Fewer than two such cells: 0, tied to
    the maps. Shapes as in `descriptor_loss`, without B. Source: the dual softmax of Rocco et al., NeurIPS 2018, and
    Tyszkiewicz et al. (DISK), NeurIPS 2020, as a cross-entropy.
    """
    _, h, w = map0_Dhw.shape
    centres_C2 = pixel_grid(h, w, device=H_0to1.device).to(H_0to1.dtype) * CELL + (CELL - 1) / 2
    warped_C2 = warp_points(centres_C2, H_0to1)
    places_C2 = (warped_C2 - (CELL - 1) / 2) / CELL
    cells_C2 = (
        places_C2.nan_to_num()
        .round()
        .long()
        .clamp_min(0)
        .minimum(places_C2.new_tensor([w - 1, h - 1]).long())
    )
    known_C = inside(places_C2, h, w) & points_in_front(centres_C2, H_0to1)
    known_C &= counts0.flatten() & counts1[cells_C2[:, 1], cells_C2[:, 0]]
    if int(known_C.sum()) < 2:
        nothing = 0.0 * (map0_Dhw.sum() + map1_Dhw.sum())
        return nothing, nothing
    warped_N2, places_N2 = warped_C2[known_C], places_C2[known_C].to(torch.float32)
    descriptors0_ND = _unit_rows(map0_Dhw)[known_C]
    descriptors1_ND = F.normalize(
        sample_bilinear(_precise(map1_Dhw), places_N2.to(_precise(map1_Dhw))).T, dim=1
    )
    scores_NN = config.softmax_scale * (descriptors0_ND @ descriptors1_ND.T)
    near_NN = torch.cdist(warped_N2, warped_N2, compute_mode="donot_use_mm_for_euclid_dist")
    ambiguous_NN = (near_NN < config.correspondence_radius_px).fill_diagonal_(False)
    right = scores_NN.diagonal().mean()
    scores_NN = scores_NN.masked_fill(ambiguous_NN, -torch.inf)
    return -right, 0.5 * (scores_NN.logsumexp(0).mean() + scores_NN.logsumexp(1).mean())


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


def _both_ways(
    map0_Dhw: Tensor, map1_Dhw: Tensor, H_0to1: Tensor, counts0: Tensor, counts1: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """The dual softmax from view 0 to view 1 and back, averaged."""
    there = dual_softmax_loss(map0_Dhw, map1_Dhw, H_0to1, counts0, counts1, config)
    back = dual_softmax_loss(map1_Dhw, map0_Dhw, torch.linalg.inv(H_0to1), counts1, counts0, config)
    return 0.5 * (there[0] + back[0]), 0.5 * (there[1] + back[1])


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
