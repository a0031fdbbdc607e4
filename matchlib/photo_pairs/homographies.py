"""Random homographies of a photograph's frame. NumPy float64; pixels, centre of the first pixel at (0, 0).

A homography "photo to view" says where a pixel of the photograph's frame lies in the view. To make the view, read the
photograph at inverse(H) of every view pixel. All have H[2, 2] = 1: what the view shows lies before the horizon,
w > 0, and so does the photograph's first pixel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from matchlib.photo_pairs.config import AdaptationWarpConfig, DescriptorSpaceWarpConfig, WarpConfig

Float64 = npt.NDArray[np.float64]
Size = tuple[int, int]

FRAME_TOLERANCE_PX = 1e-6
"""Rounding of a point on the frame's edge must not put it outside."""

_LEFT, _RIGHT = 0, 1


# ---------------------------------------------------------------- draws
def view_homographies(
    size: Size, generator: np.random.Generator, config: WarpConfig
) -> tuple[Float64, Float64]:
    """The two homographies (3, 3), photo to view 0 and photo to view 1, of a frame of `size` = (width, height)."""
    if config.sampler == "superpoint":
        H_0, H_1 = np.eye(3), superpoint_homography(size, generator, config.superpoint)
    else:
        H_0 = descriptor_space_homography(size, generator, config.descriptor_space, view=0)
        H_1 = descriptor_space_homography(size, generator, config.descriptor_space, view=1)
    if config.refine == "integer_corners":
        H_0, H_1 = with_integer_corners(H_0, size), with_integer_corners(H_1, size)
    return H_0, H_1


def adaptation_homographies(
    count: int, size: Size, generator: np.random.Generator, config: AdaptationWarpConfig
) -> Float64:
    """(count, 3, 3) homographies, photo to view, of a frame of `size` = (width, height); the first is the identity."""
    drawn = [superpoint_homography(size, generator, config) for _ in range(count - 1)]
    return np.stack([np.eye(3), *drawn])[:count]


def superpoint_homography(
    size: Size, generator: np.random.Generator, config: AdaptationWarpConfig
) -> Float64:
    """One homography (3, 3), photo to view: the drawn patch of the photograph lies in the view's centre.

    As in the source, the patch turns within the unit square: on a frame that is not square, turning also shears.
    Source: rpautrat/SuperPoint, sampler of its homographic augmentation.
    """
    patch = _centred_patch(config.patch_ratio)
    while True:
        drawn = _displace(patch, generator, config)
        drawn = _scale(drawn, generator, config)
        drawn = _translate(drawn, generator, config)
        drawn = _rotate(drawn, generator, config)
        H = homography_from_corners(_in_pixels(drawn, size), _in_pixels(patch, size))
        # Strong perspective may put the horizon between the frame's first pixel and the patch: then H[2, 2] = 1
        # would turn the patch to the wrong side. One in some thousand draws, and never most of them.
        if (_in_pixels(drawn, size) @ H[2, :2] + 1.0 > 0).all():
            return H


def descriptor_space_homography(
    size: Size, generator: np.random.Generator, config: DescriptorSpaceWarpConfig, *, view: int
) -> Float64:
    """One homography (3, 3), photo to view `view` (0 or 1): S R P. Source: lin-zju/my-descriptor-space."""
    frame = frame_corners(size)
    ratio = generator.uniform(*config.perspective_ratio)
    angle = generator.uniform(-config.max_angle_rad, config.max_angle_rad)
    scale = generator.uniform(*config.scale_ratio)
    shift = generator.uniform(-1.0, 1.0, size=2)
    H = np.eye(3)
    for inner in (
        _trapezium(frame, ratio, shorter=_LEFT if view == 0 else _RIGHT),
        _turned_inside(frame, angle),
        _shifted_inside(frame, scale, shift),
    ):
        H = homography_from_corners(inner, frame) @ H
    return _normalised(H)


# ---------------------------------------------------------------- properties
def frame_corners(size: Size) -> Float64:
    """Centres (4, 2) of the corner pixels of a frame of (width, height), clockwise from the top left."""
    right, bottom = size[0] - 1.0, size[1] - 1.0
    return np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])


def warp_points(points_N2: Float64, H: Float64) -> Float64:
    """Points (N, 2) mapped by a homography (3, 3)."""
    xyw = points_N2 @ H[:, :2].T + H[:, 2]
    mapped: Float64 = xyw[:, :2] / xyw[:, 2:]
    return mapped


def homography_from_corners(points0_42: Float64, points1_42: Float64) -> Float64:
    """The homography (3, 3), H[2, 2] = 1, that maps four points to four others, no three of them on a line.

    Source: Hartley & Zisserman, 2nd ed., section 4.1; both sets are scaled to unit size for the 8x8 solve.
    """
    N0, N1 = _to_unit(points0_42), _to_unit(points1_42)
    x, y = warp_points(points0_42, N0).T
    u, v = warp_points(points1_42, N1).T
    one, zero = np.ones(4), np.zeros(4)
    rows = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=1),
            np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=1),
        ]
    )
    h = np.linalg.solve(rows, np.concatenate([u, v]))
    return _normalised(inverse(N1) @ np.append(h, 1.0).reshape(3, 3) @ N0)


def with_integer_corners(H: Float64, size: Size) -> Float64:
    """The homography through the frame's corners and their images cut (toward zero) to whole pixels."""
    corners = frame_corners(size)
    return homography_from_corners(corners, np.trunc(warp_points(corners, H)))


def overlap_share(H_photo_to_0: Float64, H_photo_to_1: Float64, size: Size, *, step: int = 4) -> float:
    """Share of view 0, 0 to 1, that shows the photograph and whose partner in view 1 shows it too.

    Counted on every `step`-th pixel of rows and columns.
    """
    width, height = size
    y, x = np.mgrid[0:height:step, 0:width:step]
    points0 = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    H_0_to_photo = inverse(H_photo_to_0)
    in_photo = _inside(points0, H_0_to_photo, size)
    return float(np.mean(in_photo & _inside(points0, H_photo_to_1 @ H_0_to_photo, size)))


def _inside(points_N2: Float64, H: Float64, size: Size) -> npt.NDArray[np.bool_]:
    """(N,) whether the mapped points lie before the horizon and inside the frame.

    H: a product of "photo to view" matrices and exact inverses of such, so that points before the horizon have w > 0.
    """
    xyw = points_N2 @ H[:, :2].T + H[:, 2]
    w = np.where(xyw[:, 2] > 0, xyw[:, 2], np.nan)
    mapped = xyw[:, :2] / w[:, None]
    limit = np.array(size) - 1.0 + FRAME_TOLERANCE_PX
    is_inside: npt.NDArray[np.bool_] = np.all((mapped >= -FRAME_TOLERANCE_PX) & (mapped <= limit), axis=1)
    return is_inside


def inverse(H: Float64) -> Float64:
    """The inverse homography."""
    inverted: Float64 = np.linalg.inv(H).astype(np.float64)
    return inverted


def _normalised(H: Float64) -> Float64:
    """The same homography with H[2, 2] = 1."""
    scaled: Float64 = H / H[2, 2]
    return scaled


def _to_unit(points_42: Float64) -> Float64:
    centre = points_42.mean(axis=0)
    scale = 1.0 / np.abs(points_42 - centre).max()
    return np.array([[scale, 0, -scale * centre[0]], [0, scale, -scale * centre[1]], [0, 0, 1.0]])


# ---------------------------------------------------------------- factors of Descriptor Space
def _trapezium(frame_42: Float64, ratio: float, *, shorter: int) -> Float64:
    """The frame with one vertical side shortened to `ratio` about its middle."""
    corners = frame_42.copy()
    margin = (1.0 - ratio) / 2 * frame_42[2, 1]
    top, bottom = (0, 3) if shorter == _LEFT else (1, 2)
    corners[top, 1] += margin
    corners[bottom, 1] -= margin
    return corners


def _turned_inside(frame_42: Float64, angle_rad: float) -> Float64:
    """The frame turned about its centre and made smaller until it lies inside itself."""
    centre = frame_42.mean(axis=0)
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    turned = (frame_42 - centre) @ np.array([[cosine, sine], [-sine, cosine]])
    largest = np.abs(turned).max(axis=0)
    shrunk: Float64 = turned * np.min(centre / largest) + centre
    return shrunk


def _shifted_inside(frame_42: Float64, ratio: float, shift: Float64) -> Float64:
    """A smaller rectangle in the frame, `shift` in [-1, 1] between the extreme places of each axis."""
    centre = frame_42.mean(axis=0)
    shifted: Float64 = (frame_42 - centre) * ratio + centre + shift * (1.0 - ratio) * centre
    return shifted


# ---------------------------------------------------------------- factors of SuperPoint, in the unit square
def _centred_patch(ratio: float) -> Float64:
    low, high = (1.0 - ratio) / 2, (1.0 + ratio) / 2
    return np.array([[low, low], [high, low], [high, high], [low, high]])


def _in_pixels(points_42: Float64, size: Size) -> Float64:
    """From the unit square, which is the area of the frame, to pixels."""
    pixels: Float64 = points_42 * np.array(size) - 0.5
    return pixels


def _displace(patch: Float64, generator: np.random.Generator, config: AdaptationWarpConfig) -> Float64:
    x, y = config.perspective_amplitude_x, config.perspective_amplitude_y
    if not config.allow_artifacts:
        margin = (1.0 - config.patch_ratio) / 2
        x, y = min(x, margin), min(y, margin)
    vertical = y / 2 * _truncated_normal(generator, 1)[0]
    left, right = x / 2 * _truncated_normal(generator, 2)
    moves: Float64 = np.array([[left, vertical], [right, -vertical], [right, vertical], [left, -vertical]])
    return patch + moves


def _scale(patch: Float64, generator: np.random.Generator, config: AdaptationWarpConfig) -> Float64:
    scales = 1.0 + config.scale_amplitude / 2 * _truncated_normal(generator, config.scale_candidates)
    centre = patch.mean(axis=0)
    candidates = [(patch - centre) * scale + centre for scale in scales]
    return _choose(candidates, patch, generator, config)


def _translate(patch: Float64, generator: np.random.Generator, config: AdaptationWarpConfig) -> Float64:
    if not config.translation:
        return patch
    overflow = config.translation_overflow if config.allow_artifacts else 0.0
    # A patch that already leaves the frame on one side has a negative margin there: the draw brings it back.
    before, after = patch.min(axis=0) + overflow, (1.0 - patch).min(axis=0) + overflow
    low, high = np.minimum(-before, after), np.maximum(-before, after)
    moved: Float64 = patch + generator.uniform(low, high)
    return moved


def _rotate(patch: Float64, generator: np.random.Generator, config: AdaptationWarpConfig) -> Float64:
    centre = patch.mean(axis=0)
    candidates = []
    for angle in np.linspace(-config.max_angle_rad, config.max_angle_rad, config.angle_candidates):
        cosine, sine = np.cos(angle), np.sin(angle)
        candidates.append((patch - centre) @ np.array([[cosine, -sine], [sine, cosine]]) + centre)
    return _choose(candidates, patch, generator, config)


def _choose(
    candidates: list[Float64], fallback: Float64, generator: np.random.Generator, config: AdaptationWarpConfig
) -> Float64:
    """One candidate, or without artefacts one of those inside the frame and of the unchanged patch."""
    if not config.allow_artifacts:
        candidates = [fallback, *(c for c in candidates if c.min() >= 0.0 and c.max() <= 1.0)]
    return candidates[int(generator.integers(len(candidates)))]


def _truncated_normal(generator: np.random.Generator, count: int) -> Float64:
    """(count,) standard normal draws, those beyond two deviations drawn again."""
    values = generator.standard_normal(count)
    while (is_far := np.abs(values) > 2.0).any():
        values[is_far] = generator.standard_normal(int(is_far.sum()))
    return values
