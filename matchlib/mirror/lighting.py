"""Light and camera response: what makes two pictures of one place differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lighting:
    """One lighting condition.

    sun_direction: (3,) float64 unit vector in the world, the way the light travels
    ambient:       share of the light that comes from everywhere, 0..1
    brightness:    factor on the colours before the response curve
    gamma:         exponent of the response curve, 1 = unchanged, above 1 = darker middle tones
    warmth:        factor on red and 1 / factor on blue
    vignetting:    loss of light in the corners, 0..1
    noise:         standard deviation of the sensor noise, in grey values of 0..255
    """

    sun_direction: Float
    ambient: float = 0.6
    brightness: float = 1.0
    gamma: float = 1.0
    warmth: float = 1.0
    vignetting: float = 0.0
    noise: float = 0.0


def draw_lighting(rng: np.random.Generator) -> Lighting:
    """A lighting condition between noon and dusk."""
    towards = np.array([rng.uniform(-1, 1), rng.uniform(0.2, 1), rng.uniform(0.2, 1)])
    return Lighting(
        sun_direction=towards / np.linalg.norm(towards),
        ambient=float(rng.uniform(0.35, 0.75)),
        brightness=float(rng.uniform(0.8, 1.35)),
        gamma=float(np.exp(rng.uniform(-0.35, 0.35))),
        warmth=float(np.exp(rng.uniform(-0.15, 0.15))),
        vignetting=float(rng.uniform(0, 0.35)),
        noise=float(rng.uniform(1.0, 4.0)),
    )


def shading(lighting: Lighting, sun_cosine: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Lambertian shading factor from the cosine between the surface normal and the way to the sun."""
    direct = (1 - lighting.ambient) * np.maximum(sun_cosine, 0)
    return np.asarray(lighting.ambient + direct, np.float32)


def develop(
    colour_HW3: npt.NDArray[np.float32], lighting: Lighting, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Light on the sensor (H, W, 3) float32, 0..255, to a picture (H, W, 3) uint8."""
    height, width = colour_HW3.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    falloff = 1 - lighting.vignetting * (x**2 + y**2) / 2
    balance = np.array([lighting.warmth, 1.0, 1 / lighting.warmth])
    linear = np.clip(colour_HW3 / 255 * falloff[..., None] * balance * lighting.brightness, 0, 1)
    values = 255 * linear**lighting.gamma + lighting.noise * rng.standard_normal(colour_HW3.shape)
    return np.asarray(np.clip(values + 0.5, 0, 255), np.uint8)
