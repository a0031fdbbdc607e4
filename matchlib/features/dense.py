"""Descriptors at any place of an image: what the PCK evaluation and detectors of another kind ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from matchlib.features.types import Float32, Image

if TYPE_CHECKING:
    from torch import Tensor

MemberPairs = Literal["all", "not_coarse_coarse"]


class DenseDescriptors(Protocol):
    """The descriptors of one image."""

    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, S, D) float32 of unit length at positions (N, 2) = (x, y) in pixels of the image.

        S is the number of members of a method's descriptor set, 1 for most. Positions lie within the image
        (0 <= x <= W-1); reading is exact: a map of stride s whose cell o is centred at pixel s o + c is read
        at (x - c) / s. The points may be on any device; the result is on the describer's. N may be 0.
        """
        ...


class DenseDescriber(Protocol):
    """Anything that gives descriptors at every place of an image.

    name, fingerprint: as of `features.types.Extractor`
    members:           names of the S members of the descriptor set, e.g. ("fine", "coarse")
    member_pairs:      which pairs of members are compared when sets are: all, or all but the two last ones
                       with each other ("not_coarse_coarse": at most one image changes scale)
    uses_true_scale:   whether `describe` wants `scale`; such results are oracles and are labelled so
    """

    name: str
    fingerprint: str
    descriptor_dim: int
    members: tuple[str, ...]
    member_pairs: MemberPairs
    uses_true_scale: bool

    def describe(self, image: Image, *, scale: Float32 | None = None) -> DenseDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image.

        scale: (H, W) float32, the true local scale of this image relative to the other image of its pair: 2
               where the other image shows the spot half as large. Given if `uses_true_scale`, ignored
               otherwise.
        """
        ...
