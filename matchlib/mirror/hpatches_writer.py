"""Photo-warp sequences in the layout of the HPatches sequences.

The plane of a sequence is a photograph, continued by mirroring beyond its border, so that no view shows an
empty margin and every homography holds everywhere.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.datasets.hpatches import IMAGES_PER_SEQUENCE, write_homography
from matchlib.datasets.images import write_image
from matchlib.mirror.config import HPatchesMirrorConfig
from matchlib.mirror.textures import load_photograph, pool_names
from matchlib.randomness import generator_for

Float = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
_SAMPLES = 3  # per pixel and axis; enough to shrink by three without aliasing


def sequence_names(config: HPatchesMirrorConfig) -> dict[str, str]:
    """Sequence name -> photograph, `i_*` first; a photograph that comes again gets a number."""
    photographs = [name for name in pool_names("evaluation") if name != "motorcycle_right.png"]
    names: dict[str, str] = {}
    for letter, count in (("i", config.illumination_sequences), ("v", config.viewpoint_sequences)):
        for index in range(count):
            photograph = photographs[index % len(photographs)]
            again = index // len(photographs)
            names[f"{letter}_{Path(photograph).stem}{again + 1 if again else ''}"] = photograph
    return names


def write_hpatches_sequence(
    root: Path, name: str, photograph: str, config: HPatchesMirrorConfig, *, seed: int
) -> None:
    """Write `1.ppm` ... `6.ppm` and `H_1_2` ... `H_1_6` of one sequence below `root`."""
    rng = generator_for(seed, "hpatches", name, "view")
    plane = load_photograph(photograph)
    to_plane = reference_view(rng, plane.shape[:2], config.image_size)
    for k in range(1, IMAGES_PER_SEQUENCE + 1):
        strength = (k - 1) / (IMAGES_PER_SEQUENCE - 1)
        is_viewpoint = name.startswith("v_")
        H = draw_homography(rng, config.image_size, strength) if is_viewpoint and k > 1 else np.eye(3)
        picture = warp_plane(plane, to_plane @ np.linalg.inv(H), config.image_size)
        noise = generator_for(seed, "hpatches", name, "light", k)
        picture = mild_light(picture, noise) if is_viewpoint else changed_light(picture, noise, strength)
        write_image(root / name / f"{k}.ppm", picture)
        if k > 1:
            write_homography(root / name / f"H_1_{k}", H)


def reference_view(
    rng: np.random.Generator, plane_shape: tuple[int, ...], image_size: tuple[int, int]
) -> Float:
    """(3, 3) from pixels of image 1 to pixels of the photograph: a crop of 80 to 95 % of what fits."""
    height, width = plane_shape[:2]
    scale = min(width / image_size[0], height / image_size[1]) * rng.uniform(0.8, 0.95)
    room = np.array([width, height]) - scale * np.array(image_size)
    corner = rng.uniform(0.2, 0.8, 2) * room
    shift = corner + (scale - 1) / 2  # pixel areas, not pixel centres, start at the corner
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1.0]])


def draw_homography(rng: np.random.Generator, image_size: tuple[int, int], strength: float) -> Float:
    """A change of viewpoint, (3, 3) from image 1 to image k; `strength` 0..1 from slight to strong.

    A rotation up to 30 degrees, a scale up to 1.5 either way, a shift, and a perspective tilt by moving the
    corners. The centre of image 1 stays in the picture.
    """
    width, height = image_size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    centre = corners.mean(axis=0)
    angle = np.radians(30) * strength * rng.uniform(-1, 1)
    scale = np.exp(np.log(1.5) * strength * rng.uniform(-1, 1))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = 0.12 * strength * rng.uniform(-1, 1, 2) * (width, height)
    tilt = 0.18 * (0.15 + 0.85 * strength) * rng.uniform(-1, 1, (4, 2)) * (width, height)
    moved = (corners - centre + tilt) @ turn.T + centre + shift
    H = cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32))
    return np.asarray(H / H[2, 2], np.float64)


def warp_plane(plane: Image, to_plane: Float, image_size: tuple[int, int]) -> Image:
    """The picture (H, W, 3) whose pixel x shows the photograph at `to_plane` x, averaged over its area."""
    width, height = image_size
    inner = (np.arange(_SAMPLES) + 0.5) / _SAMPLES - 0.5
    x, y = np.meshgrid(
        (np.arange(width)[:, None] + inner).ravel(), (np.arange(height)[:, None] + inner).ravel()
    )
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ to_plane.T
    positions = (points[..., :2] / points[..., 2:]).astype(np.float32)
    fine = cv2.remap(plane, positions, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[call-overload]
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


# ---------------------------------------------------------------- light
def mild_light(picture: Image, rng: np.random.Generator) -> Image:
    """The exposure differences and noise that a walk around an object brings along."""
    gain, noise = rng.uniform(0.92, 1.08), rng.uniform(0.5, 2.0)
    values = gain * picture.astype(np.float64) + noise * rng.standard_normal(picture.shape)
    return np.asarray(np.clip(values + 0.5, 0, 255), np.uint8)


def changed_light(picture: Image, rng: np.random.Generator, strength: float) -> Image:
    """Another hour of the day: gamma, colour, a light gradient, a soft-edged shadow, slight blur, noise."""
    height, width = picture.shape[:2]
    gamma = np.exp(0.8 * strength * rng.uniform(-1, 1))
    colour = np.exp(0.25 * strength * rng.uniform(-1, 1, 3))
    gradient, shadow = _light_gradient(rng, height, width), _soft_shadow(rng, height, width)
    light = (1 + 0.5 * strength * gradient) * (1 - 0.6 * strength * shadow)
    values = np.clip(picture / 255.0 * light[..., None] * colour, 0, 1) ** gamma
    blurred = cv2.GaussianBlur(values, (0, 0), 0.01 + 0.8 * strength * rng.random())
    noisy = 255 * blurred + (0.5 + 4 * strength) * rng.standard_normal(picture.shape)
    return np.asarray(np.clip(noisy + 0.5, 0, 255), np.uint8)


def _light_gradient(rng: np.random.Generator, height: int, width: int) -> Float:
    """From -1 to 1 across the picture in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.asarray((np.cos(angle) * x + np.sin(angle) * y) / 2**0.5)


def _soft_shadow(rng: np.random.Generator, height: int, width: int) -> Float:
    """0 to 1: a random quadrilateral with a blurred edge."""
    corners = (
        np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        + rng.uniform(-0.35, 0.35, (4, 2))
        + rng.uniform(-0.3, 0.3, 2)
    )
    mask = np.zeros((height, width), np.float64)
    cv2.fillPoly(mask, [(corners * (width, height)).astype(np.int32)], 1.0)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.004, 0.03) * width))
