"""Small pictures of a training pair, for TensorBoard and the report."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from matchlib.features.types import Image
from matchlib.methods.msnet.network import DESCRIPTOR_STRIDE

_PARTNER, _NEGATIVE, _POINT = (0, 158, 115), (213, 94, 0), (240, 228, 66)
_SHIFT = 4  # OpenCV draws at fixed-point coordinates with this many fractional bits


def draw_descriptors(map0_Dhw: Tensor, map1_Dhw: Tensor) -> Image:
    """Both descriptor maps side by side as colours: their first three principal components, found jointly.

    Equal colours in both views mean similar descriptors. Components are stretched between their 1 % and 99 %
    quantiles. A cell is a square of 4 pixels. Returns (4 h, 8 w, 3).
    """
    channels = map0_Dhw.shape[0]
    cells = torch.cat([m.reshape(channels, -1).T for m in (map0_Dhw, map1_Dhw)]).double().cpu()
    centred = cells - cells.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    components = vectors[:, -3:].flip(1)
    # An eigenvector's sign is arbitrary; without a rule colours would flip from one validation to the next.
    largest = components.abs().argmax(dim=0)
    components = components * components[largest, torch.arange(3)].sign()
    projected = (centred @ components).numpy()
    low, high = np.quantile(projected, (0.01, 0.99), axis=0)
    colours = (
        (255 * np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)).round().astype(np.uint8)
    )
    views = colours.reshape(2, *map0_Dhw.shape[1:], 3)
    return np.hstack(list(views.repeat(DESCRIPTOR_STRIDE, axis=1).repeat(DESCRIPTOR_STRIDE, axis=2)))


def draw_negatives(
    image0_3HW: Tensor, image1_3HW: Tensor, points0_N2: Tensor, partners_N2: Tensor, negatives_N2: Tensor
) -> Image:
    """Both views side by side, lines from each point of view 0: green to its partner, red to its negative.

    Images are RGB in [0, 1], points (N, 2) in pixels of their view; N may be 0.
    """
    canvas = np.ascontiguousarray(np.hstack([_to_uint8(image0_3HW), _to_uint8(image1_3HW)]))
    offset = np.array([image0_3HW.shape[2], 0.0])
    starts = points0_N2.cpu().numpy()
    for ends, colour in ((negatives_N2, _NEGATIVE), (partners_N2, _PARTNER)):
        for start, end in zip(starts, ends.cpu().numpy() + offset, strict=True):
            cv2.line(canvas, _fixed(start), _fixed(end), colour, 1, cv2.LINE_AA, _SHIFT)
            cv2.circle(canvas, _fixed(end), 3 << _SHIFT, colour, 1, cv2.LINE_AA, _SHIFT)
    for start in starts:
        cv2.circle(canvas, _fixed(start), 2 << _SHIFT, _POINT, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def _fixed(point: np.ndarray) -> tuple[int, int]:
    x, y = np.rint(point * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


def _to_uint8(image_3HW: Tensor) -> Image:
    image: Image = (image_3HW.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().cpu().numpy()
    return image
