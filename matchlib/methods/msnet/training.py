"""MSNet as the trainer sees it: losses, validation, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.errors import ConfigError, TrainingError
from matchlib.geometry.homography import local_scale
from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.msnet.config import Members, MSNetConfig
from matchlib.methods.msnet.examples import Correspondences, draw_correspondences, mine_negatives
from matchlib.methods.msnet.importing import load_backbone
from matchlib.methods.msnet.loss import contrastive_terms
from matchlib.methods.msnet.model import DescriptorMaps, MSNet
from matchlib.methods.msnet.network import DESCRIPTOR_STRIDE
from matchlib.methods.msnet.pictures import draw_descriptors, draw_negatives
from matchlib.methods.msnet.scales import covariance_loss, true_scale_at_cells
from matchlib.methods.msnet.states import first_difference
from matchlib.ops.sets import nearest_in_sets
from matchlib.photo_pairs.batch import HomographyBatch
from matchlib.photo_pairs.pictures import sample_sheet

_DRAWN_NEGATIVES = 12


def build(config: MSNetConfig, stage: str, seed: int) -> TrainableMSNet:
    """A freshly initialised model for stage "descriptor"; random weights are a function of the seed.

    Raises ConfigError for another stage, DataError for `network.backbone_weights` that do not fit.
    """
    if stage != "descriptor":
        raise ConfigError(f"msnet: expected stage 'descriptor', got '{stage}'")
    model = TrainableMSNet(config)
    model.initialise(seed)
    if config.network.backbone_weights is not None:
        load_backbone(model.network.backbone, Path(config.network.backbone_weights))
    return model


class TrainableMSNet(MSNet):
    """MSNet with what `matchlib.training.types.TrainableModel` asks for."""

    def training_step(self, batch: HomographyBatch) -> dict[str, Tensor]:
        """Losses distance, similarity and, where it is predicted, scale, with figures; means over the pairs.

        active_negatives:    share of mined negatives within the margin
        correspondences:     number per pair; a pair with fewer than `loss.min_correspondences` has losses 0
        scale_error_octaves: mean error of the predicted scale between the views
        """
        maps0, maps1 = self._describe(batch, self.config.trained_members)
        with _full_precision(batch):
            drawn = draw_correspondences(
                batch, most=self.config.loss.correspondences, purpose="correspondences"
            )
            rows = [self._pair_terms(batch, index, maps0, maps1, found) for index, found in enumerate(drawn)]
            # Sorted: every process must name them in the same order, whatever its pairs were like.
            return {name: torch.stack([row[name] for row in rows]).mean() for name in sorted(rows[0])}

    @torch.no_grad()
    def validation_step(self, batch: HomographyBatch) -> dict[str, float]:
        """Means over the pairs of a batch, in evaluation mode, of the members that `members` names.

        pck:               share of up to `validation.points` random pixels of view 0 whose nearest descriptor
                           among their partners' lies within `validation.threshold_px` of the true position
        matching_accuracy: the same among all cells of view 1's map, 4 px apart
        loss:              as in training, on the first member and these points
        scale_error_octaves: where a scale is predicted
        A pair without a known point has none of them.
        """
        maps0, maps1 = self._describe(batch, self.config.used_members)
        with _full_precision(batch):
            drawn = draw_correspondences(batch, most=self.config.validation.points, purpose="validation")
            rows = [
                self._pair_figures(batch, index, maps0, maps1, found)
                for index, found in enumerate(drawn)
                if len(found)
            ]
        names = rows[0] if rows else ("pck",)
        return {name: float(np.mean([row[name] for row in rows])) if rows else math.nan for name in names}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group of all parameters with the weight decay of the configuration."""
        group: dict[str, Any] = {"params": list(self.parameters())}
        if self.config.weight_decay is not None:
            group["weight_decay"] = self.config.weight_decay
        return [group]

    @torch.no_grad()
    def pictures(self, batch: HomographyBatch) -> dict[str, npt.NDArray[np.uint8]]:
        """True correspondences; descriptors as colours; points with their partners and mined negatives."""
        was_training = self.training
        self.eval()
        try:
            maps0, maps1 = self._describe(batch, self.config.trained_members)
        finally:
            self.train(was_training)
        with _full_precision(batch):
            map0, map1 = maps0.members[0][0], maps1.members[0][0]
            found = draw_correspondences(batch, most=_DRAWN_NEGATIVES, purpose="pictures")[0]
            descriptors0 = maps0.read(0, found.points0 / DESCRIPTOR_STRIDE)[:, 0]
            cells, is_mined = mine_negatives(
                descriptors0, map1, found.points1, batch.valid1[0], self.config.loss, seed=batch.seeds[0]
            )
        return {
            "samples": sample_sheet(batch),
            "descriptors": draw_descriptors(map0, map1),
            "hard_negatives": draw_negatives(
                batch.image0[0],
                batch.image1[0],
                found.points0[is_mined],
                found.points1[is_mined],
                cells[is_mined] * DESCRIPTOR_STRIDE,
            ),
        }

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        """Take over all weights and statistics. Raises TrainingError for a state of another network."""
        difference = first_difference(self.state_dict(), state)
        if difference is not None:
            raise TrainingError(f"msnet: not weights of this variant of MSNet: {difference}")
        self.load_state_dict(dict(state))

    def _describe(self, batch: HomographyBatch, members: Members) -> tuple[DescriptorMaps, DescriptorMaps]:
        """Maps of both views, one after the other: each is normalised by its own batch statistics."""
        scale0 = scale1 = None
        if members == "oracle_blend":
            width, height = batch.size
            cells = (-(-height // DESCRIPTOR_STRIDE), -(-width // DESCRIPTOR_STRIDE))
            H_1to0: Tensor = torch.linalg.inv(batch.H_0to1)
            scale0, scale1 = true_scale_at_cells(batch.H_0to1, cells), true_scale_at_cells(H_1to0, cells)
        maps0: DescriptorMaps = self(batch.image0, members=members, scale=scale0)
        maps1: DescriptorMaps = self(batch.image1, members=members, scale=scale1)
        return maps0, maps1

    def _pair_terms(
        self,
        batch: HomographyBatch,
        index: int,
        maps0: DescriptorMaps,
        maps1: DescriptorMaps,
        found: Correspondences,
    ) -> dict[str, Tensor]:
        """Losses and figures of one pair by name; losses 0 if it has too few correspondences."""
        counted = {"figure/correspondences": maps0.members[0].new_tensor(float(len(found)))}
        if len(found) < self.config.loss.min_correspondences:
            return counted | self._no_terms(index, maps0, maps1)
        return counted | self._terms(batch, index, maps0, maps1, found)

    def _terms(
        self,
        batch: HomographyBatch,
        index: int,
        maps0: DescriptorMaps,
        maps1: DescriptorMaps,
        found: Correspondences,
    ) -> dict[str, Tensor]:
        """Losses and figures of at least one correspondence by name, from the first member."""
        config = self.config.loss
        descriptors0 = maps0.read(index, found.points0 / DESCRIPTOR_STRIDE)[:, 0]
        partners = maps1.read(index, found.points1 / DESCRIPTOR_STRIDE)[:, 0]
        cells, is_mined = mine_negatives(
            descriptors0,
            maps1.members[0][index],
            found.points1,
            batch.valid1[index],
            config,
            seed=batch.seeds[index],
        )
        negatives = maps1.read(index, cells)[:, 0]
        terms = contrastive_terms(descriptors0, partners, negatives, is_mined, margin=config.margin)
        row = {"distance": terms.distance, "similarity": terms.similarity}
        if self.config.predicts_scale:
            row |= self._scale_terms(batch, index, maps0, maps1, found)
        return row | {"figure/active_negatives": terms.active_share}

    def _scale_terms(
        self,
        batch: HomographyBatch,
        index: int,
        maps0: DescriptorMaps,
        maps1: DescriptorMaps,
        found: Correspondences,
    ) -> dict[str, Tensor]:
        octaves0, octaves1 = (
            maps0.read_octaves(index, found.points0),
            maps1.read_octaves(index, found.points1),
        )
        true_scale = local_scale(batch.H_0to1[index], found.points0.double())
        loss = covariance_loss(
            octaves0, octaves1, true_scale, transition_octaves=self.config.loss.scale_transition_octaves
        )
        error = (octaves1 - octaves0 - torch.log2(true_scale)).detach().abs().mean().float()
        return {"scale": self.config.loss.scale_weight * loss, "figure/scale_error_octaves": error}

    def _no_terms(self, index: int, maps0: DescriptorMaps, maps1: DescriptorMaps) -> dict[str, Tensor]:
        """Zeros, tied to the outputs, so that every process has a gradient for every parameter."""
        zero = 0.0 * (maps0.members[0][index].sum() + maps1.members[0][index].sum())
        names = ["distance", "similarity", "figure/active_negatives"]
        if self.config.predicts_scale:
            names += ["scale", "figure/scale_error_octaves"]
        return {name: zero.detach() if name.startswith("figure/") else zero for name in names}

    def _pair_figures(
        self,
        batch: HomographyBatch,
        index: int,
        maps0: DescriptorMaps,
        maps1: DescriptorMaps,
        found: Correspondences,
    ) -> dict[str, float]:
        """Validation figures of one pair with at least one correspondence."""
        sets0 = maps0.read(index, found.points0 / DESCRIPTOR_STRIDE)
        height, width = maps1.cells
        cells = pixel_grid(height, width, device=sets0.device)
        figures = {}
        for name, candidates in (("pck", found.points1), ("matching_accuracy", cells * DESCRIPTOR_STRIDE)):
            sets1 = maps1.read(index, candidates / DESCRIPTOR_STRIDE)
            nearest, _ = nearest_in_sets(sets0, sets1, member_pairs=self.config.member_pairs)
            error_px = torch.linalg.vector_norm(candidates[nearest] - found.points1, dim=1)
            figures[name] = float((error_px <= self.config.validation.threshold_px).float().mean())
        terms = self._terms(batch, index, maps0, maps1, found)
        figures["loss"] = float(sum(loss for name, loss in terms.items() if not name.startswith("figure/")))
        if self.config.predicts_scale:
            figures["scale_error_octaves"] = float(terms["figure/scale_error_octaves"])
        return figures


def _full_precision(batch: HomographyBatch) -> torch.autocast:
    """Mixed precision is for the network: losses and coordinates do not survive it."""
    return torch.autocast(batch.image0.device.type, enabled=False)
