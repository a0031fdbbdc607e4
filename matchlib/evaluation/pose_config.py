"""Every knob of relative-pose evaluation that changes a number. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from matchlib.errors import ConfigError
from matchlib.evaluation.config import BootstrapConfig

PoseEstimator = Literal["opencv_ransac", "opencv_magsac", "poselib", "pycolmap"]

UPSTREAM_DEPTH_LIMIT = 50.0
"""The `depth_limit` behind published OpenCV figures, whatever their code says. It calls `cv2.recoverPose(E, points0,
points1, K, 1e9, mask=mask)`, and Python binds that 1e9 to the output argument `R` of another overload, so OpenCV's
default of 50 baselines holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseProtocol:
    """How the relative pose of two calibrated images is estimated from matches, and how its error is counted.

    The error of a pair is the larger of the rotation's angle and of the angle between the true and the estimated
    translation, which is taken without its sign: min(angle, 180 - angle). Estimator, threshold and resize stand in
    every table row: the estimator alone moves AUC@5 on MegaDepth-1500 by 14 to 17 points.
    """

    name: str = "poselib"
    """Name of this protocol in tables."""
    estimator: PoseEstimator = "poselib"
    """`opencv_ransac`: five points, no refinement. `opencv_magsac`: MAGSAC++. `poselib`, `pycolmap`: LO-RANSAC with
    non-linear refinement."""
    threshold_px: float = 1.0
    """Inlier threshold of the estimator, in pixels of the frame below."""
    threshold_frame: Literal["original", "resized"] = "original"
    """Pixels that `threshold_px` counts: of the original images, or of images resized to `long_side`."""
    long_side: int | None = None
    """Long side in pixels that the protocol resizes images to; null: not at all. Keypoints are scaled, nothing is
    extracted again: to match a published number, extract at this size too (`extract_long_side`)."""
    mean_focal: Literal["all_four", "fx0_fy1"] = "all_four"
    """Focal length that turns OpenCV's threshold from pixels to the plane z = 1: the mean of fx and fy of both
    cameras, or of fx of the first and fy of the second (LoFTR). PoseLib and pycolmap have rules of their own."""
    confidence: float = 0.99999
    """Success probability at which sampling stops."""
    min_iterations: int = 1000
    """Iterations made in any case, by `poselib` and `pycolmap`."""
    max_iterations: int = 100_000
    """Upper limit of iterations. OpenCV's own, behind every published OpenCV figure, is 1000."""
    depth_limit: float = 1e9
    """OpenCV: points further away than this, in baselines, have no vote on which of the four poses is right."""
    seed: int = 0
    """Seed of the sampling: of the library where it takes one, of the order of the matches where it does not
    (OpenCV)."""
    repeats: int = 1
    """Estimations per pair, each with its own seed; figures are over all of them."""
    max_keypoints: int | None = None
    """Only the best keypoints of each image by score are matched; null: all of them."""
    ratio: float | None = None
    """Largest allowed ratio of best to second-best descriptor distance; null: mutual nearest neighbours alone."""
    max_matches: int | None = None
    """Only the best matches by score are used; null: all of them."""
    apply_pixel_offset: bool = True
    """Bring keypoints to the pixel convention that the list's intrinsics are in. False: mix them as they are, as most
    published code does on MegaDepth; half a pixel off."""
    failure_deg: float | None = None
    """Error of a pair without a pose, or with fewer than five matches; null: infinite. RoMa uses 90."""
    min_baseline: float = 0.0
    """Pairs whose true translation is at most this long, in the unit of the list, have no direction: only their
    rotation counts."""
    auc_deg: tuple[float, ...] = (5.0, 10.0, 20.0)
    """Thresholds of the area under the recall curve of the error."""
    bootstrap_over: Literal["auto", "pairs", "scenes"] = "auto"
    """What is drawn for intervals; `auto`: scenes where the list has at least ten, else pairs. Pairs of a scene are
    not independent, but few scenes give no interval."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """Interval beside each figure."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("name: expected a name, got an empty string")
        positive = {"threshold_px": self.threshold_px, "depth_limit": self.depth_limit}
        for key, value in positive.items():
            if not value > 0:
                raise ConfigError(f"{key}: expected a value above 0, got {value}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence: expected a value between 0 and 1, got {self.confidence}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ConfigError(f"ratio: expected a value in (0, 1] or null, got {self.ratio}")
        for key in ("min_iterations", "max_iterations", "repeats", "max_keypoints", "max_matches"):
            count = getattr(self, key)
            if count is not None and count < 1:
                raise ConfigError(f"{key}: expected at least 1, got {count}")
        self._check_frame()
        if self.failure_deg is not None and not 0 <= self.failure_deg <= 180:
            raise ConfigError(f"failure_deg: expected an angle in [0, 180] or null, got {self.failure_deg}")
        if self.min_baseline < 0:
            raise ConfigError(f"min_baseline: expected 0 or more, got {self.min_baseline}")
        if not self.auc_deg or min(self.auc_deg) <= 0:
            raise ConfigError(f"auc_deg: expected values above 0, at least one, got {list(self.auc_deg)}")

    def _check_frame(self) -> None:
        if self.long_side is not None and self.long_side < 16:
            raise ConfigError(f"long_side: expected at least 16 or null, got {self.long_side}")
        if self.threshold_frame == "resized" and self.long_side is None:
            raise ConfigError("threshold_frame: 'resized' needs long_side, which is null")
        if self.estimator in ("poselib", "pycolmap") and self.min_iterations > self.max_iterations:
            raise ConfigError(
                f"min_iterations: expected at most max_iterations = {self.max_iterations}, got {self.min_iterations}"
            )

    @property
    def resize_name(self) -> str:
        """The resize that the protocol asks for, e.g. `long side 1600`."""
        return "original size" if self.long_side is None else f"long side {self.long_side}"

    @property
    def estimator_name(self) -> str:
        """Estimator, threshold and its frame as they stand in every table row, e.g. `poselib 1 px @ original size`."""
        frame = self.resize_name if self.threshold_frame == "resized" else "original size"
        return f"{self.estimator} {self.threshold_px:g} px @ {frame}"


OPENCV_ITERATIONS = 1000

POSE_PROTOCOLS: tuple[PoseProtocol, ...] = (
    PoseProtocol(),
    PoseProtocol(
        name="opencv", estimator="opencv_ransac", threshold_px=0.5, max_iterations=OPENCV_ITERATIONS
    ),
)
"""What is evaluated unless a configuration says otherwise: LO-RANSAC, and OpenCV for comparison."""

_PUBLISHED_OPENCV = PoseProtocol(
    estimator="opencv_ransac",
    threshold_px=0.5,
    max_iterations=OPENCV_ITERATIONS,
    depth_limit=UPSTREAM_DEPTH_LIMIT,
    apply_pixel_offset=False,
)
_GLUE_FACTORY = PoseProtocol(
    threshold_frame="resized", long_side=1600, max_keypoints=2048, apply_pixel_offset=True
)
_GLUE_FACTORY_OPENCV = replace(
    _PUBLISHED_OPENCV,
    name="glue-factory-opencv",
    threshold_frame="resized",
    long_side=1600,
    max_keypoints=2048,
    apply_pixel_offset=True,
)

PUBLISHED_POSE_PROTOCOLS: tuple[PoseProtocol, ...] = (
    replace(_PUBLISHED_OPENCV, name="loftr-megadepth", long_side=840, mean_focal="fx0_fy1"),
    replace(_PUBLISHED_OPENCV, name="loftr-scannet", long_side=640, mean_focal="fx0_fy1"),
    replace(_PUBLISHED_OPENCV, name="superglue", threshold_px=1.0, threshold_frame="resized", long_side=1600),
    _GLUE_FACTORY_OPENCV,
    replace(_GLUE_FACTORY, name="glue-factory-poselib", confidence=0.9999),
    replace(_GLUE_FACTORY, name="glue-factory-pycolmap", estimator="pycolmap", confidence=0.9999),
    PoseProtocol(
        name="xfeat",
        threshold_px=2.5,
        threshold_frame="resized",
        long_side=1200,
        min_iterations=20,
        max_iterations=1000,
        max_keypoints=4096,
        apply_pixel_offset=False,
    ),
    replace(
        _PUBLISHED_OPENCV,
        name="roma",
        threshold_frame="resized",
        long_side=1200,
        max_matches=5000,
        repeats=5,
        failure_deg=90.0,
    ),
)
"""Published settings, by name. They reproduce the estimation; features have to be extracted at `long_side`, to which
upstream shrinks and enlarges alike (`evaluate_pose.extract_long_side`, `matchlib extract --resize-long-side`).

differs from them: sampling is seeded for each pair; images are not padded or rounded to multiples of 8 or 32 pixels;
`glue-factory-pycolmap` estimates an essential matrix (upstream: whichever of E, F and H explains the matches best).
"""


def published_protocol(name: str) -> PoseProtocol:
    """A published protocol by name. Raises ConfigError listing the known ones."""
    for protocol in PUBLISHED_POSE_PROTOCOLS:
        if protocol.name == name:
            return protocol
    known = ", ".join(protocol.name for protocol in PUBLISHED_POSE_PROTOCOLS)
    raise ConfigError(f"unknown pose protocol '{name}' (known: {known})")


def threshold_sweep(
    protocol: PoseProtocol, thresholds_px: Sequence[float] = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
) -> tuple[PoseProtocol, ...]:
    """The protocol at several thresholds, named `<name>@<threshold>px`, to publish the sweep and not its best.

    The default thresholds are those that glue-factory takes the best of.
    """
    return tuple(
        replace(protocol, name=f"{protocol.name}@{threshold:g}px", threshold_px=threshold)
        for threshold in thresholds_px
    )
