"""PoSFeat as the trainer sees it: losses, validation and pictures of its two stages.

"desc": the description net learns from camera poses alone. "kp": it is frozen, and the keypoint head learns by policy
gradient. Both need `pose` supervision (`PoseBatch`); where a batch carries depth too, validation also tells the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from matchlib.datasets.batch import PairBatch, PoseBatch
from matchlib.errors import ConfigError, TrainingError
from matchlib.features.config import DetectorConfig
from matchlib.features.detectors import detect_keypoints
from matchlib.features.types import Image
from matchlib.methods.posfeat.augmentation import colour_jitter
from matchlib.methods.posfeat.config import InferenceConfig, PoSFeatConfig
from matchlib.methods.posfeat.descriptor_loss import DescriptorLoss, descriptor_loss
from matchlib.methods.posfeat.detection import select_keypoints
from matchlib.methods.posfeat.keypoint_loss import KeypointLoss, keypoint_loss
from matchlib.methods.posfeat.metrics import (
    CheckedMatches,
    Keypoints,
    check_matches,
    depth_figures,
    fundamental_matrices,
    pose_figures,
)
from matchlib.methods.posfeat.model import PoSFeat
from matchlib.methods.posfeat.network import SIZE_MULTIPLE, descriptors_at, normalise
from matchlib.methods.posfeat.pictures import (
    draw_line_search,
    draw_pair,
    draw_score_maps,
    search_lines,
    to_image,
)
from matchlib.methods.posfeat.proposals import Proposals, propose
from matchlib.randomness import torch_generator_for

_STAGES = ("desc", "kp")


def build(config: PoSFeatConfig, stage: str, seed: int) -> TrainablePoSFeat:
    """A freshly initialised model for stage "desc" or "kp"; random weights are a function of the seed.

    Raises ConfigError for another stage, DataError for `network.encoder_weights` that do not fit.
    """
    if stage not in _STAGES:
        raise ConfigError(f"posfeat: expected stage 'desc' or 'kp', got '{stage}'")
    return TrainablePoSFeat(config, stage=stage, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the networks say about a batch, in float32.

    fine0, fine1:     (B, 128, H/4, W/4) descriptor maps
    scores0, scores1: (B, 1, H, W) in stage kp, else None
    F_0to1:           (B, 3, 3) float64
    """

    fine0: Tensor
    fine1: Tensor
    scores0: Tensor | None
    scores1: Tensor | None
    F_0to1: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matched:
    """Keypoints of both images of one pair, and their matches."""

    keypoints0: Keypoints
    keypoints1: Keypoints
    matches: CheckedMatches


class TrainablePoSFeat(PoSFeat):
    """PoSFeat with what `matchlib.training.types.TrainableModel` asks for."""

    def __init__(self, config: PoSFeatConfig, *, stage: str, seed: int) -> None:
        super().__init__(config, with_head=stage == "kp")
        self.stage = stage
        self.backbone.initialise(torch_generator_for(seed, "posfeat", "backbone"))
        if self.head is not None:
            self.head.initialise(torch_generator_for(seed, "posfeat", "head"))
            self.backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train; but a frozen description net keeps its batch statistics, so stays in eval mode."""
        super().train(mode)
        if self.stage == "kp":
            self.backbone.eval()
        return self

    # ---------------------------------------------------------------- losses
    def training_step(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The loss and figures of one batch; draws come from `batch.seeds`.

        desc: epipolar, the loss of `descriptor_loss`; figures loss_0to1, loss_1to0, used_share, distance_px
        kp:   policy, the loss of `keypoint_loss`; figures reinforce, penalty, keypoints, matches, good_share
        Raises ConfigError for images whose sides are no multiples of 16.
        """
        seen = self._see(batch, jittered=self.config.descriptor_loss.colour_jitter)
        if seen.scores0 is None or seen.scores1 is None:
            return self._descriptor_losses(batch, seen)
        return self._keypoint_losses(batch, seen, seen.scores0, seen.scores1)

    def _descriptor_losses(self, batch: PoseBatch, seen: _Seen) -> dict[str, Tensor]:
        with _full_precision(batch):
            losses = descriptor_loss(
                seen.fine0,
                seen.fine1,
                seen.F_0to1,
                _size(batch),
                batch.seeds,
                self.config.descriptor_loss,
                self.config.network.sampling,
            )
        return {"epipolar": losses.loss} | _figures(
            losses, "loss_0to1", "loss_1to0", "used_share", "distance_px"
        )

    def _keypoint_losses(
        self, batch: PoseBatch, seen: _Seen, scores0: Tensor, scores1: Tensor
    ) -> dict[str, Tensor]:
        config = self.config.keypoint_loss
        with _full_precision(batch):
            proposals0 = propose(scores0, config.cell_px, batch.seeds, "image0")
            proposals1 = propose(scores1, config.cell_px, batch.seeds, "image1")
            losses = keypoint_loss(
                proposals0,
                proposals1,
                self._descriptors_of(seen.fine0, proposals0, batch),
                self._descriptors_of(seen.fine1, proposals1, batch),
                seen.F_0to1,
                config,
            )
        names = ("reinforce", "penalty", "keypoints", "matches", "good_share")
        return {"policy": losses.loss} | _figures(losses, *names)

    @torch.no_grad()
    def _descriptors_of(self, fine: Tensor, proposals: Proposals, batch: PoseBatch) -> Tensor:
        """Unit descriptors (B, N, D) at the proposals."""
        size, sampling = _size(batch), self.config.network.sampling
        return torch.stack(
            [
                descriptors_at(one, points, size, sampling)
                for one, points in zip(fine, proposals.points, strict=True)
            ]
        )

    def _see(self, batch: PoseBatch, *, jittered: bool) -> _Seen:
        """Both images of all pairs in one forward pass."""
        width, height = _size(batch)
        if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE:
            raise ConfigError(
                f"image_size: posfeat/{self.stage}: expected width and height that are multiples of "
                f"{SIZE_MULTIPLE}, got {width} x {height}"
            )
        images = torch.cat(
            [
                colour_jitter(image, batch.seeds, f"image{side}") if jittered else image
                for side, image in enumerate((batch.image0, batch.image1))
            ]
        )
        scores0 = scores1 = None
        if self.head is None:
            towers = 2 if self.config.network.batch_statistics == "per_image" else 1
            maps = self.backbone(normalise(images), towers=towers)
        else:
            with torch.no_grad():
                maps = self.maps(images)
            scores0, scores1 = self.scores(images, maps).float().chunk(2)
        fine0, fine1 = maps.fine.float().chunk(2)
        return _Seen(
            fine0=fine0,
            fine1=fine1,
            scores0=scores0,
            scores1=scores1,
            F_0to1=fundamental_matrices(batch.T_0to1, batch.K0, batch.K1),
        )

    # ---------------------------------------------------------------- validation
    @torch.no_grad()
    def validation_step(self, batch: PoseBatch) -> dict[str, float]:
        """Means over the pairs of a batch, in evaluation mode, on unchanged images.

        Keypoints are those of the head (kp), or SIFT's (desc): the best `validation.max_keypoints` of each image.
        epipolar_precision: share of the mutual nearest neighbours within `validation.threshold_px` of both epipolar
            lines; 0 if there are none. precision_1px, precision_5px: the same at other thresholds
        chance_precision:   what pairing these keypoints at random would score as epipolar_precision
        keypoints, matches: number of keypoints per image, of matches per pair
        matching_accuracy, repeatability: by depth, where the batch carries it, see `metrics.depth_figures`
        No losses: those of stage desc are averaged over the processes, of which some may have no pair to validate, and
        that of stage kp has no meaning of its own.
        """
        seen = self._see(batch, jittered=False)
        with _full_precision(batch):
            rows = [self._pair_figures(batch, pair, seen) for pair in range(len(batch))]
        return {name: _mean_of_known([row[name] for row in rows]) for name in rows[0]}

    def _pair_figures(self, batch: PoseBatch, pair: int, seen: _Seen) -> dict[str, float]:
        found = self._match(batch, pair, seen)
        threshold_px = self.config.validation.threshold_px
        keypoints0, keypoints1, matches = found.keypoints0, found.keypoints1, found.matches
        figures = pose_figures(keypoints0, keypoints1, matches, seen.F_0to1[pair], threshold_px)
        if isinstance(batch, PairBatch):
            figures |= depth_figures(batch, pair, matches, keypoints0.points, keypoints1.points, threshold_px)
        return figures

    def _match(self, batch: PoseBatch, pair: int, seen: _Seen) -> _Matched:
        keypoints = [
            self._keypoints(image[pair], fine[pair], None if scores is None else scores[pair, 0])
            for image, fine, scores in (
                (batch.image0, seen.fine0, seen.scores0),
                (batch.image1, seen.fine1, seen.scores1),
            )
        ]
        matches = check_matches(
            keypoints[0],
            keypoints[1],
            seen.F_0to1[pair],
            rank_by="similarity" if self.head is None else "scores",
        )
        return _Matched(keypoints0=keypoints[0], keypoints1=keypoints[1], matches=matches)

    def _keypoints(self, image: Tensor, fine: Tensor, scores: Tensor | None) -> Keypoints:
        """The best keypoints of one image (3, H, W)."""
        most = self.config.validation.max_keypoints
        if scores is None:
            detected = detect_keypoints(to_image(image), DetectorConfig(max_keypoints=most))
            points, strength = (torch.from_numpy(found).to(fine.device) for found in detected)
        else:
            # A fixed number and no threshold: the scale of scores changes in training, the figure must not.
            best = InferenceConfig(max_keypoints=most, nms_radius=1, score_threshold=0.0)
            points, strength = select_keypoints(scores, best)
        size = (image.shape[-1], image.shape[-2])
        descriptors = descriptors_at(fine, points, size, self.config.network.sampling)
        return Keypoints(points=points, scores=strength, descriptors=descriptors)

    # ---------------------------------------------------------------- pictures
    @torch.no_grad()
    def pictures(self, batch: PoseBatch) -> dict[str, Image]:
        """Of the first pair: score maps (kp), keypoints, the best matches, all matches, searches along lines.

        Matches are green on the epipolar lines, red from `validation.picture_error_px` on.
        """
        first = _first_pair(batch)
        was_training = self.training
        self.eval()
        try:
            seen = self._see(first, jittered=False)
            with _full_precision(first):
                found = self._match(first, 0, seen)
                searches = search_lines(
                    found.keypoints0,
                    seen.fine1[0],
                    seen.F_0to1[0],
                    _size(first),
                    samples=self.config.descriptor_loss.line_samples,
                    sampling=self.config.network.sampling,
                )
        finally:
            self.train(was_training)
        image0, image1 = first.image0[0], first.image1[0]
        drawn = draw_pair(
            image0,
            image1,
            found.keypoints0,
            found.keypoints1,
            found.matches,
            self.config.validation,
        )
        drawn["line_search"] = draw_line_search(to_image(image0), to_image(image1), searches)
        if seen.scores0 is not None and seen.scores1 is not None:
            scores0, scores1 = (scores[0, 0].cpu().numpy() for scores in (seen.scores0, seen.scores1))
            drawn["score_map"] = draw_score_maps(scores0, scores1)
        return drawn

    # ---------------------------------------------------------------- parameters
    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group of all trainable parameters."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        """Take over the description net of stage `desc`; the head stays fresh.

        Raises TrainingError for a state of another network, and in stage `desc`, which starts afresh.
        """
        where = f"posfeat/{self.stage}: initial weights"
        if self.stage != "kp":
            raise TrainingError(f"{where}: this stage starts afresh, or from network.encoder_weights")
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("backbone.")}
        for name in [*own, *state]:
            if name not in state or name not in own:
                fault = "missing" if name in own else "unknown"
                raise TrainingError(
                    f"{where}: expected those of stage desc, got a state with {name} {fault}; both stages need the "
                    f"same network settings"
                )
            if state[name].shape != own[name].shape:
                raise TrainingError(
                    f"{where}: {name}: expected shape {tuple(own[name].shape)}, got {tuple(state[name].shape)}; "
                    f"both stages need the same network settings"
                )
        self.load_state_dict(dict(state), strict=False)


def _figures(losses: DescriptorLoss | KeypointLoss, *names: str) -> dict[str, Tensor]:
    return {f"figure/{name}": getattr(losses, name).detach() for name in names}


def _size(batch: PoseBatch) -> tuple[int, int]:
    """(width, height) of the images."""
    return int(batch.image0.shape[-1]), int(batch.image0.shape[-2])


def _first_pair(batch: PoseBatch) -> PoseBatch:
    return type(batch)(**{field.name: getattr(batch, field.name)[:1] for field in fields(batch)})


def _mean_of_known(values: list[float]) -> float:
    """Mean without nan, nan if there is nothing else."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _full_precision(batch: PoseBatch) -> torch.autocast:
    """Mixed precision is for the networks: losses and coordinates do not survive it."""
    return torch.autocast(batch.image0.device.type, enabled=False)
