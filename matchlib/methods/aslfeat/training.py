"""ASLFeat as the trainer sees it: losses, validation, pictures, and the step from base to dcn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.datasets.batch import PairBatch
from matchlib.errors import ConfigError, TrainingError
from matchlib.methods.aslfeat.augmentation import augment
from matchlib.methods.aslfeat.config import ASLFeatConfig
from matchlib.methods.aslfeat.correspondences import draw_correspondences, warp_pair
from matchlib.methods.aslfeat.detection import LEVELS
from matchlib.methods.aslfeat.keypoints import select_keypoints
from matchlib.methods.aslfeat.loss import descriptor_loss, detector_weighted_mean, retrieval_accuracy
from matchlib.methods.aslfeat.model import ASLFeat, DenseFeatures
from matchlib.methods.aslfeat.network import DEFORMABLE_LAYERS, grey_from_rgb, standardise
from matchlib.methods.aslfeat.pictures import draw_keypoints, draw_matches, draw_score_map
from matchlib.ops.nearest import mutual_nearest
from matchlib.randomness import torch_generator_for

_START_OF_DEFORMABLE = 0.5  # sigmoid(0): the amplitude with which a deformable layer starts


def build(config: ASLFeatConfig, stage: str, seed: int) -> TrainableASLFeat:
    """A freshly initialised model for stage "base" or "dcn"; the weights are a function of the seed."""
    if stage not in ("base", "dcn"):
        raise ConfigError(f"aslfeat: expected stage 'base' or 'dcn', got '{stage}'")
    return TrainableASLFeat(config, stage=stage, seed=seed)


class TrainableASLFeat(ASLFeat):
    """ASLFeat with what `matchlib.training.types.TrainableModel` asks for."""

    def __init__(self, config: ASLFeatConfig, *, stage: str, seed: int) -> None:
        super().__init__(config, deformable=stage == "dcn")
        self.stage = stage
        self.network.initialise(torch_generator_for(seed, "aslfeat", "initialise"))
        if stage == "dcn":
            trained = tuple(f"{layer}." for layer in DEFORMABLE_LAYERS)
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith(trained))
            if not config.dcn.update_bn_statistics:
                self.network.freeze_statistics()

    def training_step(self, batch: PairBatch) -> dict[str, Tensor]:
        """The loss and figures of one batch; draws come from `batch.seeds`."""
        first, second = self._both_images(batch, augmented=self.config.loss.photometric_augmentation)
        with _full_precision(batch):
            pairs = [self._pair_loss(batch, index, first, second) for index in range(len(batch))]
        losses, accuracies, counts = zip(*pairs, strict=True)
        figures = {
            "figure/retrieval_accuracy": torch.stack(accuracies).mean(),
            "figure/correspondences": losses[0].new_tensor(counts).mean(),
        }
        for level, maximum in zip(LEVELS, self.running_maxima.maxima, strict=True):
            figures[f"figure/running_max_{level}"] = maximum.clone()
        return {"descriptor": torch.stack(losses).mean(), **figures}

    @torch.no_grad()
    def validation_step(self, batch: PairBatch) -> dict[str, float]:
        """Means over the pairs of a batch, in evaluation mode.

        matching_accuracy: share of mutual nearest neighbours among the detected keypoints that lie within
            `validation_threshold_px` of the true position, of those whose true position is known; 0 if there
            are none
        keypoints, matches: number of keypoints per image, of matches with known truth per pair
        loss, retrieval_accuracy: as in training, on unchanged images
        """
        first, second = self._both_images(batch, augmented=False)
        rows = []
        for index in range(len(batch)):
            with _full_precision(batch):
                loss, retrieval, _ = self._pair_loss(batch, index, first, second)
                found = self._match(batch, index, first, second)
            known = found.error_px[found.error_px.isfinite()]
            correct = int((known <= self.config.validation_threshold_px).sum())
            keypoints = 0.5 * (len(found.keypoints0) + len(found.keypoints1))
            rows.append([correct / max(len(known), 1), len(known), keypoints, float(loss), float(retrieval)])
        names = ("matching_accuracy", "matches", "keypoints", "loss", "retrieval_accuracy")
        return dict(zip(names, (float(mean) for mean in np.mean(rows, axis=0)), strict=True))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group of all trainable parameters, biases included; batch norm has none."""
        group: dict[str, Any] = {"params": [p for p in self.parameters() if p.requires_grad]}
        if self.stage == "dcn" and not self.config.dcn.weight_decay:
            group["weight_decay"] = 0.0
        return [group]

    @torch.no_grad()
    def pictures(self, batch: PairBatch) -> dict[str, npt.NDArray[np.uint8]]:
        """Score map, keypoints, matches (green: right, red: wrong, grey: unknown) of the first pair."""
        was_training = self.training
        self.eval()
        try:
            first, second = self._both_images(batch, augmented=False)
            with _full_precision(batch):
                found = self._match(batch, 0, first, second)
        finally:
            self.train(was_training)
        image0, image1 = _to_uint8(batch.image0[0]), _to_uint8(batch.image1[0])
        threshold = self.config.validation_threshold_px
        lines = [t.cpu().numpy() for t in (found.matched0, found.matched1, found.error_px)]
        return {
            "score_map": draw_score_map(first.score_map()[0].cpu().numpy()),
            "keypoints": draw_keypoints(image0, found.keypoints0.cpu().numpy()),
            "matches": draw_matches(image0, image1, *lines, threshold_px=threshold),
        }

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights and statistics of stage `base` (or, whole, of `dcn`).

        Deformable layers keep their zero offsets; unless `dcn.rescale_statistics` is off, the statistics
        behind them are scaled by the half with which they start, so that the function stays the same. Raises
        TrainingError for a state of another network.
        """
        own = self.state_dict()
        missing = {name for name in own if name not in state}
        unknown = sorted(name for name in state if name not in own)
        new = {name for name in own if "deform_param" in name}
        if unknown or (missing and missing != new):
            fault = f"unknown {unknown[0]}" if unknown else f"missing {min(missing - new or missing)}"
            raise TrainingError(
                f"aslfeat/{self.stage}: expected weights of the stage before, got a state with {fault}"
            )
        for name, tensor in state.items():
            if tensor.shape != own[name].shape:
                raise TrainingError(
                    f"aslfeat/{self.stage}: {name}: expected shape {tuple(own[name].shape)}, "
                    f"got {tuple(tensor.shape)}; both stages need the same network.variant"
                )
        self.load_state_dict(dict(state), strict=False)
        if missing and self.config.dcn.rescale_statistics:
            self._rescale_statistics()

    @torch.no_grad()
    def _rescale_statistics(self) -> None:
        for name in ("conv6_0_bn", "conv6_1_bn"):
            self.network.get_buffer(f"{name}.running_mean").mul_(_START_OF_DEFORMABLE)
            self.network.get_buffer(f"{name}.running_var").mul_(_START_OF_DEFORMABLE**2)
        self.running_maxima.averages[:, 2] *= _START_OF_DEFORMABLE
        self.running_maxima.maxima[2] *= _START_OF_DEFORMABLE

    def _both_images(self, batch: PairBatch, *, augmented: bool) -> tuple[DenseFeatures, DenseFeatures]:
        dense = []
        for tower, rgb in enumerate((batch.image0, batch.image1)):
            grey = grey_from_rgb(rgb)
            if augmented:
                grey = augment(grey, batch.seeds, f"image{tower}")
            dense.append(self(standardise(grey), tower=tower))
        return dense[0], dense[1]

    def _pair_loss(
        self, batch: PairBatch, index: int, first: DenseFeatures, second: DenseFeatures
    ) -> tuple[Tensor, Tensor, int]:
        """Loss, retrieval accuracy, number of correspondences of one pair; 0, 0 below the minimum number."""
        config = self.config.loss
        found = draw_correspondences(batch, index, config)
        if len(found) < config.min_correspondences:
            # Tied to the outputs with factor 0, so that every process has a gradient for every parameter.
            every = [scores.sum() for dense in (first, second) for scores in dense.level_scores]
            return 0.0 * torch.stack(every).sum(), torch.zeros((), device=batch.depth0.device), len(found)
        descriptors0 = first.descriptors_at(index, found.points0)
        descriptors1 = second.descriptors_at(index, found.points1)
        loss_N = descriptor_loss(descriptors0, descriptors1, found, config)
        scores0_N, scores1_N = first.scores_at(index, found.points0), second.scores_at(index, found.points1)
        loss = detector_weighted_mean(loss_N, scores0_N, scores1_N)
        return loss, retrieval_accuracy(descriptors0, descriptors1), len(found)

    def _match(
        self, batch: PairBatch, index: int, first: DenseFeatures, second: DenseFeatures
    ) -> _MatchedPair:
        """Best keypoints of both images of a pair, their mutual nearest neighbours, how far these err."""
        # A fixed number and no threshold: the scale of scores changes in training, the figure must not.
        best = replace(
            self.config.inference, score_threshold=0.0, max_keypoints=self.config.validation_keypoints
        )
        keypoints0, _ = select_keypoints(first.score_map()[index], best)
        keypoints1, _ = select_keypoints(second.score_map()[index], best)
        pairs, _ = mutual_nearest(
            first.descriptors_at(index, keypoints0), second.descriptors_at(index, keypoints1)
        )
        matched0, matched1 = keypoints0[pairs[:, 0]], keypoints1[pairs[:, 1]]
        truth, known = warp_pair(matched0, batch, index, self.config.loss)
        error_px = torch.where(known, (truth - matched1).norm(dim=1), torch.nan)
        return _MatchedPair(keypoints0, keypoints1, matched0, matched1, error_px)


@dataclass(frozen=True, slots=True)
class _MatchedPair:
    """Keypoints (N, 2), (M, 2) and matches (K, 2), (K, 2) in pixels; error_px (K,), nan where unknown."""

    keypoints0: Tensor
    keypoints1: Tensor
    matched0: Tensor
    matched1: Tensor
    error_px: Tensor


def _full_precision(batch: PairBatch) -> torch.autocast:
    """Mixed precision is for the network: losses and coordinates do not survive it."""
    return torch.autocast(batch.image0.device.type, enabled=False)


def _to_uint8(image_3HW: Tensor) -> npt.NDArray[np.uint8]:
    image: npt.NDArray[np.uint8] = (
        (image_3HW.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().cpu().numpy()
    )
    return image
