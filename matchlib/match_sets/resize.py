"""Images and depth maps at the training size, with the geometry that `Camera.scaled_K` assumes.

Output pixel p reads source position p * (in / out): the datasets' own rule, without the half-pixel shift of
`cv2.resize`, so that K scaled by out / in stays exact.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

_JUMP = 1.1  # neighbouring depths further apart than 10 % are two surfaces, not one slanted one


def resize_image(image: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 to (height, width, 3), bilinear, each side by its own factor.

    Before shrinking by a factor s, a Gaussian of sigma 0.5 * sqrt(s^2 - 1) takes away what the smaller image
    cannot hold. differs from tfmatch: it does not blur, and its images alias.
    """
    step_x, step_y = image.shape[1] / width, image.shape[0] / height
    if (step_x, step_y) == (1, 1):
        return image
    sigma_x, sigma_y = (0.5 * max(step * step - 1, 0) ** 0.5 for step in (step_x, step_y))
    if max(sigma_x, sigma_y) > 0.2:
        # OpenCV takes sigma 0 for "choose one", so a side that does not shrink gets a kernel of one pixel.
        size = tuple(2 * int(np.ceil(3 * sigma)) + 1 for sigma in (sigma_x, sigma_y))
        image = cv2.GaussianBlur(  # type: ignore[assignment]
            image, size, sigmaX=max(sigma_x, 1e-3), sigmaY=max(sigma_y, 1e-3), borderType=cv2.BORDER_REPLICATE
        )
    to_source = np.array([[step_x, 0, 0], [0, step_y, 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    resized = cv2.warpAffine(image, to_source, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return resized  # type: ignore[return-value]


def resize_depth(depth: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float32]:
    """(H, W) float32 to (height, width) without mixing unknown (0) with known, or one surface with another.

    Bilinear where all four neighbours are known and within 10 % of each other; otherwise the nearest
    neighbour, be it known or 0.
    """
    if depth.shape == (height, width):
        return depth
    x0, x1, wx = _neighbours(width, depth.shape[1])
    y0, y1, wy = _neighbours(height, depth.shape[0])
    upper, lower = depth[y0], depth[y1]
    corners = (upper[:, x0], upper[:, x1], lower[:, x0], lower[:, x1])
    low = np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))
    high = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
    top = corners[0] + wx * (corners[1] - corners[0])
    bottom = corners[2] + wx * (corners[3] - corners[2])
    mixed = top + wy[:, None] * (bottom - top)
    nearest = depth[np.where(wy < 0.5, y0, y1)][:, np.where(wx < 0.5, x0, x1)]
    smooth = (low > 0) & (high <= _JUMP * low)
    return np.where(smooth, mixed, nearest).astype(np.float32, copy=False)


def _neighbours(
    out: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Lower and upper source index and the weight of the upper one, for each output index."""
    position = np.minimum(np.arange(out) * count / out, count - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, count - 1), (position - low).astype(np.float32)
