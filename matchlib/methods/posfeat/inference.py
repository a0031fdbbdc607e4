"""PoSFeat on whole images: an extractor, and descriptors at any place.

Pixel coordinates: every resize here keeps the corners of the image area fixed (OpenCV's convention), so position x
in an image of width w is (x + 0.5) * W / w - 0.5 in the original of width W; the centre of the first pixel is 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from matchlib.completion import digest_file, digest_json
from matchlib.errors import ConfigError, ShapeError, check_shape
from matchlib.features.config import SiftConfig
from matchlib.features.dense import MemberPairs
from matchlib.features.foreign_weights import fill_module
from matchlib.features.sift import SiftExtractor
from matchlib.features.trained_weights import read_trained
from matchlib.features.types import Features, Float32, Image
from matchlib.methods.posfeat.config import NetworkConfig, PoSFeatConfig, Sampling
from matchlib.methods.posfeat.detection import select_keypoints
from matchlib.methods.posfeat.maps import ImageMaps, image_maps
from matchlib.methods.posfeat.model import PoSFeat
from matchlib.methods.posfeat.network import DESCRIPTOR_DIM, descriptors_at
from matchlib.randomness import torch_generator_for

REVISION = 1
KeypointSource = Literal["network", "sift"]


def build(config: PoSFeatConfig, weights: Path | None, device: str) -> PoSFeatExtractor:
    """An extractor with the weights of a stage (safetensors); None gives the untrained network of seed 0.

    With `inference.detector` "auto", keypoints are the head's if the weights have one, and else SIFT's. Raises
    DataError for a file that is not weights of this network, naming the first tensor that differs, and ConfigError
    if the head is asked for and the weights have none.
    """
    model, weights_digest = load_model(config, weights, device)
    return PoSFeatExtractor(model, weights_digest=weights_digest)


def build_dense(config: PoSFeatConfig, weights: Path | None, device: str) -> PoSFeatDescriber:
    """As `build`, for descriptors at any place; `inference.detector` is of no effect."""
    model, weights_digest = load_model(config, weights, device)
    return PoSFeatDescriber(model, weights_digest=weights_digest)


def load_model(config: PoSFeatConfig, weights: Path | None, device: str) -> tuple[PoSFeat, str]:
    """The networks ready for inference and the digest of their weights; raises what `build` does.

    There is a head if the weights have one; untrained, if `inference.detector` asks for it.
    """
    if weights is None:
        model = PoSFeat(config, with_head=config.inference.detector == "network")
        generator = torch_generator_for(0, "posfeat", "initialise")
        model.backbone.initialise(generator)
        if model.head is not None:
            model.head.initialise(generator)
        return model.to(device).eval(), "untrained"
    state = read_trained(weights, method="posfeat")
    model = PoSFeat(config, with_head=any(name.startswith("head.") for name in state))
    fill_module(model, state, path=weights, what=f"posfeat, encoder '{config.network.encoder}'")
    return model.to(device).eval(), digest_file(weights)


class PoSFeatExtractor:
    """See `matchlib.features.types.Extractor`."""

    descriptor_dim = DESCRIPTOR_DIM

    def __init__(self, model: PoSFeat, *, weights_digest: str) -> None:
        self._source = keypoint_source(model)
        self.name = "posfeat" if self._source == "network" else "posfeat+sift"
        self._model = model
        self._sift = _sift(model.config)
        self.fingerprint = digest_json(
            {
                "method": self.name,
                "revision": REVISION,
                "weights": weights_digest,
                "network": _used_by_network(model.config.network),
                "maps": _used_by_maps(model.config),
                "keypoints": (
                    _used_by_keypoints(model.config) if self._source == "network" else self._sift.fingerprint
                ),
            }
        )

    @torch.inference_mode()
    def extract(self, image: Image) -> Features:
        """Features of an (H, W, 3) uint8 RGB image of any size, best first; none for an image of no pixels.

        The head's scores are relative within the image: one without texture has keypoints, too. SIFT's keypoints
        are of OpenCV's default settings; as released, a place with several dominant orientations occurs as often,
        with the same descriptor. Raises ShapeError, and DataError for an image that needs too much memory.
        """
        image_size = _checked_size(image)
        if not image.size:
            return _no_features(image_size)
        config = self._model.config
        seen = reduced(image, config.inference.max_image_side)
        height, width = seen.shape[:2]
        maps = _maps_of(self._model, seen, with_scores=self._source == "network")
        points_N2, scores_N = self._keypoints(seen, maps)
        descriptors_ND = descriptors_at(maps.fine, points_N2, maps.padded_size, config.network.sampling)
        factor = points_N2.new_tensor([image_size[0] / width, image_size[1] / height])
        return Features(
            keypoints=((points_N2 + 0.5) * factor - 0.5).cpu().numpy(),
            scores=scores_N.cpu().numpy(),
            descriptors=descriptors_ND.cpu().numpy(),
            image_size=image_size,
        )

    def _keypoints(self, seen: Image, maps: ImageMaps) -> tuple[Tensor, Tensor]:
        """Points (N, 2) in pixels of what the network saw, best first, and their scores (N,)."""
        if maps.scores is not None:
            height, width = seen.shape[:2]  # without the padding
            return select_keypoints(maps.scores[:height, :width], self._model.config.inference)
        found = self._sift.extract(seen)
        points_N2, scores_N = torch.from_numpy(found.keypoints), torch.from_numpy(found.scores)
        return points_N2.to(maps.fine.device), scores_N.to(maps.fine.device)


class PoSFeatDescriber:
    """See `matchlib.features.dense.DenseDescriber`: one descriptor per place."""

    name = "posfeat-dense"
    descriptor_dim = DESCRIPTOR_DIM
    members: tuple[str, ...] = ("descriptor",)
    member_pairs: MemberPairs = "all"
    uses_true_scale = False

    def __init__(self, model: PoSFeat, *, weights_digest: str) -> None:
        self._model = model
        self.fingerprint = digest_json(
            {
                "method": self.name,
                "revision": REVISION,
                "weights": weights_digest,
                "network": _used_by_network(model.config.network),
                "maps": _used_by_maps(model.config),
            }
        )

    @torch.no_grad()
    def describe(self, image: Image, *, scale: Float32 | None = None) -> PoSFeatDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image of at least one pixel; `scale` is ignored. Raises ShapeError,
        and DataError for an image that needs too much memory."""
        width, height = _checked_size(image)
        if not image.size:
            raise ShapeError(f"image: expected at least one pixel, got shape {image.shape}")
        config = self._model.config
        seen = reduced(image, config.inference.max_image_side)
        maps = _maps_of(self._model, seen, with_scores=False)
        ratio = (seen.shape[1] / width, seen.shape[0] / height)
        return PoSFeatDescriptors(maps, ratio, config.network.sampling)


@dataclass(frozen=True, slots=True)
class PoSFeatDescriptors:
    """See `matchlib.features.dense.DenseDescriptors`.

    ratio: size (width, height) of what the network saw, padding excluded, over that of the image
    """

    maps: ImageMaps
    ratio: tuple[float, float]
    sampling: Sampling

    @torch.no_grad()
    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, 1, 128) float32 of unit length at positions (N, 2) in pixels of the image; N may be 0."""
        check_shape("points", points_N2, "N 2")
        points_N2 = points_N2.to(self.maps.fine.device, torch.float32)
        seen_N2 = (points_N2 + 0.5) * points_N2.new_tensor(self.ratio) - 0.5
        return descriptors_at(self.maps.fine, seen_N2, self.maps.padded_size, self.sampling)[:, None]


def keypoint_source(model: PoSFeat) -> KeypointSource:
    """Where the keypoints come from, given `inference.detector` and what there is. Raises ConfigError."""
    detector = model.config.inference.detector
    if detector == "auto":
        return "sift" if model.head is None else "network"
    if detector == "network" and model.head is None:
        raise ConfigError(
            "posfeat.inference.detector: expected weights with a keypoint head for 'network', got weights without one "
            "(of stage desc); use those of stage kp, or 'sift'"
        )
    return detector


def reduced(image: Image, max_side: int | None) -> Image:
    """The image, made smaller if its longer side is above `max_side`."""
    height, width = image.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return image
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _maps_of(model: PoSFeat, image: Image, *, with_scores: bool) -> ImageMaps:
    device = next(model.parameters()).device
    image_3HW = torch.tensor(image, device=device).permute(2, 0, 1)
    return image_maps(model, image_3HW, model.config.inference, with_scores=with_scores)


def _checked_size(image: Image) -> tuple[int, int]:
    """(width, height) of an image. Raises ShapeError."""
    sizes = check_shape("image", image, "H W 3")
    if image.dtype != np.uint8:
        raise ShapeError(f"image: expected uint8, got {image.dtype}")
    return sizes["W"], sizes["H"]


def _no_features(image_size: tuple[int, int]) -> Features:
    return Features(
        keypoints=np.zeros((0, 2), np.float32),
        scores=np.zeros(0, np.float32),
        descriptors=np.zeros((0, DESCRIPTOR_DIM), np.float32),
        image_size=image_size,
    )


def _sift(config: PoSFeatConfig) -> SiftExtractor:
    # Precise: without it all keypoints are off by a quarter of a pixel, which a map read at them feels.
    settings = SiftConfig(max_keypoints=config.inference.max_keypoints, precise_upscale=True)
    return SiftExtractor(settings, is_root=False)


def _used_by_network(network: NetworkConfig) -> dict[str, object]:
    """The settings that decide what weights mean; the others belong to training."""
    names = ("encoder", "decoder_channels", "head_channels", "sampling")
    return {name: getattr(network, name) for name in names}


def _used_by_maps(config: PoSFeatConfig) -> dict[str, object]:
    inference = config.inference
    tiles = None if inference.tile_px is None else (inference.tile_px, inference.tile_overlap_px)
    return {"max_image_side": inference.max_image_side, "tiles": tiles}


def _used_by_keypoints(config: PoSFeatConfig) -> dict[str, object]:
    """The settings of `select_keypoints`."""
    elsewhere = ("detector", "max_image_side", "tile_px", "tile_overlap_px", "max_memory_gb")
    return {name: value for name, value in asdict(config.inference).items() if name not in elsewhere}
