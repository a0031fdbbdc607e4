"""Training pairs with poses, or with poses and depth, from finished match sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.datasets.batch import PairBatch, PoseBatch
from matchlib.datasets.depth import read_depth
from matchlib.datasets.images import read_image
from matchlib.errors import DataError
from matchlib.match_sets.opened import ListedPair, MatchSetSource, OpenedSets
from matchlib.match_sets.resize import resize_depth, resize_image

__all__ = ["DepthPosePairs", "MatchSetSource", "PosePairs"]


class PosePairs:
    """Pairs of several scenes with poses, as the trainer's `PairSource`, from match sets of any source.

    size:   (width, height) that images are resized to, each side by its own factor; K follows
    digest: of the markers and limits of all sources: equal digests mean equal pairs
    Reads no depth. Pairs without baseline are left out (see `matchlib.match_sets.baseline`), and those that
    the limits of `MatchSetSource` exclude. Holds no open file, so data-loader workers can copy it.
    Raises DataError for a match set that is not finished, or if no pair is left.
    """

    def __init__(self, sources: Sequence[MatchSetSource], *, size: tuple[int, int]) -> None:
        self._size = size
        self._sets = OpenedSets(sources, supervision="pose")
        self.digest = self._sets.digest

    def __len__(self) -> int:
        return len(self._sets)

    def load(self, index: int, seed: int) -> PoseBatch:
        """Pair `index` as a batch of one; `seed` goes into it for whoever draws at random.

        Raises DataError, naming the file, where an image is unreadable.
        """
        return _pose_batch(self._sets.find(index), self._size, seed)


class DepthPosePairs:
    """The same with depth of both images, from match sets of scenes that have it; the pairs need no baseline.

    size: (width, height) that images and depth maps are resized to, each side by its own factor, as ASLFeat
          does
    Raises as `PosePairs` does.
    """

    def __init__(self, sources: Sequence[MatchSetSource], *, size: tuple[int, int]) -> None:
        self._size = size
        self._sets = OpenedSets(sources, supervision="depth_pose")
        self.digest = self._sets.digest

    def __len__(self) -> int:
        return len(self._sets)

    def load(self, index: int, seed: int) -> PairBatch:
        """Pair `index` as a batch of one; `seed` goes into it for whoever draws at random.

        Raises DataError, naming the file, where an image or depth map is unreadable or a depth map all zero.
        """
        pair = self._sets.find(index)
        depth0, depth1 = (_read_depth(*files, self._size) for files in pair.files)
        posed = _pose_batch(pair, self._size, seed)
        return PairBatch(
            image0=posed.image0,
            image1=posed.image1,
            depth0=depth0,
            depth1=depth1,
            K0=posed.K0,
            K1=posed.K1,
            T_0to1=posed.T_0to1,
            seeds=posed.seeds,
            names=posed.names,
        )


def _pose_batch(pair: ListedPair, size: tuple[int, int], seed: int) -> PoseBatch:
    (path0, _), (path1, _) = pair.files
    geometry = pair.geometry
    return PoseBatch(
        image0=_read_image(path0, size),
        image1=_read_image(path1, size),
        K0=_scaled(geometry.K0, geometry.size0, size),
        K1=_scaled(geometry.K1, geometry.size1, size),
        T_0to1=torch.from_numpy(geometry.T_0to1).float()[None],
        seeds=(seed,),
        names=(pair.name,),
    )


def _read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) float32 in [0, 1]."""
    image = torch.from_numpy(resize_image(read_image(path), *size))
    return image.permute(2, 0, 1).contiguous().float().div_(255)[None]


def _read_depth(image: Path, path: Path | None, size: tuple[int, int]) -> Tensor:
    """(1, H, W) float32."""
    if path is None:
        raise DataError(f"{image}: has no depth map, but training with depth_pose needs one")
    depth = read_depth(path)
    if not depth.any():
        raise DataError(f"{path}: no depth above 0")
    return torch.from_numpy(np.ascontiguousarray(resize_depth(depth, *size)))[None]


def _scaled(K: npt.NDArray[np.float64], original: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(1, 3, 3) float32 K of the resized image, by the rule of `Camera.scaled_K`."""
    scale = np.diag([size[0] / original[0], size[1] / original[1], 1.0])
    return torch.from_numpy(scale @ K).float()[None]
