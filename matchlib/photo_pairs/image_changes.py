"""Single photometric changes of an image (3, H, W) float32 RGB in [0, 1], on the image's device.

Nothing is drawn here; every function returns a new image of the same shape in [0, 1].
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.geometry.sampling import pixel_grid

Direction = Literal["horizontal", "vertical", "diagonal", "antidiagonal"]

_GREY = (0.299, 0.587, 0.114)


# ---------------------------------------------------------------- levels and colours
def add(image: Tensor, change: float | Tensor) -> Tensor:
    """Add a constant or a map (H, W)."""
    return (image + change).clamp(0, 1)


def scale_brightness(image: Tensor, factor: float) -> Tensor:
    """Multiply all levels."""
    return (image * factor).clamp(0, 1)


def scale_contrast(image: Tensor, factor: float, *, about: Literal["grey", "channels"] = "grey") -> Tensor:
    """Multiply differences to the mean grey of the image, or to the mean of each channel."""
    mean = image.mean(dim=(1, 2), keepdim=True) if about == "channels" else grey(image).mean()
    return ((image - mean) * factor + mean).clamp(0, 1)


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiply differences to the pixel's own grey; 0 gives a grey image."""
    level = grey(image)
    return ((image - level) * factor + level).clamp(0, 1)


def shift_hue(image: Tensor, share: float) -> Tensor:
    """Turn the hue of hexcone HSV by a share of the circle; value and saturation stay.

    Source of the closed form: channel n in {5, 3, 1} of (h, s, v) is v - v s max(0, min(k, 4 - k, 1)),
    k = (n + 6 h) mod 6.
    """
    value, at = image.max(dim=0)
    chroma = value - image.amin(dim=0)
    r, g, b = image
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.stack([(g - b) / safe, (b - r) / safe + 2, (r - g) / safe + 4]).gather(0, at[None])[0]
    sector = sector + 6 * share
    channels = []
    for n in (5, 3, 1):
        k = (n + sector) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels)


def grey(image: Tensor) -> Tensor:
    """Luma (H, W) of ITU-R BT.601."""
    luma: Tensor = _GREY[0] * image[0] + _GREY[1] * image[1] + _GREY[2] * image[2]
    return luma


# ---------------------------------------------------------------- noise
def speckle(image: Tensor, uniform_HW: Tensor, share: float) -> Tensor:
    """Pixels black where the uniform field is below `share`, white where it is above 1 - share."""
    darkened = torch.where(uniform_HW < share, 0.0, image)
    return torch.where(uniform_HW > 1 - share, 1.0, darkened)


# ---------------------------------------------------------------- blur
def gaussian_blur(image: Tensor, width: int) -> Tensor:
    """Gaussian window of an odd width in pixels, deviation as in OpenCV for that width; borders are mirrored."""
    kernel = gaussian_kernel(width, deviation_of(width)).to(image)
    return _separable(image, kernel).clamp(0, 1)


def motion_blur(image: Tensor, length: int, direction: Direction, *, is_tapered: bool = False) -> Tensor:
    """Mean along a line of an odd length in pixels; borders are mirrored.

    is_tapered: weights fall off like a Gaussian of variance length^2 / 16 in both axes (rpautrat/SuperPoint)
    instead of being equal.
    """
    if length == 1:
        return image
    line = {
        "horizontal": np.outer(np.arange(length) == length // 2, np.ones(length)),
        "vertical": np.outer(np.ones(length), np.arange(length) == length // 2),
        "diagonal": np.eye(length),
        "antidiagonal": np.eye(length)[::-1],
    }[direction].astype(np.float32)
    if is_tapered:
        falloff = gaussian_kernel(length, length / 4).numpy()
        line = line * np.outer(falloff, falloff)
    weight = torch.from_numpy(np.ascontiguousarray(line / line.sum())).to(image)
    padded = _mirror(image, length // 2, length // 2)
    return F.conv2d(padded[:, None], weight[None, None])[:, 0].clamp(0, 1)


def gaussian_kernel(width: int, deviation: float) -> Tensor:
    """(width,) weights of sum 1."""
    offset = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    weight = torch.exp(-0.5 * (offset / deviation) ** 2)
    return weight / weight.sum()


def deviation_of(width: int) -> float:
    """OpenCV's standard deviation for a Gaussian window of that width."""
    return 0.3 * ((width - 1) * 0.5 - 1) + 0.8


# ---------------------------------------------------------------- shade
def shade(
    image: Tensor, ellipses_N5: npt.NDArray[np.float64], *, transparency: float, kernel_width: int
) -> Tensor:
    """Darken (transparency above 0) or lighten the union of ellipses, softened by a Gaussian window.

    ellipses_N5: centre x, y, half axes a, b in pixels, angle in radians. The window is so wide that the mask is
    made and softened at a quarter of the resolution, to within 0.02 of the full one.
    """
    height, width = image.shape[1:]
    coarse = 4
    rows, columns = -(-height // coarse), -(-width // coarse)
    centres = pixel_grid(rows, columns, device=image.device) * coarse + (coarse - 1) / 2
    x, y, a, b, angle = torch.from_numpy(ellipses_N5).float().to(image.device)[:, :, None].unbind(1)
    dx, dy = centres[:, 0] - x, centres[:, 1] - y
    along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    is_inside = (along / a) ** 2 + (across / b) ** 2 <= 1
    mask = is_inside.any(dim=0).float().reshape(1, rows, columns)
    odd = kernel_width // coarse // 2 * 2 + 1
    soft = _separable(mask, gaussian_kernel(odd, deviation_of(kernel_width) / coarse).to(image))
    size = (rows * coarse, columns * coarse)
    full = F.interpolate(soft[None], size=size, mode="bilinear", align_corners=False)[0, :, :height, :width]
    return (image * (1 - transparency * full)).clamp(0, 1)


# ---------------------------------------------------------------- windows
def _separable(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel by the same window along both axes."""
    reach = len(kernel) // 2
    padded = _mirror(image, reach, reach)[:, None]
    return F.conv2d(F.conv2d(padded, kernel[None, None, None, :]), kernel[None, None, :, None])[:, 0]


def _mirror(image: Tensor, x: int, y: int) -> Tensor:
    """Pad by mirroring about the border pixels, as often as it takes for windows wider than the image."""
    rows = _mirrored_index(image.shape[-2], y, image.device)
    columns = _mirrored_index(image.shape[-1], x, image.device)
    return image[:, rows][:, :, columns]


def _mirrored_index(count: int, reach: int, device: torch.device) -> Tensor:
    if count == 1:
        return torch.zeros(1 + 2 * reach, dtype=torch.long, device=device)
    period = 2 * (count - 1)
    position = torch.arange(-reach, count + reach, device=device) % period
    return torch.minimum(position, period - position)
