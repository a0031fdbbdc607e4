"""SuperPoint as the trainer sees it: losses, validation and pictures of its three stages.

"shapes": the detector learns the corners of drawn shapes (`ShapesBatch`). "magicpoint": it learns labels that
the stage before gave to photographs. "superpoint": detector and descriptor learn from pairs of views of
photographs with the labels of stage "magicpoint" (`HomographyBatch`).

differs from rpautrat/SuperPoint: stage "magicpoint" learns from both views of a pair, not from one warped picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matchlib.errors import ConfigError, DataError, TrainingError
from matchlib.features.types import Image
from matchlib.methods.superpoint.config import SuperPointConfig
from matchlib.methods.superpoint.loss import descriptor_loss, detector_loss
from matchlib.methods.superpoint.metrics import (
    CheckedMatches,
    Detections,
    matching_accuracy,
    picture_precision,
)
from matchlib.methods.superpoint.network import SuperPointNetwork, grey_from_rgb
from matchlib.methods.superpoint.pictures import draw_detections, draw_matches, draw_shapes
from matchlib.methods.superpoint.postprocess import heatmap
from matchlib.methods.superpoint.shapes_pairs import ShapesBatch
from matchlib.methods.superpoint.targets import NO_POINT, cell_targets, whole_cells
from matchlib.methods.superpoint.validation import (
    askable_labels,
    detect,
    match_views,
    pair_repeatability,
)
from matchlib.photo_pairs.batch import HomographyBatch
from matchlib.randomness import torch_generator_for

_STAGES = ("shapes", "magicpoint", "superpoint")
_DESCRIPTOR_STAGE = "superpoint"


def build(config: SuperPointConfig, stage: str, seed: int) -> TrainableSuperPoint:
    """A freshly initialised model for one of the three stages; the weights are a function of the seed."""
    if stage not in _STAGES:
        raise ConfigError(f"superpoint: expected stage {', '.join(map(repr, _STAGES))}, got '{stage}'")
    return TrainableSuperPoint(config, stage=stage, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """One side of a batch, and what the network says about it.

    image:       (B, 1 or 3, H, W), for pictures
    valid:       (B, H, W) bool
    labels:      (N_b, 2) per picture
    logits:      (B, 65, H/8, W/8)
    descriptors: (B, D, H/8, W/8), empty (0,) in stages that have none
    """

    image: Tensor
    valid: Tensor
    labels: tuple[Tensor, ...]
    logits: Tensor
    descriptors: Tensor


class TrainableSuperPoint(nn.Module):
    """The network with what `matchlib.training.types.TrainableModel` asks for."""

    def __init__(self, config: SuperPointConfig, *, stage: str, seed: int) -> None:
        super().__init__()
        self.config, self.stage = config, stage
        self.network = SuperPointNetwork(config.network)
        self.network.initialise(torch_generator_for(seed, "superpoint", "initialise"))
        if config.training.empty_cells is not None:
            self._expect_empty_cells(config.training.empty_cells)
        self.network.descriptor.requires_grad_(stage == _DESCRIPTOR_STAGE)

    @torch.no_grad()
    def _expect_empty_cells(self, share: float) -> None:
        """Set the bias of class "no point" so that it has this share of the probability where all logits are 0."""
        normalised = self.config.network.layout == "vgg_bn"
        bias = self.network.get_parameter("detector.1.bn.bias" if normalised else "detector.1.conv.bias")
        bias[NO_POINT] = math.log(NO_POINT * share / (1 - share))

    # ---------------------------------------------------------------- losses
    def training_step(self, batch: ShapesBatch | HomographyBatch) -> dict[str, Tensor]:
        """The losses and figures of one batch; draws come from `batch.seeds`.

        detector:   cross-entropy, mean over pictures, sum over the views
        descriptor: hinge loss times lambda (stage superpoint)
        figure/point_accuracy: share of the cells with a point in which its pixel is the likeliest of all 64
        figure/positive, figure/negative: parts of the hinge loss before lambda
        Raises DataError if photographs carry no labels.
        """
        return self._losses(batch, self._views(batch))

    def _losses(self, batch: ShapesBatch | HomographyBatch, views: tuple[_View, ...]) -> dict[str, Tensor]:
        with _full_precision(batch):
            detector, accuracy = zip(
                *(self._detector_loss(view, batch, f"view{side}") for side, view in enumerate(views)),
                strict=True,
            )
            losses = {"detector": torch.stack(detector).sum()}
            figures = {"figure/point_accuracy": torch.stack(accuracy).mean()}
            if self.stage == _DESCRIPTOR_STAGE:
                found = descriptor_loss(
                    views[0].descriptors,
                    views[1].descriptors,
                    _pairs(batch).H_0to1,
                    whole_cells(views[0].valid),
                    whole_cells(views[1].valid),
                    self.config.training.loss,
                )
                losses["descriptor"] = self.config.training.loss.lambda_descriptor * found.loss
                figures["figure/positive"] = found.positive.detach()
                figures["figure/negative"] = found.negative.detach()
        return losses | figures

    def _detector_loss(
        self, view: _View, batch: ShapesBatch | HomographyBatch, purpose: str
    ) -> tuple[Tensor, Tensor]:
        classes, counts = cell_targets(view.labels, view.valid, batch.seeds, purpose=purpose)
        asked = counts & (classes != NO_POINT)
        right = asked & (view.logits[:, :NO_POINT].argmax(dim=1) == classes)
        accuracy = right.sum() / asked.sum().clamp_min(1)
        return detector_loss(view.logits, classes, counts), accuracy

    def _views(self, batch: ShapesBatch | HomographyBatch) -> tuple[_View, ...]:
        if isinstance(batch, ShapesBatch):
            return (self._view(batch.image, batch.image, batch.valid, batch.keypoints),)
        if batch.keypoints0 is None or batch.keypoints1 is None:
            raise DataError(
                f"superpoint/{self.stage}: {batch.names[0]}: expected a photograph with labelled interest points, "
                f"got none; the dataset must be labelled first, with the weights of the stage `labels_from`"
            )
        return (
            self._view(batch.image0, grey_from_rgb(batch.image0), batch.valid0, batch.keypoints0),
            self._view(batch.image1, grey_from_rgb(batch.image1), batch.valid1, batch.keypoints1),
        )

    def _view(self, image: Tensor, grey: Tensor, valid: Tensor, labels: tuple[Tensor, ...]) -> _View:
        """A call of the network per view, so that each is normalised by its own batch statistics."""
        if self.stage == _DESCRIPTOR_STAGE:
            maps = self.network(grey)
            logits, descriptors = maps.logits, maps.descriptors
        else:  # spares the frozen head, and leaves its running statistics alone
            logits = self.network.detector_logits(grey)
            descriptors = logits.new_empty(0)
        return _View(image=image, valid=valid, labels=labels, logits=logits, descriptors=descriptors)

    # ---------------------------------------------------------------- validation
    @torch.no_grad()
    def validation_step(self, batch: ShapesBatch | HomographyBatch) -> dict[str, float]:
        """Figures of a batch, in evaluation mode.

        detection_ap:      mean over pictures of `metrics.picture_precision` against the labels (for
            photographs: the labels of the stage before)
        points:            detections per picture
        loss:              as in training, all terms
        repeatability:     mean over pairs (magicpoint, superpoint), see `validation.pair_repeatability`
        matching_accuracy: mean over pairs (superpoint), see `metrics.matching_accuracy`
        matches:           matches with known truth per pair (superpoint)
        """
        views, settings = self._views(batch), self.config.training.validation
        losses = self._losses(batch, views)
        found = [self._detect(view) for view in views]
        labels = [
            askable_labels(points, valid, settings)
            for view in views
            for points, valid in zip(view.labels, view.valid, strict=True)
        ]
        best = [detections.best(settings.max_points) for view in found for detections in view]
        figures = {
            "detection_ap": self._precision(best, labels),
            "points": float(np.mean([len(detections.points) for detections in best])),
            "loss": sum(float(loss) for name, loss in losses.items() if not name.startswith("figure/")),
        }
        if isinstance(batch, HomographyBatch):
            shares = [
                pair_repeatability(batch, pair, both, settings)
                for pair, both in enumerate(zip(*found, strict=True))
            ]
            figures["repeatability"] = float(np.mean(shares))
        if self.stage == _DESCRIPTOR_STAGE:
            figures |= self._matching_figures(_pairs(batch), views, found)
        return figures

    def _precision(self, found: Sequence[Detections], labels: Sequence[Tensor]) -> float:
        threshold_px = self.config.training.validation.threshold_px
        min_score = self.config.detection.threshold
        figures = [
            picture_precision(detections, points, threshold_px=threshold_px, min_score=min_score)
            for detections, points in zip(found, labels, strict=True)
        ]
        return float(np.mean(figures))

    def _detect(self, view: _View) -> list[Detections]:
        """The detections of each picture."""
        settings = self.config.training.validation
        heats = heatmap(view.logits)
        return [detect(heat, valid, settings) for heat, valid in zip(heats, view.valid, strict=True)]

    def _matching_figures(
        self, batch: HomographyBatch, views: tuple[_View, ...], found: list[list[Detections]]
    ) -> dict[str, float]:
        threshold_px = self.config.training.validation.threshold_px
        matched = [
            self._match(batch, views, pair, both) for pair, both in enumerate(zip(*found, strict=True))
        ]
        accuracies = [matching_accuracy(matches, threshold_px=threshold_px) for matches in matched]
        known = [int(matches.error_px.isfinite().sum()) for matches in matched]
        return {"matching_accuracy": float(np.mean(accuracies)), "matches": float(np.mean(known))}

    def _match(
        self, batch: HomographyBatch, views: tuple[_View, ...], pair: int, found: tuple[Detections, ...]
    ) -> CheckedMatches:
        """Matches between the best detections of the two views of one pair."""
        count = self.config.training.validation.max_points
        points0, points1 = (detections.best(count).points for detections in found)
        maps = (views[0].descriptors[pair], views[1].descriptors[pair])
        with _full_precision(batch):
            return match_views(batch, pair, (points0, points1), maps, self.config.descriptor)

    # ---------------------------------------------------------------- pictures
    @torch.no_grad()
    def pictures(self, batch: ShapesBatch | HomographyBatch) -> dict[str, Image]:
        """Samples of the batch with their labels; of its first picture, detections and heat map; matches."""
        was_training = self.training
        self.eval()
        try:
            views = self._views(batch)
            found = [self._detect(view) for view in views]
            drawn = {
                "samples": _draw_samples(batch),
                "detections": _draw_detections(views[0], found[0][0]),
            }
            if self.stage == _DESCRIPTOR_STAGE:
                matches = self._match(_pairs(batch), views, 0, (found[0][0], found[1][0]))
                threshold_px = self.config.training.validation.threshold_px
                first, second = views[0].image[0], views[1].image[0]
                drawn["matches"] = draw_matches(first, second, matches, threshold_px=threshold_px)
        finally:
            self.train(was_training)
        return drawn

    # ---------------------------------------------------------------- parameters
    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group of all trainable parameters."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights and statistics of the stage before. Raises TrainingError for another network's."""
        own = self.state_dict()
        where = f"superpoint/{self.stage}: initial weights"
        for name in [*own, *state]:
            if name not in state or name not in own:
                fault = "missing" if name in own else "unknown"
                raise TrainingError(
                    f"{where}: expected those of the stage before, got a state with {name} {fault}; all stages "
                    f"need the same network.layout"
                )
        for name, tensor in state.items():
            if tensor.shape != own[name].shape:
                raise TrainingError(
                    f"{where}: {name}: expected shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}; all "
                    f"stages need the same network.variant"
                )
        self.load_state_dict(dict(state))


def _draw_samples(batch: ShapesBatch | HomographyBatch) -> Image:
    if isinstance(batch, ShapesBatch):
        return draw_shapes(batch)
    from matchlib.photo_pairs.pictures import sample_sheet

    return sample_sheet(batch)


def _draw_detections(view: _View, found: Detections) -> Image:
    """As many detections as there are labels, at least ten: the scale of scores changes in training."""
    labels = view.labels[0]
    shown = found.best(max(len(labels), 10))
    return draw_detections(view.image[0], heatmap(view.logits[:1])[0], shown.points, labels)


def _pairs(batch: ShapesBatch | HomographyBatch) -> HomographyBatch:
    if not isinstance(batch, HomographyBatch):
        raise TypeError(f"expected a HomographyBatch, got {type(batch).__name__}")
    return batch


def _full_precision(batch: ShapesBatch | HomographyBatch) -> torch.autocast:
    """Mixed precision is for the network: losses and coordinates do not survive it."""
    image = batch.image if isinstance(batch, ShapesBatch) else batch.image0
    return torch.autocast(image.device.type, enabled=False)
