"""A describer without a detector of its own becomes an extractor: keypoints from one, descriptors from the other."""

from __future__ import annotations

from dataclasses import asdict

import cv2
import numpy as np
import torch

from matchlib.completion import digest_json
from matchlib.errors import ConfigError
from matchlib.features.config import DetectorConfig
from matchlib.features.dense import DenseDescriber
from matchlib.features.detectors import REVISION, detect_keypoints
from matchlib.features.types import Features, Image


class DescribedKeypoints:
    """An `Extractor`: the detector's keypoints with the describer's descriptors, first member of its set.

    The first member because an extractor gives one descriptor per keypoint; comparing whole sets is the
    business of evaluations that ask the describer itself. `name` is the describer's with the detector's behind
    it unless given. Raises ConfigError for a describer that wants the true scale, which no single image has.
    """

    def __init__(
        self, describer: DenseDescriber, detector: DetectorConfig, *, name: str | None = None
    ) -> None:
        if describer.uses_true_scale:
            raise ConfigError(
                f"{describer.name}: expected a describer that needs one image only, got one that is told the true "
                f"scale between two; choose another combination of descriptors to extract features"
            )
        self.name = f"{describer.name}-{detector.kind}" if name is None else name
        self.descriptor_dim = describer.descriptor_dim
        self.fingerprint = digest_json(
            {
                "describer": describer.fingerprint,
                "detector": asdict(detector) | {"revision": REVISION, "opencv": cv2.__version__},
            }
        )
        self._describer = describer
        self._detector = detector

    def extract(self, image: Image) -> Features:
        """Features of one (H, W, 3) uint8 RGB image, strongest response first. Raises ShapeError."""
        points, scores = detect_keypoints(image, self._detector)
        descriptors = np.zeros((0, self.descriptor_dim), np.float32)
        if len(points):
            sets_NSD = self._describer.describe(image).at(torch.from_numpy(points))
            descriptors = sets_NSD[:, 0].float().cpu().numpy()
        return Features(
            keypoints=points,
            scores=scores,
            descriptors=descriptors,
            image_size=(image.shape[1], image.shape[0]),
        )
