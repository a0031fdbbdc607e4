"""PoSFeat's two networks together: the description net and, from stage `kp` on, the keypoint head."""

from __future__ import annotations

from torch import Tensor, nn

from matchlib.errors import MatchlibError
from matchlib.methods.posfeat.config import PoSFeatConfig
from matchlib.methods.posfeat.head import KeypointHead
from matchlib.methods.posfeat.network import DescriptionNet, DescriptorMaps, normalise


class PoSFeat(nn.Module):
    """Descriptor maps and score maps of images.

    with_head: whether there is a keypoint head; weights of stage `desc` have none
    State names: `backbone.*` and `head.*`.
    """

    def __init__(self, config: PoSFeatConfig, *, with_head: bool) -> None:
        super().__init__()
        self.config = config
        self.backbone = DescriptionNet(config.network)
        self.head = KeypointHead(config.network) if with_head else None

    def maps(self, image: Tensor) -> DescriptorMaps:
        """Descriptor maps of images (B, 3, H, W) float32 RGB in [0, 1]; H and W multiples of 16."""
        maps: DescriptorMaps = self.backbone(normalise(image))
        return maps

    def scores(self, image: Tensor, maps: DescriptorMaps) -> Tensor:
        """Score map (B, 1, H, W), each >= 0, of the same images. Raises MatchlibError without a head."""
        if self.head is None:
            raise MatchlibError(
                "posfeat: these weights have no keypoint head; train stage kp, or use SIFT keypoints"
            )
        scores: Tensor = self.head(maps.fine, maps.early, normalise(image))
        return scores
