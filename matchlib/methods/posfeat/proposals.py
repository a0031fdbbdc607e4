"""Keypoints drawn from a score map: one proposal per cell, accepted or not, with its log-probability.

Source: Li et al., CVPR 2022, section 3.3, after DISK (Tyszkiewicz et al., NeurIPS 2020, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import ShapeError, check_shape
from matchlib.randomness import generator_for


@dataclass(frozen=True, slots=True)
class Proposals:
    """One proposed keypoint for each of N cells, row by row, in each of B images.

    points:   (B, N, 2) float32, (x, y) px; integers, since a proposal is a pixel
    log_prob: (B, N) log-probability of the draw, of the pixel and of its acceptance or refusal together;
              differentiable in the scores
    accepted: (B, N) bool
    """

    points: Tensor
    log_prob: Tensor
    accepted: Tensor

    def __post_init__(self) -> None:
        sizes = check_shape("points", self.points, "B N 2")
        check_shape("log_prob", self.log_prob, f"{sizes['B']} {sizes['N']}")
        check_shape("accepted", self.accepted, f"{sizes['B']} {sizes['N']}")


def propose(scores: Tensor, cell_px: int, seeds: Sequence[int], purpose: str) -> Proposals:
    """Draw one pixel of every cell with probability softmax(scores), and accept it with probability sigmoid(score).

    scores:  (B, 1, H, W); columns and rows at the right and the bottom that fill no cell are left out
    cell_px: side of a cell in pixels; there are N = (H // cell_px) (W // cell_px) cells
    seeds:   one per image; with `purpose` they address the draws, which are made on the CPU: the same scores give
             the same proposals on every device, save where rounding moves a probability across a draw
    Scores of the head are >= 0, so that at least half of all proposals are accepted, whatever it has learned: what
    it learns is where in a cell a keypoint lies, and sparsity comes from the selection at inference. Half
    precision is raised to float32. Raises ShapeError, also for images smaller than a cell.
    """
    batch = check_shape("scores", scores, "B 1 H W")["B"]
    if len(seeds) != batch:
        raise ShapeError(f"seeds: expected one for each of {batch} images, got {len(seeds)}")
    logits_BNC = _cells(scores, cell_px)
    cells = logits_BNC.shape[1]
    pixel_draw_BN, acceptance_draw_BN = _draws(seeds, purpose, cells).to(scores.device)
    choice_BN1 = _inverse_distribution(logits_BNC.detach(), pixel_draw_BN)[..., None]
    chosen_BN = logits_BNC.gather(2, choice_BN1).squeeze(2)
    accepted_BN = acceptance_draw_BN < chosen_BN.detach().double().sigmoid()
    log_pixel_BN = chosen_BN - logits_BNC.logsumexp(dim=2)
    log_decision_BN = F.logsigmoid(torch.where(accepted_BN, chosen_BN, -chosen_BN))
    points_BN2 = _positions(choice_BN1.squeeze(2), cell_px, scores.shape[3] // cell_px)
    return Proposals(points_BN2, log_pixel_BN + log_decision_BN, accepted_BN)


def _cells(scores: Tensor, cell_px: int) -> Tensor:
    """(B, N, cell_px^2) scores of each cell's pixels; cells and pixels row by row, at least float32."""
    height, width = scores.shape[2:]
    rows, columns = height // cell_px, width // cell_px
    if rows == 0 or columns == 0:
        raise ShapeError(
            f"scores: expected an image of at least {cell_px} x {cell_px} px (cell_px), got {width} x {height}; "
            f"train on larger images or with smaller cells"
        )
    whole = scores[:, 0, : rows * cell_px, : columns * cell_px]
    cells = whole.reshape(-1, rows, cell_px, columns, cell_px).transpose(2, 3)
    return cells.reshape(-1, rows * columns, cell_px**2).to(torch.promote_types(scores.dtype, torch.float32))


def _draws(seeds: Sequence[int], purpose: str, cells: int) -> Tensor:
    """(2, B, N) float64 uniform in [0, 1): for the pixel, and for the acceptance."""
    drawn = [generator_for(seed, "proposals", purpose).random((2, cells)) for seed in seeds]
    return (
        torch.from_numpy(np.stack(drawn, axis=1)) if drawn else torch.empty(2, 0, cells, dtype=torch.float64)
    )


def _inverse_distribution(logits_BNC: Tensor, draw_BN: Tensor) -> Tensor:
    """(B, N) int64: the first entry at which the cumulative softmax exceeds the draw."""
    entries = logits_BNC.shape[2]
    # A product with a triangle of ones: torch has no deterministic cumulative sum on CUDA.
    triangle_CC = torch.ones(entries, entries, dtype=torch.float64, device=logits_BNC.device).triu()
    cumulative_BNC = logits_BNC.double().softmax(dim=2) @ triangle_CC
    # The last sum may round to less than 1; what is missing belongs to the last entry.
    return (cumulative_BNC <= draw_BN[..., None]).sum(dim=2).clamp_max(entries - 1)


def _positions(choice_BN: Tensor, cell_px: int, columns: int) -> Tensor:
    """(B, N, 2) float32 pixel positions of the chosen entries of all cells."""
    cell_N = torch.arange(choice_BN.shape[1], device=choice_BN.device)
    x_BN = (cell_N % columns) * cell_px + choice_BN % cell_px
    y_BN = (cell_N // columns) * cell_px + choice_BN // cell_px
    return torch.stack([x_BN, y_BN], dim=2).float()
