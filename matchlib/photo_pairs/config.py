"""How two views are made of one photograph. No torch here: the graph reads this module."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorSpaceWarpConfig:
    """Homographies of Descriptor Space: both views are warped, and both zoom in, so that no border shows.

    Each view is S R P of the photograph (P first); every factor takes an inner quadrilateral to the whole frame.
    """

    perspective_ratio: Range = (0.6, 0.6)
    """P: height of the shorter side of the inner trapezium over the frame's, drawn per view. The left side is
    the shorter one in view 0, the right side in view 1."""
    max_angle_rad: float = math.pi / 24
    """R: largest rotation about the centre, either way."""
    scale_ratio: Range = (0.9, 1.0)
    """S: size of the inner rectangle over the frame's, drawn per view; its place is drawn within the frame."""

    def __post_init__(self) -> None:
        for key in ("perspective_ratio", "scale_ratio"):
            low, high = getattr(self, key)
            _check(key, getattr(self, key), "0 < low <= high <= 1", 0 < low <= high <= 1)
        _check("max_angle_rad", self.max_angle_rad, "0 to pi / 2", 0 <= self.max_angle_rad <= math.pi / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationWarpConfig:
    """Homographies of SuperPoint (rpautrat): a patch of the frame, distorted, scaled, moved and turned.

    Lengths are shares of the frame's width and height. "Truncated normal" has two standard deviations equal to
    the amplitude and nothing beyond them. Used for training pairs and for homographic adaptation.
    """

    patch_ratio: float = 0.85
    """Size of the centred patch that the warped view shows undistorted."""
    perspective_amplitude_x: float = 0.2
    """Truncated normal: horizontal displacement of the patch's left and of its right side; 0 for none."""
    perspective_amplitude_y: float = 0.2
    """Truncated normal: by how much one side becomes shorter and the other longer; 0 for none."""
    scale_amplitude: float = 0.2
    """Truncated normal: scale about 1; 0 for none."""
    scale_candidates: int = 5
    """Scales that are drawn before one of them is chosen."""
    translation: bool = True
    """Whether the patch moves, uniformly within the margin that is left."""
    translation_overflow: float = 0.0
    """With artefacts allowed: by how much the patch may leave the frame when it moves."""
    max_angle_rad: float = 1.57
    """Largest rotation either way; 0 for none."""
    angle_candidates: int = 25
    """Evenly spaced angles from which one is chosen."""
    allow_artifacts: bool = True
    """Whether the patch may leave the frame, which shows as a border in the view; that part is masked."""

    def __post_init__(self) -> None:
        _check("patch_ratio", self.patch_ratio, "a share in (0, 1]", 0 < self.patch_ratio <= 1)
        for key in ("perspective_amplitude_x", "perspective_amplitude_y", "scale_amplitude"):
            value = getattr(self, key)
            _check(key, value, "at least 0 and below 1", 0 <= value < 1)
        _check("scale_candidates", self.scale_candidates, "at least 1", self.scale_candidates >= 1)
        _check("angle_candidates", self.angle_candidates, "at least 2", self.angle_candidates >= 2)
        overflow = self.translation_overflow
        _check("translation_overflow", overflow, "a share in [0, 1]", 0 <= overflow <= 1)
        _check("max_angle_rad", self.max_angle_rad, "0 to pi", 0 <= self.max_angle_rad <= math.pi)
        # The patch keeps its orientation as long as the shorter side does not vanish.
        amplitude = self.perspective_amplitude_y
        is_proper = amplitude * 2 < self.patch_ratio
        _check(
            "perspective_amplitude_y", amplitude, f"below patch_ratio / 2 ({self.patch_ratio / 2})", is_proper
        )
        amplitude = self.perspective_amplitude_x
        is_proper = amplitude * 2 < self.patch_ratio
        _check(
            "perspective_amplitude_x", amplitude, f"below patch_ratio / 2 ({self.patch_ratio / 2})", is_proper
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorSpacePhotometricConfig:
    """Photometric changes of Descriptor Space, in this order. Probabilities of 0 switch a change off."""

    jpeg_probability: float = 0.5
    """Compression as JPEG."""
    jpeg_quality: tuple[int, int] = (15, 74)
    """Smallest and largest quality, 1 to 100."""
    blur_probability: float = 0.5
    """Gaussian blur."""
    blur_kernels: tuple[int, ...] = (3, 5, 7, 9, 11)
    """Widths of the blur in pixels (odd); the standard deviation follows as in OpenCV, 0.15 k + 0.35."""
    blur_weights: tuple[float, ...] = (0.4, 0.3, 0.2, 0.05, 0.05)
    """How often each of `blur_kernels` is chosen, relative to one another."""
    noise_probability: float = 0.34
    """Either Gaussian noise or motion blur."""
    noise_gaussian_share: float = 0.75
    """Share of the noise that is Gaussian; the rest is motion blur."""
    noise_max_variance: float = 76.8
    """Largest variance of Gaussian noise in squared grey levels of 255; it is the same in all channels."""
    motion_blur_lengths: tuple[int, ...] = (3, 5, 7, 9)
    """Lengths of motion blur in pixels (odd), horizontal or vertical."""
    jitter_probability: float = 0.34
    """Change of colours: the four below, in random order."""
    jitter_brightness: float = 0.5
    """Largest relative change of brightness."""
    jitter_contrast: float = 0.2
    """Largest relative change of contrast about the mean grey."""
    jitter_saturation: float = 0.2
    """Largest relative change of saturation."""
    jitter_hue: float = 0.2
    """Largest change of hue, as a share of the colour circle."""

    def __post_init__(self) -> None:
        for key in ("jpeg", "blur", "noise", "jitter"):
            _check_share(f"{key}_probability", getattr(self, f"{key}_probability"))
        _check_share("noise_gaussian_share", self.noise_gaussian_share)
        low, high = self.jpeg_quality
        _check("jpeg_quality", self.jpeg_quality, "1 <= low <= high <= 100", 1 <= low <= high <= 100)
        for key in ("blur_kernels", "motion_blur_lengths"):
            value = getattr(self, key)
            is_odd = bool(value) and all(size >= 1 and size % 2 == 1 for size in value)
            _check(key, value, "odd numbers of at least 1", is_odd)
        weights = self.blur_weights
        fits = len(weights) == len(self.blur_kernels) and all(w >= 0 for w in weights) and sum(weights) > 0
        _check("blur_weights", weights, f"{len(self.blur_kernels)} values >= 0, not all 0", fits)
        _check("noise_max_variance", self.noise_max_variance, "at least 0", self.noise_max_variance >= 0)
        for key in ("jitter_brightness", "jitter_contrast", "jitter_saturation"):
            _check_share(key, getattr(self, key))
        _check("jitter_hue", self.jitter_hue, "0 to 0.5", 0 <= self.jitter_hue <= 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperPointPhotometricConfig:
    """Photometric changes of SuperPoint (rpautrat, MagicPoint on COCO), in random order; grey levels of 255.

    Each is applied with its own probability (1 as published).
    """

    brightness_probability: float = 1.0
    """A constant is added."""
    brightness_max_change: float = 50.0
    """Largest constant, either way."""
    contrast_probability: float = 1.0
    """Differences to the mean are multiplied."""
    contrast_range: Range = (0.3, 1.5)
    """Smallest and largest factor."""
    speckle_probability: float = 1.0
    """Single pixels become black or white."""
    speckle_share: Range = (0.0, 0.0035)
    """Smallest and largest share of black pixels, and of white ones."""
    gaussian_probability: float = 1.0
    """Gaussian noise, the same in all channels."""
    gaussian_deviation: Range = (0.0, 10.0)
    """Smallest and largest standard deviation."""
    shade_probability: float = 1.0
    """Soft elliptic shadows and lights."""
    shade_ellipses: int = 20
    """Number of ellipses."""
    shade_transparency: Range = (-0.5, 0.5)
    """Share of the light that they take away; negative values give light."""
    shade_kernel: tuple[int, int] = (100, 150)
    """Smallest and largest width in pixels of the Gaussian window that softens them."""
    motion_blur_probability: float = 1.0
    """Motion blur, horizontal, vertical or diagonal; one of the lengths is 1, which changes nothing."""
    motion_blur_max_length: int = 3
    """Largest length in pixels (odd)."""

    def __post_init__(self) -> None:
        for key in ("brightness", "contrast", "speckle", "gaussian", "shade", "motion_blur"):
            _check_share(f"{key}_probability", getattr(self, f"{key}_probability"))
        _check("brightness_max_change", self.brightness_max_change, ">= 0", self.brightness_max_change >= 0)
        for key, lowest, highest in (
            ("contrast_range", 0.0, math.inf),
            ("speckle_share", 0.0, 0.5),
            ("gaussian_deviation", 0.0, math.inf),
            ("shade_transparency", -math.inf, 1.0),
            ("shade_kernel", 1, math.inf),
        ):
            low, high = getattr(self, key)
            is_ordered = lowest <= low <= high <= highest
            _check(key, (low, high), f"{lowest} <= low <= high <= {highest}", is_ordered)
        _check("shade_ellipses", self.shade_ellipses, "at least 1", self.shade_ellipses >= 1)
        length = self.motion_blur_max_length
        _check("motion_blur_max_length", length, "an odd number >= 1", length >= 1 and length % 2 == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotometricConfig:
    """Photometric changes of the views, drawn for each view by itself."""

    style: Literal["descriptor_space", "superpoint", "none"] = "descriptor_space"
    """Which list of changes is applied; the settings of the other one have no effect."""
    views: Literal["both", "first", "second"] = "both"
    """Which views are changed."""
    descriptor_space: DescriptorSpacePhotometricConfig = field(
        default_factory=DescriptorSpacePhotometricConfig
    )
    """Settings of the style descriptor_space."""
    superpoint: SuperPointPhotometricConfig = field(default_factory=SuperPointPhotometricConfig)
    """Settings of the style superpoint."""

    def changes_view(self, view: int) -> bool:
        """Whether view 0 or 1 is changed."""
        return self.style != "none" and self.views in ("both", ("first", "second")[view])


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpConfig:
    """How two views of one photograph are made. The defaults are those of Descriptor Space."""

    sampler: Literal["descriptor_space", "superpoint"] = "descriptor_space"
    """Which homographies: "descriptor_space" warps both views, "superpoint" leaves view 0 as it is."""
    descriptor_space: DescriptorSpaceWarpConfig = field(default_factory=DescriptorSpaceWarpConfig)
    """Settings of the sampler descriptor_space."""
    superpoint: AdaptationWarpConfig = field(default_factory=AdaptationWarpConfig)
    """Settings of the sampler superpoint."""
    refine: Literal["exact", "integer_corners"] = "exact"
    """"integer_corners" cuts the photograph's corners in each view to whole pixels and fits the homographies to
    them, as upstream of Descriptor Space does; "exact" leaves them as drawn."""
    resize: Literal["crop", "squash"] = "crop"
    """How a photograph becomes as large as the views: "crop" keeps its shape and cuts the centre out, "squash"
    gives width and height a factor each, as upstream of Descriptor Space does."""
    small_images: Literal["refuse", "upsample"] = "refuse"
    """What happens to photographs that are smaller than the views in either direction: refused ones count as
    unreadable pairs, and others take their place."""
    border_px: int = 3
    """Pixels this near to the border that a warp brings in do not count as showing the photograph."""
    min_valid_share: float = 0.2
    """Share of view 0 that view 1 must show too; below, the homographies are drawn again."""
    attempts: int = 10
    """Draws after which a photograph is given up."""
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)
    """Photometric changes of the views."""

    def __post_init__(self) -> None:
        _check("border_px", self.border_px, "at least 0", self.border_px >= 0)
        _check_share("min_valid_share", self.min_valid_share)
        _check("attempts", self.attempts, "at least 1", self.attempts >= 1)


def _check_share(key: str, value: float) -> None:
    _check(key, value, "a share in [0, 1]", 0 <= value <= 1)


def _check(key: str, value: object, expected: str, is_met: bool) -> None:
    if not is_met:
        raise ConfigError(f"{key}: expected {expected}, got {value}")
