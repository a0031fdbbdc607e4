"""Policy gradient of the keypoint head: proposals are rewarded for matches that agree with epipolar geometry.

Source: Li et al., CVPR 2022, section 3.3, and the released `DiskLoss`, after DISK (Tyszkiewicz et al., NeurIPS
2020). With descriptors f_i, g_j at the proposals of both images, temperature T and A_ij = -T (1 - f_i . g_j), a match
has the probability P_ij = softmax_j(A_i.) softmax_i(A_.j). M holds the pairs (i, j) of which both are accepted. The
published loss of a pair of images is

    L = -sum_M r_ij P_ij (log P_ij + log pi_i + log pi_j) + penalty (sum_i log pi_i + sum_j log pi_j)

over accepted i and j, without gradient through r and P. So its gradient needs the sums of r P over rows and columns
only; the N0 x N1 arrays are made in blocks of rows, used, and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import e, log

import torch
from torch import Tensor

from matchlib.errors import ShapeError, check_shape
from matchlib.methods.posfeat.config import KeypointLossConfig
from matchlib.methods.posfeat.proposals import Proposals
from matchlib.ops.matmul import matmul_nt

_REFUSED = 1e5  # added to the log-sum-exp of refused proposals: their P is exactly 0, and P log P is not nan
_DYNAMIC_SCALE_PX = 2.0
# Logarithms are to base 2 inside: most P underflow, for which exp takes ten times as long as exp2 on a CPU (measured).
_LN_2 = log(2)


@dataclass(frozen=True, slots=True)
class KeypointLoss:
    """Means over the pairs of a batch, scalars; only `loss` has a gradient.

    loss:       reinforce + penalty, the published L; its value says little, since drawing less likely proposals
                alone changes it: judge by figures of validation
    reinforce:  the part of matches and their rewards
    penalty:    the part that each accepted keypoint costs
    keypoints:  accepted per image
    matches:    expected number, the sum of P over M
    good_share: share of these whose reward is the good one, in [0, 1]; 0 without any
    """

    loss: Tensor
    reinforce: Tensor
    penalty: Tensor
    keypoints: Tensor
    matches: Tensor
    good_share: Tensor


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Epipolar geometry of one pair: points (N, 2) px and lines (N0, 3) in image 1 of the points of image 0.

    norm0, norm1: (N1,) and (N0,) of the lines' normals: |x1^T F x0| divided by norm1_i is the distance of x1_j to
                  the line of x0_i, divided by norm0_j that of x0_i to the line of x1_j
    """

    points1: Tensor
    lines1: Tensor
    norm0: Tensor
    norm1: Tensor


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of one pair over M: of r P by row (N0,) and column (N1,), of r P log P, of P, of P where good."""

    rows: Tensor
    columns: Tensor
    value: Tensor
    matches: Tensor
    good: Tensor


def keypoint_loss(
    proposals0: Proposals,
    proposals1: Proposals,
    descriptors0: Tensor,
    descriptors1: Tensor,
    F_0to1: Tensor,
    config: KeypointLossConfig,
) -> KeypointLoss:
    """The published loss of each pair of images, mean over the pairs.

    proposals0, proposals1:     of B images each, N0 and N1 per image
    descriptors0, descriptors1: (B, N0, D) and (B, N1, D), unit length, at the proposals; no gradient reaches them
    F_0to1:                     (B, 3, 3) float64, maps pixels of image 0 to lines of image 1; any scale
    differs from the release: it sums over the batch, here is the mean, so that the loss neither depends on the number
    of processes nor its gradient grows with the batch. The published SGD rate 1e-3 at 6 pairs is 6e-3 here.

    Distances are in pixels. All proposals, accepted or not, share in the normalisation of P. With
    `rescale_threshold` the two thresholds of a pair are stretched, for the reward "constant" and for `good_share`.
    A pair with F = 0 (no baseline) adds 0, where the release rewards every match; one whose F is not finite makes the
    loss nan, so that no update follows. A point on an epipole, which has no line, is no good match of any. Memory is
    O(block N1), besides O(N0 + N1). Raises ShapeError.
    """
    batch = _check(proposals0, proposals1, descriptors0, descriptors1, F_0to1)
    # Under autocast products would be rounded to half precision.
    with torch.autocast(F_0to1.device.type, enabled=False):
        terms = [
            _pair_terms(
                (proposals0.log_prob[pair], proposals1.log_prob[pair]),
                (proposals0.accepted[pair], proposals1.accepted[pair]),
                (proposals0.points[pair], proposals1.points[pair]),
                (descriptors0[pair], descriptors1[pair]),
                F_0to1[pair],
                config,
            )
            for pair in range(batch)
        ]
        reinforce, penalty, keypoints, matches, good_share = torch.stack(terms).mean(dim=0).unbind()
    figures = (figure.detach() for figure in (reinforce, penalty, keypoints, matches, good_share))
    return KeypointLoss(reinforce + penalty, *figures)


def _pair_terms(
    log_prob: tuple[Tensor, Tensor],
    accepted: tuple[Tensor, Tensor],
    points: tuple[Tensor, Tensor],
    descriptors: tuple[Tensor, Tensor],
    F: Tensor,
    config: KeypointLossConfig,
) -> Tensor:
    """(5,) reinforce, penalty, keypoints, matches, good_share of one pair; of both images 0 and 1."""
    dtype = torch.promote_types(log_prob[0].dtype, torch.float32)
    with torch.no_grad():
        features = (descriptors[0].to(dtype), descriptors[1].to(dtype))
        sums = _sums(features, accepted, _geometry(*points, F, dtype), config)
        weight = _weight(F, dtype)
        good_share = sums.good / sums.matches.clamp_min(torch.finfo(dtype).tiny)
        keypoints = torch.cat(accepted).sum().to(dtype) / 2
    policy0, policy1 = (torch.where(a, p.to(dtype), 0) for a, p in zip(accepted, log_prob, strict=True))
    reinforce = -(sums.value + (sums.rows * policy0).sum() + (sums.columns * policy1).sum())
    penalty = config.keypoint_penalty * (policy0.sum() + policy1.sum())
    return torch.stack([weight * reinforce, weight * penalty, keypoints, sums.matches, good_share])


def _check(
    proposals0: Proposals, proposals1: Proposals, descriptors0: Tensor, descriptors1: Tensor, F_0to1: Tensor
) -> int:
    batch, rows = proposals0.accepted.shape
    columns = proposals1.accepted.shape[1]
    if min(batch, rows, columns) == 0:
        raise ShapeError(
            f"proposals0, proposals1: expected at least one of at least one image, got {rows} and {columns} "
            f"of {batch} images"
        )
    check_shape("proposals1.accepted", proposals1.accepted, f"{batch} N")
    sizes = check_shape("descriptors0", descriptors0, f"{batch} {rows} D")
    check_shape("descriptors1", descriptors1, f"{batch} {columns} {sizes['D']}")
    check_shape("F_0to1", F_0to1, f"{batch} 3 3")
    return int(batch)


def _weight(F: Tensor, dtype: torch.dtype) -> Tensor:
    """1 for a usable F (3, 3), 0 for a zero one, nan for one that is not finite; no copy to the host is needed."""
    usable = (F != 0).any().to(dtype)
    return usable.masked_fill(~F.isfinite().all(), torch.nan)


def _geometry(points0: Tensor, points1: Tensor, F: Tensor, dtype: torch.dtype) -> _Geometry:
    """Lines in the precision of F, then rounded: entries of F span many decades."""
    lines1 = _homogeneous(points0, F.dtype) @ F.mT
    lines0 = _homogeneous(points1, F.dtype) @ F
    norm0, norm1 = (torch.linalg.vector_norm(lines[:, :2], dim=1).to(dtype) for lines in (lines0, lines1))
    return _Geometry(points1.to(dtype), lines1.to(dtype), norm0, norm1)


def _homogeneous(points_N2: Tensor, dtype: torch.dtype) -> Tensor:
    points = points_N2.to(dtype)
    return torch.cat([points, torch.ones_like(points[:, :1])], dim=1)


def _sums(
    features: tuple[Tensor, Tensor],
    accepted: tuple[Tensor, Tensor],
    geometry: _Geometry,
    config: KeypointLossConfig,
) -> _Sums:
    """All sums of one pair: a first pass for the normalisation of P, a second for everything else."""
    log_norms = _log_normalisers(features, config)
    row_norms, column_norm = (
        (norm + _REFUSED * ~keeps) / _LN_2 for norm, keeps in zip(log_norms, accepted, strict=True)
    )
    thresholds = _thresholds(geometry, config)
    zero = column_norm.new_zeros(())
    rows, columns, value, matches, good = [], torch.zeros_like(column_norm), zero, zero, zero
    for part in _blocks(len(row_norms), config.block):
        residual = _residuals(geometry, part)
        is_good = _is_good(residual, geometry, part, thresholds)
        log2_P = _similarities(features, part, 2 * config.temperature / _LN_2)
        log2_P -= row_norms[part, None]
        log2_P -= column_norm
        P = log2_P.exp2()
        matches = matches + P.sum()
        good = good + (P * is_good).sum()
        rewarded = P.mul_(_rewards(residual, is_good, geometry, part, config))
        rows.append(rewarded.sum(dim=1))
        columns = columns + rewarded.sum(dim=0)
        value = value + log2_P.mul_(rewarded).sum()
    return _Sums(torch.cat(rows), columns, value * _LN_2, matches, good)


def _log_normalisers(features: tuple[Tensor, Tensor], config: KeypointLossConfig) -> tuple[Tensor, Tensor]:
    """log sum exp of T f_i . g_j over j, (N0,), and over i, (N1,). The constant -T of A cancels in P."""
    rows, columns = [], features[1].new_full((len(features[1]),), -torch.inf)
    for part in _blocks(len(features[0]), config.block):
        similarity = _similarities(features, part, config.temperature)
        rows.append(similarity.logsumexp(dim=1))
        columns = torch.logaddexp(columns, similarity.logsumexp(dim=0))
    return torch.cat(rows), columns


def _similarities(features: tuple[Tensor, Tensor], part: slice, factor: float) -> Tensor:
    """factor f_i . g_j of a block of rows, (b, N1), a new tensor."""
    return matmul_nt(features[0][part] * factor, features[1])


def _residuals(geometry: _Geometry, part: slice) -> Tensor:
    """|x1_j^T F x0_i| of a block of rows, (b, N1). Not a matrix product, which may be TF32 on a GPU."""
    a, b, c = geometry.lines1[part, :, None].unbind(dim=1)
    x, y = geometry.points1.unbind(dim=1)
    return torch.addcmul(torch.addcmul(c, a, x), b, y).abs_()


def _is_good(residual: Tensor, geometry: _Geometry, part: slice, thresholds: tuple[Tensor, Tensor]) -> Tensor:
    """Which are nearer than the thresholds (in image 0, in image 1) to both lines."""
    bound = torch.minimum(thresholds[1] * geometry.norm1[part, None], thresholds[0] * geometry.norm0)
    return residual < bound


def _rewards(
    residual: Tensor, is_good: Tensor, geometry: _Geometry, part: slice, config: KeypointLossConfig
) -> Tensor:
    if config.reward == "constant":
        return torch.where(is_good, residual.new_tensor(config.good), residual.new_tensor(config.bad))
    closeness0 = torch.exp(-residual / (_DYNAMIC_SCALE_PX * geometry.norm0))
    closeness1 = torch.exp(-residual / (_DYNAMIC_SCALE_PX * geometry.norm1[part, None]))
    # 0 / 0 where there is no line: no closeness is known, so the match is a bad one.
    return (closeness0 + closeness1 - 2 / e).nan_to_num_(nan=config.bad).clamp_min_(config.bad)


def _thresholds(geometry: _Geometry, config: KeypointLossConfig) -> tuple[Tensor, Tensor]:
    """Largest distances of good matches in px, in image 0 and in image 1, scalars."""
    threshold = geometry.norm0.new_tensor(config.reward_threshold_px)
    if not config.rescale_threshold:
        return threshold, threshold
    sum0, sum1 = torch.zeros_like(threshold), torch.zeros_like(threshold)
    inverse0, inverse1 = (_inverse(norm) for norm in (geometry.norm0, geometry.norm1))
    for part in _blocks(len(inverse1), config.block):
        residual = _residuals(geometry, part)
        sum0 = sum0 + (residual * inverse0).sum()
        sum1 = sum1 + (residual * inverse1[part, None]).sum()
    # Both sums are over the same number of matches, so that their ratio is that of the means.
    smaller = torch.minimum(sum0, sum1)
    scale0, scale1 = (torch.where(smaller > 0, total / smaller, 1) for total in (sum0, sum1))
    return threshold * scale0, threshold * scale1


def _inverse(norm: Tensor) -> Tensor:
    """1 / norm; 0 where there is no line."""
    return torch.where(norm > 0, 1 / norm, 0)


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
