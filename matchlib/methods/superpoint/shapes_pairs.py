"""Synthetic Shapes as the trainer reads them: batches of pictures with labels, warped and changed for training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.completion import digest_json
from matchlib.errors import ConfigError, check_shape
from matchlib.features.types import Float32
from matchlib.methods.superpoint.network import CELL
from matchlib.methods.superpoint.shapes import PRIMITIVES, render_shape
from matchlib.methods.superpoint.training_config import ShapesConfig
from matchlib.photo_pairs.homographies import inverse, superpoint_homography, warp_points
from matchlib.photo_pairs.photometric import superpoint_changes
from matchlib.randomness import generator_for

if TYPE_CHECKING:
    from matchlib.methods.superpoint.config import SuperPointConfig

Subset = Literal["train", "validation"]

_REVISION = 1  # raise it when equal settings give other pictures: runs are not resumed on other data


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesBatch:
    """B pictures of one size H x W with the places of their corners.

    image:     (B, 1, H, W) float32 grey in [0, 1]
    valid:     (B, H, W) bool: the pixel shows the drawing, not the border that a warp brings in
    keypoints: interest points inside each picture, one (N_b, 2) float32 tensor (x, y) per picture; N_b may be 0
    seeds:     one 63-bit seed per picture: any random draw for a picture must come from it
    names:     one readable name per picture
    """

    image: Tensor
    valid: Tensor
    keypoints: tuple[Tensor, ...]
    seeds: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = check_shape("image", self.image, "B 1 H W")
        check_shape("valid", self.valid, f"{sizes['B']} {sizes['H']} {sizes['W']}")

    def __len__(self) -> int:
        return int(self.image.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ShapesBatch:
        """The same batch on another device."""
        return dataclasses.replace(
            self,
            image=self.image.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
            keypoints=tuple(points.to(device, non_blocking=non_blocking) for points in self.keypoints),
        )

    @staticmethod
    def stack(batches: list[ShapesBatch]) -> ShapesBatch:
        """Join batches along B."""

        def joined(name: str) -> tuple[Any, ...]:
            return tuple(item for batch in batches for item in getattr(batch, name))

        return ShapesBatch(
            image=torch.cat([batch.image for batch in batches]),
            valid=torch.cat([batch.valid for batch in batches]),
            keypoints=joined("keypoints"),
            seeds=joined("seeds"),
            names=joined("names"),
        )


def build_pairs(config: SuperPointConfig, subset: Subset, size: tuple[int, int], seed: int) -> ShapesPictures:
    """The pictures of one subset at `size` = (width, height).

    The pictures themselves follow `config.training.shapes.seed`, so that runs with other seeds (the argument)
    train on the same ones; how they are warped follows the seeds given to `load`. Raises ConfigError.
    """
    return ShapesPictures(config.training.shapes, subset, size)


class ShapesPictures:
    """A `training.loading.PairSource` of pictures, drawn when they are asked for.

    A picture is addressed by its kind and a number: it stays the same when other settings change how many there
    are. Training pictures are warped and changed, validation pictures are as drawn. Sizes that are not
    multiples of 8 raise ConfigError.
    """

    def __init__(self, config: ShapesConfig, subset: Subset, size: tuple[int, int]) -> None:
        if min(size) < CELL or any(side % CELL for side in size):
            raise ConfigError(
                f"image_size: expected width and height that are multiples of {CELL}, got {list(size)}; "
                f"superpoint divides its training images into cells of {CELL} x {CELL} pixels"
            )
        self.config, self.subset, self.size = config, subset, size
        self._first = np.cumsum([0, *(picture_count(kind, config, subset) for kind in PRIMITIVES)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def digest(self) -> str:
        """Changes whenever the pictures do."""
        settings = dataclasses.asdict(self.config)
        return digest_json([_REVISION, settings, self.subset, list(self.size)])

    def address(self, index: int) -> tuple[str, int]:
        """Kind and number of a picture. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        kind = int(np.searchsorted(self._first, index, side="right")) - 1
        return PRIMITIVES[kind], index - int(self._first[kind])

    def load(self, index: int, seed: int) -> ShapesBatch:
        """A batch of one picture."""
        kind, number = self.address(index)
        content = generator_for(self.config.seed, "superpoint", "shapes", self.subset, kind, number)
        drawn, points = render_shape(kind, content, self.config, size=self.size)
        image = torch.from_numpy(drawn)[None].float() / 255
        valid = np.ones(drawn.shape, np.bool_)
        if self.subset == "train":
            image, valid, points = self._augmented(image, points, seed)
        return ShapesBatch(
            image=image[None],
            valid=torch.from_numpy(valid)[None],
            keypoints=(torch.from_numpy(points),),
            seeds=(seed,),
            names=(f"{kind} {number}",),
        )

    def _augmented(
        self, image_1HW: Tensor, points: Float32, seed: int
    ) -> tuple[Tensor, npt.NDArray[np.bool_], Float32]:
        """Photometric changes first, then the warp, as rpautrat/SuperPoint does for these pictures."""
        config = self.config
        if config.photometric_changes:
            generator = generator_for(seed, "superpoint", "shapes", "photometric")
            image_1HW = superpoint_changes(image_1HW, config.photometric, generator)
        if not config.warped:
            return image_1HW, np.ones(image_1HW.shape[1:], np.bool_), points
        H = superpoint_homography(self.size, generator_for(seed, "superpoint", "shapes", "warp"), config.warp)
        warped, valid, moved = warp_picture(image_1HW[0].numpy(), points, H, border_px=config.border_px)
        return torch.from_numpy(warped)[None], valid, moved


def picture_count(kind: str, config: ShapesConfig, subset: Subset) -> int:
    """How many pictures of a kind a subset has; those with few points or none are cut to their share."""
    share = {
        "ellipses": config.ellipses_share,
        "stripes": config.stripes_share,
        "noise": config.noise_share,
    }.get(kind, 1.0)
    whole = config.train_pictures if subset == "train" else config.validation_pictures
    return round(share * whole)


def warp_picture(
    image: Float32, points: Float32, H: npt.NDArray[np.float64], *, border_px: int
) -> tuple[Float32, npt.NDArray[np.bool_], Float32]:
    """Warp a picture (H, W) and its points (N, 2) by a homography, pixels to pixels of the warped picture.

    Returns the warped picture, black where it shows nothing, of the same size; (H, W) bool, which pixels show
    the picture and lie more than `border_px` from one that does not; and the points at such pixels.
    """
    height, width = image.shape
    warped = cv2.warpPerspective(image, H, (width, height), flags=cv2.INTER_LINEAR)
    valid = _sees_picture(inverse(H), (width, height))
    if border_px:
        window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * border_px + 1, 2 * border_px + 1))
        # Beyond the frame counts as valid (OpenCV's default): a cut by the frame is no border of the picture.
        valid = cv2.erode(valid.astype(np.uint8), window) > 0
    moved = warp_points(points.astype(np.float64), H)
    inside = ((moved >= 0) & (moved <= np.array([width - 1, height - 1]))).all(axis=1)
    moved = moved[inside]
    column, row = moved.round().astype(np.int64).T
    return (
        np.asarray(warped, np.float32),
        np.asarray(valid, np.bool_),
        moved[valid[row, column]].astype(np.float32),
    )


def _sees_picture(H_view_to_picture: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(H, W) bool: which pixels of a view lie between the centres of the picture's outermost pixels."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    xyw = np.stack([x, y, np.ones_like(x)], axis=-1) @ H_view_to_picture.T
    w = xyw[..., 2] * np.sign(H_view_to_picture[2, 2])
    # Multiplied out instead of divided: nothing beyond the horizon (w <= 0) can satisfy it, nothing is infinite.
    u, v = (xyw[..., axis] * np.sign(H_view_to_picture[2, 2]) for axis in (0, 1))
    tolerance = 1e-6 * w
    inside = (w > 0) & (u >= -tolerance) & (v >= -tolerance)
    inside &= (u <= (width - 1) * w + tolerance) & (v <= (height - 1) * w + tolerance)
    return np.asarray(inside, np.bool_)
