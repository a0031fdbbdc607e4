"""Losses on the descriptors and scores of true correspondences.

Source: Luo et al., ASLFeat, CVPR 2020, section 3.5, after the public tfmatch implementation; circle loss from
Sun et al., CVPR 2020. Every loss has a row term (the wrong partners are points of image 1) and a column term
(points of image 0) per correspondence, and is their mean. N correspondences, D descriptor dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.methods.aslfeat.config import LossConfig
from matchlib.methods.aslfeat.correspondences import Correspondences

_DUPLICATE_DISTANCE = 0.008  # descriptors this close are taken for the same place, so they are no negatives
_EXCLUDED_DISTANCE = 10.0  # added to distances that are no negatives; unit vectors are at most 2 apart
_EXCLUDED_SHIFT = 128.0  # what tfmatch subtracts from excluded similarities in the circle loss
_SMALLEST_SQUARED_DISTANCE = 1e-6  # keeps the gradient of the square root finite
_MASKED_LOGIT = -1e9  # finite, unlike -inf, so that a row without any negative has gradient 0 and not nan


def descriptor_loss(
    descriptors0: Tensor, descriptors1: Tensor, found: Correspondences, config: LossConfig
) -> Tensor:
    """The configured loss of each correspondence, (N,).

    descriptors0, descriptors1: (N, D) of unit length, row k belongs to correspondence k.
    """
    check_shape("descriptors0", descriptors0, f"{len(found)} D")
    check_shape("descriptors1", descriptors1, f"{len(found)} {descriptors0.shape[1]}")
    similarity_NN = (descriptors0 @ descriptors1.T).clamp(-1.0, 1.0)
    excluded_row_NN, excluded_column_NN = excluded_negatives(similarity_NN, found, config.safe_radius_px)
    if config.descriptor == "circle":
        rows = circle_loss(similarity_NN, excluded_row_NN, config)
        columns = circle_loss(similarity_NN.T, excluded_column_NN.T, config)
    else:
        distance_NN = _distance(similarity_NN)
        rows = hard_contrastive_loss(distance_NN, excluded_row_NN, config)
        columns = hard_contrastive_loss(distance_NN.T, excluded_column_NN.T, config)
    return 0.5 * (rows + columns)


def excluded_negatives(
    similarity_NN: Tensor, found: Correspondences, safe_radius_px: float
) -> tuple[Tensor, Tensor]:
    """Which entries (i, j) of the similarity matrix are no negatives: of row i, and of column j. Both (N, N)
    bool.

    The correct pair, near duplicates (distance below 0.008), and neighbours: in row i, points of image 1
    nearer than the safe radius to the partner of i; in column j, points of image 0 nearer than that to point
    j.
    """
    with torch.no_grad():
        same = torch.eye(len(found), dtype=torch.bool, device=similarity_NN.device)
        same |= _distance(similarity_NN) < _DUPLICATE_DISTANCE
        near0 = _pairwise_px(found.points0) < safe_radius_px
        near1 = _pairwise_px(found.points1) < safe_radius_px
    return same | near1, same | near0


def hard_contrastive_loss(distance_NM: Tensor, excluded_NM: Tensor, config: LossConfig) -> Tensor:
    """[d_ii - positive margin]+ + [negative margin - smallest d_ij of a negative]+ for each row i, (N,)."""
    positive_N = distance_NM.diagonal()
    negative_N = (distance_NM + _EXCLUDED_DISTANCE * excluded_NM).amin(dim=1)
    return (positive_N - config.positive_margin).clamp_min(0) + (
        config.negative_margin - negative_N
    ).clamp_min(0)


def circle_loss(similarity_NM: Tensor, excluded_NM: Tensor, config: LossConfig) -> Tensor:
    """Circle loss for each row i, (N,): softplus(p + log sum over negatives of exp(n)) / g, where

    p = -g (s_ii - (1 - m)) sg[1 + m - s_ii]+ and n = g (s_ij - m) sg[s_ij + m]+, sg meaning "no gradient".
    Divided by g so that its size does not depend on the scale. differs from tfmatch: entries that are no
    negatives are left out, unless `circle_excluded` is "shifted" (see there).
    """
    g, m = config.circle_scale, config.circle_margin
    positive_N = similarity_NM.diagonal()
    positive_weight_N = (1 + m - positive_N).detach().clamp_min(0)
    positive_logit_N = -g * positive_weight_N * (positive_N - (1 - m))
    if config.circle_excluded == "shifted":
        shifted_NM = similarity_NM - _EXCLUDED_SHIFT * excluded_NM
        logit_NM = g * (shifted_NM + m).detach().clamp_min(0) * (shifted_NM - m)
    else:
        logit_NM = g * (similarity_NM + m).detach().clamp_min(0) * (similarity_NM - m)
        logit_NM = logit_NM.masked_fill(excluded_NM, _MASKED_LOGIT)
    return F.softplus(positive_logit_N + logit_NM.logsumexp(dim=1)) / g


def detector_weighted_mean(loss_N: Tensor, scores0_N: Tensor, scores1_N: Tensor) -> Tensor:
    """Mean of losses (N,) weighted by score0 * score1, so that scores rise where descriptors succeed."""
    weight_N = scores0_N * scores1_N
    return (weight_N * loss_N).sum() / (weight_N.sum() + 1e-6)


def retrieval_accuracy(descriptors0: Tensor, descriptors1: Tensor) -> Tensor:
    """Share of correspondences whose partner is the nearest descriptor, mean of both directions, a scalar in
    [0, 1].

    differs from tfmatch, whose printed accuracy of a batch of two cannot fall below 0.5.
    """
    with torch.no_grad():
        similarity_NN = descriptors0 @ descriptors1.T
        own = torch.arange(len(similarity_NN), device=similarity_NN.device)
        rows = (similarity_NN.argmax(dim=1) == own).float().mean()
        columns = (similarity_NN.argmax(dim=0) == own).float().mean()
    return 0.5 * (rows + columns)


def _distance(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors with the given dot product."""
    return (2.0 - 2.0 * similarity).clamp_min(_SMALLEST_SQUARED_DISTANCE).sqrt()


def _pairwise_px(points_N2: Tensor) -> Tensor:
    difference = points_N2[:, None] - points_N2[None]
    return difference.square().sum(dim=-1).sqrt()
