"""The picture of one matched image pair, as a file."""

from __future__ import annotations

from pathlib import Path

from matchlib.datasets.images import read_image
from matchlib.errors import DataError
from matchlib.features.types import Features
from matchlib.matching.types import Matches
from matchlib.visualization.draw import Image, Points, draw_matches, save_png


def match_picture(
    image_path_a: Path,
    image_path_b: Path,
    features0: Features,
    features1: Features,
    matches: Matches,
    out: Path,
    errors: Points | None = None,
) -> None:
    """Write the two images side by side with their matches as PNG, atomically.

    matches: pairs of indices into features0 and features1; may be empty
    errors:  (K,) distance of each match from the truth in pixels, nan where unknown; None without truth
    Raises DataError for an image that cannot be read or that the features were not taken from, ShapeError if
    the errors do not fit the matches.
    """
    save_png(out, compose_matches(image_path_a, image_path_b, features0, features1, matches, errors))


def compose_matches(
    image_path_a: Path,
    image_path_b: Path,
    features0: Features,
    features1: Features,
    matches: Matches,
    errors: Points | None = None,
    *,
    height_px: int | None = None,
) -> Image:
    """As `match_picture`, as (H, W, 3) uint8 RGB; `height_px` scales both images to one height."""
    image0, image1 = image_of_features(image_path_a, features0), image_of_features(image_path_b, features1)
    for path, features, column in ((image_path_a, features0, 0), (image_path_b, features1, 1)):
        index = matches.index[:, column]
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(features):
            raise DataError(
                f"{path}: expected matches of its {len(features)} keypoints, got one of keypoint "
                f"{int(index.max())}; match these features again"
            )
    return draw_matches(
        image0,
        image1,
        features0.keypoints[matches.index[:, 0]],
        features1.keypoints[matches.index[:, 1]],
        errors_px=errors,
        height_px=height_px,
    )


def image_of_features(path: Path, features: Features) -> Image:
    """The image that features were taken from, (H, W, 3) uint8 RGB. Raises DataError for one of another size."""
    image = read_image(path)
    size = (image.shape[1], image.shape[0])
    if size != tuple(features.image_size):
        raise DataError(
            f"{path}: expected the image that the features were taken from, {features.image_size[0]} x "
            f"{features.image_size[1]} pixels, got {size[0]} x {size[1]}; extract the features of this image"
        )
    return image
