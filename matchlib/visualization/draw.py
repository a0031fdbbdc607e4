"""Keypoints, matches and score maps drawn on images: plain functions on (H, W, 3) uint8 RGB arrays."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.errors import DataError, ShapeError, check_shape

Image = npt.NDArray[np.uint8]
Points = npt.NDArray[np.floating]
Colour = tuple[int, int, int]

# Okabe & Ito's palette (Color Universal Design, 2008): bluish green, yellow and vermilion stay apart for
# readers with any of the common colour vision deficiencies.
GOOD: Colour = (0, 158, 115)
MIDDLE: Colour = (240, 228, 66)
BAD: Colour = (213, 94, 0)
UNKNOWN: Colour = (150, 150, 150)
NEUTRAL: Colour = (86, 180, 233)

GOOD_PX = 1.0
BAD_PX = 5.0

_BACKGROUND = 24
_TEXT: Colour = (235, 235, 235)
_SHIFT = 4  # OpenCV draws at fixed-point coordinates with this many fractional bits
_FAR_PX = 16384.0  # beyond any canvas, and still far from the overflow of OpenCV's fixed-point coordinates


def error_colours(errors_px: Points) -> npt.NDArray[np.uint8]:
    """Colour of each error: green up to 1 px, over yellow at 3 px, to vermilion from 5 px on.

    errors_px: (N,) in pixels; nan means that the truth is unknown and gives grey, inf counts as above 5 px.
    Returns (N, 3) uint8 RGB. Raises ShapeError.
    """
    check_shape("errors_px", errors_px, "N")
    known = ~np.isnan(errors_px)
    position = np.clip((np.where(known, errors_px, 0.0) - GOOD_PX) / (BAD_PX - GOOD_PX), 0.0, 1.0)
    anchors = np.array([GOOD, MIDDLE, BAD], dtype=np.float64)
    channels = [np.interp(position, (0.0, 0.5, 1.0), anchors[:, channel]) for channel in range(3)]
    colours = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    colours[~known] = UNKNOWN
    return colours


def draw_keypoints(
    image: Image, keypoints: Points, scores: Points | None = None, *, radius_px: float | None = None
) -> Image:
    """A copy of the image with a filled dot at each keypoint.

    image:     (H, W, 3) uint8 RGB
    keypoints: (N, 2), (x, y) in pixels, centre of the first pixel at (0, 0); N may be 0
    scores:    (N,) higher is better: colours dots by rank, dark violet (worst) to yellow (best), best on top
    radius_px: of the dots; by default 3 px for an image of 640 x 480, larger in larger images
    Raises ShapeError for other shapes and dtypes, and for keypoints that are not finite.
    """
    _check_image("image", image)
    count = _check_points("keypoints", keypoints)
    canvas = image.copy()
    radius = radius_px if radius_px is not None else _line_width(image.shape[1], image.shape[0]) * 2.0
    order = np.arange(count)
    colours = np.tile(np.array(NEUTRAL, dtype=np.uint8), (count, 1))
    if scores is not None:
        check_shape("scores", scores, str(count))
        order = np.argsort(scores, kind="stable")
        colours[order] = _viridis(np.linspace(0.0, 1.0, count))
    for index in order:
        _dot(canvas, keypoints[index], radius, _as_colour(colours[index]))
    return canvas


def draw_matches(
    image0: Image,
    image1: Image,
    keypoints0: Points,
    keypoints1: Points,
    *,
    errors_px: Points | None = None,
    max_lines: int = 250,
    height_px: int | None = None,
    legend: bool = True,
) -> Image:
    """Both images side by side, a line for each match, coloured by its error.

    image0, image1: (H, W, 3) uint8 RGB, of any two sizes
    keypoints0, keypoints1: (M, 2), (x, y) in pixels of their image; row m of both is one match; M may be 0
    errors_px:  (M,) distance of each match from the truth, nan where unknown; None: all lines in one colour
    max_lines:  of more matches only this many are drawn, evenly spaced over the errors, so that the mix of
                colours in the picture stays that of all matches
    height_px:  scale both images to this height; None keeps their sizes and puts the tops in line
    legend:     add a strip below with the colour scale and the numbers of all matches
    Raises ShapeError for other shapes and dtypes, and for keypoints that are not finite.
    """
    _check_image("image0", image0)
    _check_image("image1", image1)
    count = _check_points("keypoints0", keypoints0)
    check_shape("keypoints1", keypoints1, f"{count} 2")
    _check_points("keypoints1", keypoints1)
    if errors_px is not None:
        check_shape("errors_px", errors_px, str(count))
    image0, keypoints0 = _scale_to_height(image0, keypoints0, height_px)
    image1, keypoints1 = _scale_to_height(image1, keypoints1, height_px)
    canvas, left_of_image1 = _side_by_side(image0, image1)
    chosen = _evenly_chosen(errors_px, count, max_lines)
    colours = (
        error_colours(errors_px)[chosen]
        if errors_px is not None
        else np.tile(np.array(NEUTRAL, dtype=np.uint8), (len(chosen), 1))
    )
    ends1 = keypoints1[chosen] + np.array([left_of_image1, 0.0])
    _draw_lines(canvas, keypoints0[chosen], ends1, colours)
    return np.vstack([canvas, _legend(canvas.shape[1], errors_px, count, len(chosen))]) if legend else canvas


def draw_score_map(scores: Points, image: Image | None = None, *, opacity: float = 0.6) -> Image:
    """A detector's score map as a heat map, dark violet (low) to yellow (high).

    scores:  (h, w), any range; stretched between its 1 % and 99.9 % quantiles, because single peaks would
             leave the rest black. Values that are not finite become grey. A constant map is drawn as lowest.
    image:   (H, W, 3) uint8 RGB to lay the map over; the map is enlarged to it
    opacity: of the map over the image, 0 to 1
    Returns (h, w, 3) uint8 RGB, (H, W, 3) with an image. Raises ShapeError.
    """
    check_shape("scores", scores, "h w")
    finite = np.isfinite(scores)
    low, high = np.quantile(scores[finite], (0.01, 0.999)) if finite.any() else (0.0, 0.0)
    spread = high - low if high > low else 1.0
    stretched = np.clip((np.where(finite, scores, low) - low) / spread, 0.0, 1.0)
    heat = _viridis(stretched)
    heat[~finite] = UNKNOWN
    if image is None:
        return heat
    _check_image("image", image)
    height, width = image.shape[:2]
    enlarged = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.addWeighted(enlarged, opacity, image, 1.0 - opacity, 0.0).astype(np.uint8, copy=False)


def encode_png(image: Image) -> bytes:
    """The image as a PNG file. Raises ShapeError."""
    return _encode(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def encode_jpeg(image: Image, *, quality: int = 85) -> bytes:
    """The image as a JPEG file. Raises ShapeError."""
    return _encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def decode_image(content: bytes, *, where: str) -> Image:
    """The (H, W, 3) uint8 RGB image in the bytes of a PNG or JPEG file; `where` names it in the DataError."""
    decoded = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR) if content else None
    if decoded is None:
        raise DataError(
            f"{where}: expected a PNG or JPEG picture, got {len(content)} bytes of something else"
        )
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def save_png(path: Path, image: Image) -> None:
    """Write the image as PNG, atomically. Raises ShapeError."""
    atomic_write(path, encode_png(image))


def fit_into(image: Image, max_side_px: int) -> Image:
    """The image, made smaller if its long side is above `max_side_px`."""
    _check_image("image", image)
    height, width = image.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


# ---------------------------------------------------------------- parts of the pictures
def _scale_to_height(image: Image, keypoints: Points, height_px: int | None) -> tuple[Image, Points]:
    keypoints = keypoints.astype(np.float64)
    height, width = image.shape[:2]
    if height_px is None or height_px == height:
        return image, keypoints
    size = (max(1, round(width * height_px / height)), height_px)
    interpolation = cv2.INTER_AREA if height_px < height else cv2.INTER_LINEAR
    scale = np.array(size) / (width, height)
    # Pixel centres are at integers, so the image itself spans -0.5 to width - 0.5.
    scaled = cv2.resize(image, size, interpolation=interpolation).astype(np.uint8, copy=False)
    return scaled, (keypoints + 0.5) * scale - 0.5


def _side_by_side(image0: Image, image1: Image) -> tuple[Image, int]:
    """The canvas with both images, and the column at which image 1 begins."""
    (height0, width0), (height1, width1) = image0.shape[:2], image1.shape[:2]
    left = width0 + max(4, (width0 + width1) // 200)
    canvas = np.full((max(height0, height1), left + width1, 3), _BACKGROUND, dtype=np.uint8)
    canvas[:height0, :width0] = image0
    canvas[:height1, left:] = image1
    return canvas, left


def _evenly_chosen(errors_px: Points | None, count: int, limit: int) -> npt.NDArray[np.int64]:
    """At most `limit` indices, evenly spaced over the sorted errors (over the order given, without errors).

    They come in an order that mixes good and bad ones, so that neither kind is always painted over the other.
    """
    ranked = np.argsort(errors_px, kind="stable") if errors_px is not None else np.arange(count)
    kept = min(count, max(0, limit))
    chosen = ranked[(np.arange(kept) * count) // max(1, kept)]
    golden = (
        np.arange(kept) * 0.6180339887498949
    ) % 1.0  # low-discrepancy sequence: consecutive ranks are far apart
    return chosen[np.argsort(golden, kind="stable")].astype(np.int64)


def _draw_lines(canvas: Image, ends0: Points, ends1: Points, colours: npt.NDArray[np.uint8]) -> None:
    """Half-transparent lines first, then opaque dots at both ends, so that all keypoints show."""
    width = _line_width(canvas.shape[1] // 2, canvas.shape[0])
    lines = canvas.copy()
    for end0, end1, colour in zip(ends0, ends1, colours, strict=True):
        start, stop = _fixed_point(end0), _fixed_point(end1)
        cv2.line(lines, start, stop, _as_colour(colour), max(1, round(width)), cv2.LINE_AA, _SHIFT)
    cv2.addWeighted(lines, 0.65, canvas, 0.35, 0.0, dst=canvas)
    for end0, end1, colour in zip(ends0, ends1, colours, strict=True):
        _dot(canvas, end0, 2.0 * width, _as_colour(colour))
        _dot(canvas, end1, 2.0 * width, _as_colour(colour))


def _legend(width: int, errors_px: Points | None, count: int, drawn: int) -> Image:
    size = int(np.clip(width / 45, 9, 20))
    height = 2 * size + 6
    strip = np.full((height, width, 3), _BACKGROUND, dtype=np.uint8)
    baseline, left = height // 2 + size // 3, size
    text = f"{count} matches" + (f", {drawn} drawn" if drawn < count else "")
    if errors_px is not None:
        left = _scale_bar(strip, left, baseline, size)
        known = errors_px[~np.isnan(errors_px)]
        if len(known):
            text += f", {100.0 * np.mean(known <= 3.0):.0f} % within 3 px"
    _write(strip, text, left, baseline, size)
    return strip


def _scale_bar(strip: Image, left: int, baseline: int, size: int) -> int:
    """Draw `≤ 1 [colours] ≥ 5 px` and return the column after it."""
    left = _write(strip, f"≤ {GOOD_PX:g}", left, baseline, size) + size // 2
    length, thickness = 7 * size, max(4, size * 2 // 3)
    top = strip.shape[0] // 2 - thickness // 2
    right = min(left + length, strip.shape[1])
    if right > left:
        ramp = error_colours(np.linspace(GOOD_PX, BAD_PX, length))
        strip[top : top + thickness, left:right] = ramp[: right - left]
    return _write(strip, f"≥ {BAD_PX:g} px", left + length + size // 2, baseline, size) + 2 * size


def _write(canvas: Image, text: str, left: int, baseline: int, size: int) -> int:
    """Write text from (left, baseline) on and return the column after it."""
    end, _ = cv2.putText(canvas, text, (left, baseline), _TEXT, cv2.FontFace("sans"), size, 450)
    return int(end[0])


# ---------------------------------------------------------------- small things
def _dot(canvas: Image, point: Points, radius_px: float, colour: Colour) -> None:
    radius = max(1, round(radius_px * 2**_SHIFT))
    cv2.circle(canvas, _fixed_point(point), radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _fixed_point(point: Points) -> tuple[int, int]:
    x, y = np.clip(point, -_FAR_PX, _FAR_PX)
    return round(float(x) * 2**_SHIFT), round(float(y) * 2**_SHIFT)


def _line_width(width: int, height: int) -> float:
    return max(1.0, 1.5 * max(width, height) / 640)


def _viridis(values: Points) -> npt.NDArray[np.uint8]:
    """Colours (..., 3) uint8 RGB of values in 0..1."""
    levels = np.rint(values * 255.0).astype(np.uint8)
    flat = (
        cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_VIRIDIS) if levels.size else np.zeros((0, 1, 3))
    )
    return flat.reshape(*levels.shape, 3)[..., ::-1].astype(np.uint8)


def _as_colour(colour: npt.NDArray[np.uint8]) -> Colour:
    return int(colour[0]), int(colour[1]), int(colour[2])


def _encode(image: Image, ending: str, options: list[int]) -> bytes:
    _check_image("image", image)
    _, encoded = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return bytes(encoded)


def _check_image(name: str, image: Image) -> None:
    check_shape(name, image, "H W 3")
    if image.dtype != np.uint8:
        raise ShapeError(f"{name}: expected uint8 RGB, got {image.dtype}")
    if image.size == 0:
        raise ShapeError(f"{name}: expected at least one pixel, got shape {image.shape}")


def _check_points(name: str, points: Points) -> int:
    count = check_shape(name, points, "N 2")["N"]
    if not np.isfinite(points).all():
        raise ShapeError(
            f"{name}: expected finite coordinates, got nan or inf; drop such points before drawing"
        )
    return count
