"""HPatches results as other projects publish them: `<method>.npy`, a pickled object array.

The layout comes from D2-Net's evaluation and is used by ASLFeat, R2D2, DISK, SCFeat and PoSFeat: three
objects, `i_err` and `v_err` (threshold 1..15 px -> sum over the pairs of that split of the share of correct
matches) and `[seq_type (P,) 'i'/'v', n_feats (images,), n_matches (P,)]`. `np.load(allow_pickle=True)` would
run whatever code a stranger put into such a file; the reader here builds arrays and numbers and refuses
everything else.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_path
from matchlib.datasets.plain_pickle import loads_plain_pickle
from matchlib.errors import DataError
from matchlib.evaluation.config import SPLITS, THRESHOLDS_PX, Split
from matchlib.evaluation.metrics import mma_score

if TYPE_CHECKING:
    from matchlib.evaluation.hpatches import HPatchesResult

Float = npt.NDArray[np.float64]

_MAX_BYTES = 64 * 2**20  # a real file is 20 kB; more would only serve to exhaust memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """Curves of somebody else's run.

    The methods are those of `HPatchesResult`, as far as the file can answer them.

    illumination, viewpoint: (15,) float64, sum over the pairs of the split of the accuracy at 1..15 px
    pair_is_illumination:    (P,) bool
    image_features:          (images,) int64, keypoints per image
    pair_matches:            (P,) int64, matches per pair
    """

    label: str
    illumination: Float
    viewpoint: Float
    pair_is_illumination: npt.NDArray[np.bool_]
    image_features: npt.NDArray[np.int64]
    pair_matches: npt.NDArray[np.int64]

    def mma(self, split: Split = "all") -> Float:
        """Mean matching accuracy at 1..15 px, (15,) float64; nan for an empty split."""
        count = int(self._mask(split).sum())
        total = {
            "all": self.illumination + self.viewpoint,
            "illumination": self.illumination,
            "viewpoint": self.viewpoint,
        }[split]
        return total / count if count else np.full(len(THRESHOLDS_PX), np.nan)

    def score(self, split: Split = "all") -> float:
        """MMAscore of one split."""
        return mma_score(self.mma(split))

    def mean_features(self) -> float:
        """Mean number of keypoints over all images."""
        return float(self.image_features.mean()) if self.image_features.size else math.nan

    def mean_matches(self, split: Split = "all") -> float:
        """Mean number of matches over the pairs of one split; nan for an empty split."""
        matches = self.pair_matches[self._mask(split)]
        return float(matches.mean()) if matches.size else math.nan

    def summary(self) -> dict[str, Any]:
        """As `HPatchesResult.summary`, without what the file does not hold.

        Absent: intervals, homography, repeatability, matching score, digest.
        """
        return {"label": self.label, "features": self.mean_features(), "pairs": len(self.pair_matches)} | {
            split: {
                "pairs": int(self._mask(split).sum()),
                "matches": self.mean_matches(split),
                **{f"mma@{t}": float(self.mma(split)[t - 1]) for t in range(1, 11)},
                "score": self.score(split),
            }
            for split in SPLITS
            if self._mask(split).any()
        }

    def _mask(self, split: Split) -> npt.NDArray[np.bool_]:
        if split == "all":
            return np.ones_like(self.pair_is_illumination)
        return self.pair_is_illumination if split == "illumination" else ~self.pair_is_illumination


def read_published_cache(path: Path, *, label: str | None = None) -> PublishedResult:
    """Read a published `.npy` result without running any code in it; `label` defaults to the file's stem.

    Raises DataError naming the file and, for a pickle that asks for anything but arrays and numbers,
    the global it asks for.
    """
    body = _load_object_array(path)
    try:
        i_err, v_err, (types, n_feats, n_matches) = body
        is_illumination = np.asarray(types).astype(str) == "i"
        features, matches = np.asarray(n_feats, dtype=np.int64), np.asarray(n_matches, dtype=np.int64)
        sums = [np.array([float(err[t]) for t in THRESHOLDS_PX]) for err in (i_err, v_err)]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{path}: expected [i_err, v_err, [types, n_feats, n_matches]] at 1..15 px, "
            f"got something else ({error})"
        ) from error
    if is_illumination.ndim != 1 or is_illumination.shape != matches.shape or features.ndim != 1:
        raise DataError(
            f"{path}: expected one type and one match count per pair, got shapes {is_illumination.shape} and "
            f"{matches.shape}"
        )
    return PublishedResult(
        label=label or path.stem,
        illumination=sums[0],
        viewpoint=sums[1],
        pair_is_illumination=is_illumination,
        image_features=features,
        pair_matches=matches,
    )


def write_published_cache(result: HPatchesResult, path: Path) -> None:
    """Write our result in the same layout, atomically, so that other projects can draw it beside theirs.

    Readable by `np.load(path, allow_pickle=True)` of NumPy 1.26 and later.
    """
    sums: list[dict[int, float]] = []
    splits: tuple[Split, ...] = ("illumination", "viewpoint")
    for split in splits:
        rows = [pair.accuracy for pair in result.pairs_of(split)]
        total = np.sum(rows, axis=0) if rows else np.zeros(len(THRESHOLDS_PX))
        sums.append({t: float(value) for t, value in zip(THRESHOLDS_PX, total, strict=True)})
    counts = [
        np.array(["i" if pair.split == "illumination" else "v" for pair in result.pairs]),
        np.array(result.image_features, dtype=np.int64),
        np.array([pair.matches for pair in result.pairs], dtype=np.int64),
    ]
    body = np.empty(3, dtype=object)
    body[:] = [sums[0], sums[1], counts]
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, body, allow_pickle=True)


# ---------------------------------------------------------------- restricted reading
def _load_object_array(path: Path) -> npt.NDArray[Any]:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found") from error
    if size > _MAX_BYTES:
        raise DataError(f"{path}: {size} bytes; a published result has some 20 kB, so this is something else")
    stream = io.BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(stream)
    except (ValueError, KeyError, EOFError, SyntaxError) as error:
        raise DataError(f"{path}: not a .npy file ({error})") from error
    if dtype != np.dtype(object) or shape != (3,):
        raise DataError(f"{path}: expected an object array of shape (3,), got {dtype} of shape {shape}")
    try:
        body = loads_plain_pickle(stream.read())
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(body, np.ndarray) or body.shape != (3,):
        raise DataError(f"{path}: expected an object array of shape (3,) inside, got {type(body).__name__}")
    return body
