"""Random photometric changes of a view, in the two published styles.

All draws, noise fields too, come from a CPU generator in a fixed order, so equal seeds give equal changes on every
device; the image itself never leaves its device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from matchlib.errors import check_shape
from matchlib.photo_pairs import image_changes as change
from matchlib.photo_pairs.config import (
    DescriptorSpacePhotometricConfig,
    PhotometricConfig,
    SuperPointPhotometricConfig,
)
from matchlib.photo_pairs.jpeg import jpeg
from matchlib.randomness import generator_for

_DIRECTIONS: tuple[change.Direction, ...] = ("horizontal", "vertical", "diagonal", "antidiagonal")


def change_view(image_3HW: Tensor, config: PhotometricConfig, *, seed: int, view: int) -> Tensor:
    """View `view` (0 or 1) of the pair with that seed, changed. (3, H, W) float32 RGB in [0, 1] in and out."""
    check_shape("image", image_3HW, "3 H W")
    if not config.changes_view(view):
        return image_3HW
    generator = generator_for(seed, "photometric", view)
    if config.style == "superpoint":
        return superpoint_changes(image_3HW, config.superpoint, generator)
    return descriptor_space_changes(image_3HW, config.descriptor_space, generator)


# ---------------------------------------------------------------- Descriptor Space
def descriptor_space_changes(
    image: Tensor, config: DescriptorSpacePhotometricConfig, generator: np.random.Generator
) -> Tensor:
    """JPEG, blur, noise and colours, in this order, each with its probability.

    Source: lin-zju/my-descriptor-space.
    """
    if generator.random() < config.jpeg_probability:
        image = jpeg(image, int(generator.integers(*config.jpeg_quality, endpoint=True)))
    if generator.random() < config.blur_probability:
        weights = np.array(config.blur_weights)
        image = change.gaussian_blur(
            image, int(generator.choice(config.blur_kernels, p=weights / weights.sum()))
        )
    if generator.random() < config.noise_probability:
        image = _noise_or_motion(image, config, generator)
    if generator.random() < config.jitter_probability:
        image = _jitter(image, config, generator)
    return image


def _noise_or_motion(
    image: Tensor, config: DescriptorSpacePhotometricConfig, generator: np.random.Generator
) -> Tensor:
    if generator.random() < config.noise_gaussian_share:
        deviation = float(np.sqrt(generator.uniform(0.0, config.noise_max_variance)))
        return _add_gaussian(image, deviation, generator)
    length = int(generator.choice(config.motion_blur_lengths))
    return change.motion_blur(image, length, _DIRECTIONS[int(generator.integers(2))])


def _jitter(
    image: Tensor, config: DescriptorSpacePhotometricConfig, generator: np.random.Generator
) -> Tensor:
    brightness, contrast, saturation = (
        float(generator.uniform(1 - limit, 1 + limit))
        for limit in (config.jitter_brightness, config.jitter_contrast, config.jitter_saturation)
    )
    hue = float(generator.uniform(-config.jitter_hue, config.jitter_hue))
    for step in generator.permutation(4):
        if step == 0:
            image = change.scale_brightness(image, brightness)
        elif step == 1:
            image = change.scale_contrast(image, contrast)
        elif step == 2:
            image = change.scale_saturation(image, saturation)
        else:
            image = change.shift_hue(image, hue)
    return image


# ---------------------------------------------------------------- SuperPoint
def superpoint_changes(
    image: Tensor, config: SuperPointPhotometricConfig, generator: np.random.Generator
) -> Tensor:
    """Brightness, contrast, speckle, Gaussian noise, shade and motion blur in random order, each with its
    probability.

    image: (C, H, W) in [0, 1]; a grey one stays grey. Source: rpautrat/SuperPoint.
    """
    for step in generator.permutation(6):
        if step == 0 and generator.random() < config.brightness_probability:
            limit = config.brightness_max_change
            image = change.add(image, float(generator.uniform(-limit, limit)) / 255)
        elif step == 1 and generator.random() < config.contrast_probability:
            factor = float(generator.uniform(*config.contrast_range))
            image = change.scale_contrast(image, factor, about="channels")
        elif step == 2 and generator.random() < config.speckle_probability:
            share = float(generator.uniform(*config.speckle_share))
            field = generator.random(image.shape[1:], dtype=np.float32)
            image = change.speckle(image, _on_device(field, image), share)
        elif step == 3 and generator.random() < config.gaussian_probability:
            image = _add_gaussian(image, float(generator.uniform(*config.gaussian_deviation)), generator)
        elif step == 4 and generator.random() < config.shade_probability:
            image = _shade(image, config, generator)
        elif step == 5 and generator.random() < config.motion_blur_probability:
            half = int(generator.integers((config.motion_blur_max_length + 1) // 2))
            direction = _DIRECTIONS[int(generator.integers(4))]
            image = change.motion_blur(image, 2 * half + 1, direction, is_tapered=True)
    return image


def _shade(image: Tensor, config: SuperPointPhotometricConfig, generator: np.random.Generator) -> Tensor:
    height, width = image.shape[1:]
    count, longest = config.shade_ellipses, min(height, width) / 4
    axes = np.maximum(generator.random((count, 2)) * longest, longest / 5)
    reach = axes.max(axis=1)
    x = generator.uniform(reach, width - reach)
    y = generator.uniform(reach, height - reach)
    angle = generator.uniform(0.0, np.pi / 2, count)
    return change.shade(
        image,
        np.stack([x, y, axes[:, 0], axes[:, 1], angle], axis=1),
        transparency=float(generator.uniform(*config.shade_transparency)),
        kernel_width=int(generator.integers(*config.shade_kernel, endpoint=True)),
    )


# ---------------------------------------------------------------- both
def _add_gaussian(image: Tensor, deviation: float, generator: np.random.Generator) -> Tensor:
    """Noise of a standard deviation in grey levels of 255, the same in all channels."""
    field = generator.standard_normal(image.shape[1:], dtype=np.float32)
    return change.add(image, _on_device(field, image) * (deviation / 255))


def _on_device(field: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(field).to(like.device)
