"""Pictures of PoSFeat in training, for TensorBoard and the report. All (H, W, 3) uint8 RGB.

Two images stand side by side with a gap between them. Images of fewer than 240 rows are enlarged by a whole factor,
or a marker would cover what it marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.features.types import Float32, Image
from matchlib.geometry.epipolar import clip_lines, epipolar_lines
from matchlib.methods.posfeat.config import Sampling, ValidationConfig
from matchlib.methods.posfeat.metrics import CheckedMatches, Keypoints
from matchlib.methods.posfeat.network import descriptors_at

Floats = npt.NDArray[np.floating]
Colour = tuple[int, int, int]

# Okabe & Ito (Color Universal Design, 2008): these stay apart for all common colour vision deficiencies.
_GOOD, _MIDDLE, _BAD = (0, 158, 115), (240, 228, 66), (213, 94, 0)
_QUERIES: tuple[Colour, ...] = ((86, 180, 233), (230, 159, 0), (204, 121, 167), (0, 158, 115))
_BACKGROUND, _FRAME = 24, 90
_GAP_PX = 20
_LEAST_HEIGHT = 240
_PROFILE_HEIGHT = 90

MAX_QUERIES = len(_QUERIES)
"""Queries that `draw_line_search` can tell apart by colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSearch:
    """One query's search along its epipolar line.

    query:      (2,) px of image 0
    places:     (S, 2) px of image 1, from one end of the line to the other
    similarity: (S,) of the query's descriptor with the ones at these places, -1 to 1
    """

    query: Float32
    places: Float32
    similarity: Float32


def draw_pair(
    image0: Tensor,
    image1: Tensor,
    keypoints0: Keypoints,
    keypoints1: Keypoints,
    matches: CheckedMatches,
    config: ValidationConfig,
) -> dict[str, Image]:
    """Pictures keypoints, matches_few (the best `picture_matches`) and matches_all of images (3, H, W) in [0, 1]."""
    images = (to_image(image0), to_image(image1))
    points = (keypoints0.points.cpu().numpy(), keypoints1.points.cpu().numpy())
    lines = [values.cpu().numpy() for values in (matches.points0, matches.points1, matches.error_px)]
    few = [values[: config.picture_matches] for values in lines]
    return {
        "keypoints": draw_keypoints(*images, *points),
        "matches_few": draw_matches(*images, few[0], few[1], few[2], red_px=config.picture_error_px),
        "matches_all": draw_matches(*images, lines[0], lines[1], lines[2], red_px=config.picture_error_px),
    }


def to_image(image_3HW: Tensor) -> Image:
    """(3, H, W) RGB in [0, 1], any device, to (H, W, 3) uint8."""
    levels = (image_3HW * 255).round().clamp(0, 255).byte()
    image: Image = np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())
    return image


def draw_score_maps(scores0_HW: Floats, scores1_HW: Floats) -> Image:
    """Both score maps as heat maps from 0 to their joint maximum."""
    highest = max(float(scores0_HW.max()), float(scores1_HW.max()), 1e-12)
    heats = []
    for scores in (scores0_HW, scores1_HW):
        level = np.rint(np.clip(scores / highest, 0.0, 1.0) * 255).astype(np.uint8)
        colours = cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1]
        heats.append(np.ascontiguousarray(colours, dtype=np.uint8))
    return _Canvas(heats[0], heats[1]).pixels


def draw_keypoints(image0: Image, image1: Image, points0_N2: Floats, points1_M2: Floats) -> Image:
    """Both images with a green ring at each keypoint."""
    canvas = _Canvas(image0, image1)
    for side, points in enumerate((points0_N2, points1_M2)):
        for point in points:
            canvas.ring(point, side, _GOOD)
    return canvas.pixels


def draw_matches(
    image0: Image, image1: Image, points0_K2: Floats, points1_K2: Floats, error_px_K: Floats, *, red_px: float
) -> Image:
    """Matches as lines: green on the epipolar lines, over yellow, to red from `red_px` on. The worst lie below."""
    canvas = _Canvas(image0, image1)
    colours = error_colours(error_px_K, red_px=red_px)
    for match in np.argsort(-error_px_K, kind="stable"):
        canvas.join(points0_K2[match], points1_K2[match], colours[match])
    return canvas.pixels


def draw_line_search(image0: Image, image1: Image, searches: Sequence[LineSearch]) -> Image:
    """Queries, their epipolar lines with the most similar place, and below the similarity along each line.

    A colour per query; at most `MAX_QUERIES`, more are not drawn. The curves run from the line's left end to its right
    (top to bottom for upright lines), from similarity -1 to 1 with 0 as a thin line; the best place is marked.
    """
    canvas = _Canvas(image0, image1)
    panels = []
    for search, colour in zip(searches, _QUERIES, strict=False):
        best = int(search.similarity.argmax())
        canvas.ring(search.query, 0, colour, radius=5)
        canvas.line(search.places[0], search.places[-1], 1, colour)
        canvas.ring(search.places[best], 1, colour, radius=5)
        panels.append(_profile(search, colour, width=canvas.pixels.shape[1]))
    return np.vstack([canvas.pixels, *panels])


def search_lines(
    keypoints0: Keypoints,
    fine1: Tensor,
    F_0to1: Tensor,
    image_size: tuple[int, int],
    *,
    samples: int,
    sampling: Sampling,
) -> list[LineSearch]:
    """Searches for up to `MAX_QUERIES` keypoints of image 0 whose epipolar lines cross image 1, evenly by rank.

    fine1: (D, h, w) descriptor map of image 1; F_0to1: (3, 3) float64; image_size: (width, height);
    samples: places looked at along each line
    """
    lines = epipolar_lines(keypoints0.points.double(), F_0to1)
    ends, crosses = clip_lines(lines, image_size)
    crossing = crosses.nonzero()[:, 0]
    count = min(len(crossing), MAX_QUERIES)
    share = torch.linspace(0.0, 1.0, samples, dtype=torch.float64, device=ends.device)[:, None]
    searches = []
    for rank in range(count):
        query = crossing[rank * len(crossing) // count]
        places = (ends[query, 0] + share * (ends[query, 1] - ends[query, 0])).float()
        similarity = descriptors_at(fine1, places, image_size, sampling) @ keypoints0.descriptors[query]
        searches.append(
            LineSearch(
                query=keypoints0.points[query].cpu().numpy(),
                places=places.cpu().numpy(),
                similarity=similarity.cpu().numpy(),
            )
        )
    return searches


def error_colours(error_px_N: Floats, *, red_px: float) -> list[Colour]:
    """Green at 0 over yellow at half of `red_px` to red from there on; inf is red."""
    position = np.clip(np.nan_to_num(error_px_N, nan=np.inf, posinf=np.inf) / red_px, 0.0, 1.0)
    anchors = np.array([_GOOD, _MIDDLE, _BAD], dtype=np.float64)
    levels = [np.rint(np.interp(position, (0.0, 0.5, 1.0), anchors[:, channel])) for channel in range(3)]
    return [(int(red), int(green), int(blue)) for red, green, blue in zip(*levels, strict=True)]


class _Canvas:
    """Two images side by side, enlarged, on which pixel positions of either can be marked."""

    def __init__(self, image0: Image, image1: Image) -> None:
        height = max(image0.shape[0], image1.shape[0])
        self._factor = -(-_LEAST_HEIGHT // height)
        first, second = (
            image.repeat(self._factor, axis=0).repeat(self._factor, axis=1) for image in (image0, image1)
        )
        self._left = (0, first.shape[1] + _GAP_PX)
        shape = (height * self._factor, self._left[1] + second.shape[1], 3)
        self.pixels: Image = np.full(shape, _BACKGROUND, dtype=np.uint8)
        for left, image in zip(self._left, (first, second), strict=True):
            self.pixels[: image.shape[0], left : left + image.shape[1]] = image

    def ring(self, point: Floats, side: int, colour: Colour, *, radius: int = 3) -> None:
        cv2.circle(self.pixels, self._place(point, side), radius, colour, 1, cv2.LINE_AA)

    def line(self, start: Floats, end: Floats, side: int, colour: Colour) -> None:
        cv2.line(self.pixels, self._place(start, side), self._place(end, side), colour, 1, cv2.LINE_AA)

    def join(self, point0: Floats, point1: Floats, colour: Colour) -> None:
        """A line from image 0 to image 1."""
        cv2.line(self.pixels, self._place(point0, 0), self._place(point1, 1), colour, 1, cv2.LINE_AA)

    def _place(self, point: Floats, side: int) -> tuple[int, int]:
        x, y = (np.asarray(point, np.float64) + 0.5) * self._factor - 0.5
        return round(float(x)) + self._left[side], round(float(y))


def _profile(search: LineSearch, colour: Colour, *, width: int) -> Image:
    """The curve of one search as a strip of the given width."""
    strip: Image = np.full((_PROFILE_HEIGHT, width, 3), _BACKGROUND, dtype=np.uint8)
    similarity = search.similarity
    along = search.places[-1] - search.places[0]
    if along[int(np.abs(along).argmax())] < 0:  # from left to right, or from top to bottom
        similarity = similarity[::-1]
    margin = 6
    x = np.linspace(margin, width - 1 - margin, len(similarity))
    y = np.interp(similarity, (-1.0, 1.0), (_PROFILE_HEIGHT - 1 - margin, margin))
    zero = (_PROFILE_HEIGHT - 1) // 2
    cv2.line(strip, (margin, zero), (width - 1 - margin, zero), (_FRAME,) * 3, 1)
    cv2.line(strip, (0, 0), (width - 1, 0), (_FRAME,) * 3, 1)
    curve = np.rint(np.stack([x, y], axis=1)).astype(np.int32)
    cv2.polylines(strip, [curve.reshape(-1, 1, 2)], False, colour, 1, cv2.LINE_AA)
    best = curve[int(similarity.argmax())]
    cv2.circle(strip, (int(best[0]), int(best[1])), 4, colour, 1, cv2.LINE_AA)
    return strip
