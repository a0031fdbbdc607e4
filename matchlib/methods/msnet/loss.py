"""The loss: partners near, mined negatives beyond a margin.

Source: lin-zju/my-descriptor-space. Distances are Euclidean and not squared, unlike those of UCN (Choy et
al., NeurIPS 2016), whose mining it follows. One direction only: negatives are places of view 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matchlib.errors import check_shape


@dataclass(frozen=True, slots=True)
class ContrastiveTerms:
    """The two terms of the loss, which is their sum, and how many negatives count; scalars.

    distance:     mean distance to the partner
    similarity:   mean of margin - distance over the active negatives, 0 if there are none
    active_share: active negatives per mined one, 0 if none was mined
    """

    distance: Tensor
    similarity: Tensor
    active_share: Tensor


def contrastive_terms(
    descriptors0_ND: Tensor, partners_ND: Tensor, negatives_ND: Tensor, is_mined_N: Tensor, *, margin: float
) -> ContrastiveTerms:
    """The loss of one pair from unit vectors (N, D), N > 0.

    is_mined_N: (N,) bool, false where no place was left to mine; such rows of `negatives_ND` are ignored.
    A negative is active where its distance is below the margin. Gradients flow into all three. Raises
    ShapeError.
    """
    sizes = check_shape("descriptors0", descriptors0_ND, "N D")
    for name, other in (("partners", partners_ND), ("negatives", negatives_ND)):
        check_shape(name, other, f"{sizes['N']} {sizes['D']}")
    check_shape("is_mined", is_mined_N, str(sizes["N"]))
    positive_N = torch.linalg.vector_norm(descriptors0_ND - partners_ND, dim=1)
    # Ignored rows are replaced beforehand: a mask afterwards would let the gradient of nan by.
    mined_ND = torch.where(is_mined_N[:, None], negatives_ND, descriptors0_ND.detach())
    negative_N = torch.linalg.vector_norm(descriptors0_ND - mined_ND, dim=1)
    active_N = is_mined_N & (negative_N < margin)
    count = active_N.sum()
    shortfall = torch.where(active_N, margin - negative_N, 0.0).sum()
    return ContrastiveTerms(
        distance=positive_N.mean(),
        similarity=shortfall / count.clamp_min(1),
        active_share=count / is_mined_N.sum().clamp_min(1),
    )
