"""JPEG compression as an image change: what a decoder returns after an encoder, on any device, without entropy coding.

Baseline JPEG with the example tables of ITU-T T.81 (annex K), scaled as the IJG library scales them, and 4:2:0 chroma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import ShapeError, check_shape

# ITU-T T.81, tables K.1 and K.2, row by row.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# ITU-R BT.601 as JFIF uses it: rows Y, Cb, Cr of R, G, B.
_RGB_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
_YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg(image_3HW: Tensor, quality: int) -> Tensor:
    """The image (3, H, W) float32 RGB in [0, 1] after compression with a quality of 1 to 100.

    Grey levels are whole numbers of 255 before and after, as in a file. Not differentiable. Raises ShapeError.
    """
    sizes = check_shape("image", image_3HW, "3 H W")
    if not 1 <= quality <= 100:
        raise ShapeError(f"quality: expected 1 to 100, got {quality}")
    height, width = sizes["H"], sizes["W"]
    levels = _mix_channels((image_3HW * 255).round(), _RGB_TO_YCC)
    padded = F.pad(levels[None], (0, -width % 16, 0, -height % 16), mode="replicate")[0]
    luma = _quantise(padded[:1] - 128, _table(_LUMINANCE, quality, image_3HW)) + 128
    chroma = _quantise(F.avg_pool2d(padded[1:], 2), _table(_CHROMINANCE, quality, image_3HW))
    # Decoders interpolate chroma with weights 3/4 and 1/4, which is bilinear between the centres of its pixels.
    chroma = F.interpolate(chroma[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    rgb = _mix_channels(torch.cat([luma, chroma])[:, :height, :width], _YCC_TO_RGB)
    return rgb.round().clamp(0, 255) / 255


def _quantise(plane_CHW: Tensor, table_88: Tensor) -> Tensor:
    """Planes after rounding the DCT coefficients of each 8x8 block to multiples of the table."""
    channels, height, width = plane_CHW.shape
    dct = _dct_matrix(plane_CHW)
    blocks = plane_CHW.reshape(channels, height // 8, 8, width // 8, 8).transpose(2, 3)
    coefficients = (dct @ blocks @ dct.T / table_88).round() * table_88
    return (dct.T @ coefficients @ dct).transpose(2, 3).reshape(channels, height, width)


def _dct_matrix(like: Tensor) -> Tensor:
    """The orthonormal DCT-II (8, 8), frequencies by rows."""
    rows = [
        [math.sqrt((1 if k == 0 else 2) / 8) * math.cos(math.pi * (2 * n + 1) * k / 16) for n in range(8)]
        for k in range(8)
    ]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _table(base: tuple[tuple[int, ...], ...], quality: int, like: Tensor) -> Tensor:
    """A quantisation table (8, 8) for a quality, by the IJG library's rule in whole numbers."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled = [[min(max((value * percent + 50) // 100, 1), 255) for value in row] for row in base]
    return torch.tensor(scaled, dtype=like.dtype, device=like.device)


def _mix_channels(image_3HW: Tensor, weights: tuple[tuple[float, ...], ...]) -> Tensor:
    a, b, c = image_3HW
    return torch.stack([row[0] * a + row[1] * b + row[2] * c for row in weights])
