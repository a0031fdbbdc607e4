"""Matches between the features of two images. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from matchlib.errors import ShapeError, check_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs of keypoints, sorted by the index into image 0.

    index:  (K, 2) int64, keypoint of image 0 and of image 1; each keypoint occurs at most once
    scores: (K,) float32, higher is better (for mutual nearest neighbours the cosine similarity)
    K may be 0. Raises ShapeError for shapes or dtypes other than these.
    """

    index: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        count = check_shape("index", self.index, "K 2")["K"]
        check_shape("scores", self.scores, str(count))
        if self.index.dtype != np.int64:
            raise ShapeError(f"index: expected int64, got {self.index.dtype}")
        if self.scores.dtype != np.float32:
            raise ShapeError(f"scores: expected float32, got {self.scores.dtype}")

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def top(self, k: int) -> Matches:
        """The `k` best by score (all, if fewer), in the order of this object; equal scores: the earlier
        first.
        """
        best = np.sort(np.argsort(-self.scores, kind="stable")[:k])
        return Matches(index=self.index[best], scores=self.scores[best])
