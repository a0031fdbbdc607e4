"""Exact nearest neighbours between two sets of descriptors by dot product, in blocks that stay in cache.

The product of the two sets is computed tile by tile and never stored as a whole. Of each tile only row and
column maxima survive, and where wanted the second largest.

Ties: of equal similarities the lowest index wins, within a tile and across tiles. "Equal" means equal after
float32 rounding: equal descriptors have equal similarities wherever the library adds the products in the same
order, which neither BLAS nor oneDNN promises at the ragged edge of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from matchlib.errors import ShapeError, check_shape
from matchlib.ops.extension import load_extension
from matchlib.ops.matmul import matmul_nt

# Rows and columns of a tile. CPU: 2 or 3 MB stay in the caches, and the memory is used again without page faults. Wide
# tiles keep more threads busy, narrow ones waste less on small sets.
_CPU_TILE = (512, 1024)
_WIDE_CPU_TILE = (384, 2048)
_WIDE_FROM = 8192  # columns
_DEFAULT_TILE = (8192, 8192)
_GROUP = 16  # rows whose maxima are taken together before a column's winner is looked up


def mutual_nearest(
    descriptors0: Tensor, descriptors1: Tensor, *, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the pairs in which each descriptor is the other's nearest by dot product.

    descriptors0: (N, D) float32 or float64, any device; unit length if the dot product is to order by
                  distance.
    descriptors1: (M, D), same dtype and device. N, M or D may be 0; no descriptors give no pairs.
    block:        rows and columns of a tile; by default what measured fastest for the device.
    Returns `index` (K, 2) int64, columns into set 0 and set 1, ascending in the first, and `similarity` (K,)
    of the descriptors' dtype. Exact: every pair is compared, ties go to the lowest index (see the module's
    docstring). Memory beside the result: a few tiles. No gradient. Raises ShapeError for shapes, dtypes or
    devices that do not fit and for values that are not finite.
    """
    return _mutual(*_search(descriptors0, descriptors1, block=block, both=True))


def mutual_nearest_with_second(
    descriptors0: Tensor, descriptors1: Tensor, *, both_directions: bool, block: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find what `mutual_nearest` finds and, for each pair, how near the nearest of the other descriptors is.

    Arguments as in `mutual_nearest`. Returns its `index` (K, 2) and `similarity` (K,), and `second` (K, 1), or
    (K, 2) with `both_directions`, of the descriptors' dtype: the largest similarity of the pair's descriptor of
    set 0 to all others of set 1; in the second column that of the descriptor of set 1 to all others of set 0.
    It equals `similarity` where two tie, and is -inf where there is no other. All from one pass over each tile.
    """
    sides = 2 if both_directions else 1
    best = _search(descriptors0, descriptors1, block=block, both=True, seconds=sides)
    index, similarity = _mutual(*best)
    second = torch.stack([best[side].second[index[:, side]] for side in range(sides)], dim=1)
    return index, similarity, second


def nearest(descriptors0: Tensor, descriptors1: Tensor, *, block: int | None = None) -> tuple[Tensor, Tensor]:
    """Find for each descriptor of set 0 its nearest in set 1 by dot product.

    Arguments as in `mutual_nearest`. Returns `index` (N,) int64 into set 1 and `similarity` (N,); where set 1
    is empty, index -1 and similarity -inf.
    """
    best0, _ = _search(descriptors0, descriptors1, block=block, both=False)
    return best0.index, best0.value


@dataclass(frozen=True, slots=True)
class _Best:
    """The largest similarity met so far, where it was met (-1 before the first), and the largest of all others.

    Empty: what is not wanted.
    """

    value: Tensor
    index: Tensor
    second: Tensor

    @classmethod
    def none_yet(cls, count: int, like: Tensor, *, seconds: bool) -> _Best:
        return cls(
            like.new_full((count,), -torch.inf),
            torch.full((count,), -1, dtype=torch.int64, device=like.device),
            like.new_full((count if seconds else 0,), -torch.inf),
        )

    @property
    def has_second(self) -> bool:
        return len(self.second) > 0

    def update(self, part: slice, value: Tensor, index: Tensor) -> None:
        """Take over what is strictly larger: tiles ascend, so the lowest index keeps a tie."""
        better = value > self.value[part]
        self.value[part] = torch.where(better, value, self.value[part])
        self.index[part] = torch.where(better, index, self.index[part])

    def update_second(self, part: slice, value: Tensor, second: Tensor) -> None:
        """The tile's second competes, and whichever of the two best loses. To be called before `update`."""
        loser = torch.where(value > self.value[part], self.value[part], value)
        self.second[part] = self.second[part].fmax(loser).fmax(second)


@torch.no_grad()
def _search(
    descriptors0: Tensor, descriptors1: Tensor, *, block: int | None, both: bool, seconds: int = 0
) -> tuple[_Best, _Best]:
    """The best for set 0 and, with `both`, for set 1. The second too: 0 of neither, 1 of set 0, 2 of both."""
    _check(descriptors0, descriptors1, block)
    best0 = _Best.none_yet(len(descriptors0), descriptors0, seconds=seconds > 0)
    best1 = _Best.none_yet(len(descriptors1) if both else 0, descriptors0, seconds=seconds > 1)
    kind = descriptors0.device.type
    rows_per_tile, columns_per_tile = (block, block) if block else _tile(kind, len(descriptors1))
    update = _update_native if kind == "cpu" and load_extension().serves(kind) else _update_reference
    descriptors0, descriptors1 = descriptors0.contiguous(), descriptors1.contiguous()
    for rows in _slices(len(descriptors0), rows_per_tile):
        for columns in _slices(len(descriptors1), columns_per_tile):
            tile = matmul_nt(descriptors0[rows], descriptors1[columns])
            update(tile, rows, columns, best0, best1)
    return best0, best1


def _mutual(best0: _Best, best1: _Best) -> tuple[Tensor, Tensor]:
    """Index (K, 2) and similarity (K,) of the pairs in which each is the other's best."""
    rows = torch.arange(len(best0.index), device=best0.index.device)
    if len(rows) == 0 or len(best1.index) == 0:
        return rows.new_empty((0, 2)), best0.value.new_empty(0)
    mutual = best1.index[best0.index] == rows
    return torch.stack([rows[mutual], best0.index[mutual]], dim=1), best0.value[mutual]


def _tile(kind: str, columns: int) -> tuple[int, int]:
    """Rows and columns of a tile, by what measured fastest for the kind of device and the number of columns."""
    if kind != "cpu":
        return _DEFAULT_TILE
    return _WIDE_CPU_TILE if columns >= _WIDE_FROM else _CPU_TILE


def _slices(count: int, size: int) -> Iterator[slice]:
    """Ranges of nearly equal length, at most `size` each: a thin last tile would waste a whole pass."""
    tiles = max(1, -(-count // size))
    for tile in range(tiles if count else 0):
        yield slice(count * tile // tiles, count * (tile + 1) // tiles)


def _update_native(tile: Tensor, rows: slice, columns: slice, best0: _Best, best1: _Best) -> None:
    torch.ops.matchlib_native.nearest_update(
        *(tile, rows.start, columns.start),
        *(best0.value, best0.index, best0.second),
        *(best1.value, best1.index, best1.second),
    )


def _update_reference(tile: Tensor, rows: slice, columns: slice, best0: _Best, best1: _Best) -> None:
    value, index = _row_maxima(tile)
    if best0.has_second:
        row = torch.arange(len(tile), device=tile.device)
        best0.update_second(rows, value, _maxima_beside(tile, row, index, dim=1))
    best0.update(rows, value, index + columns.start)
    if len(best1.value):
        _update_columns(best1, columns, tile, rows.start)


def _row_maxima(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value of each row and the first column that has it."""
    if tile.device.type != "cpu":
        value, index = tile.max(dim=1)  # documented to give the first maximum
        return value, index
    # NumPy's argmax runs along rows with SIMD and also gives the first maximum: ten times
    # faster than torch's.
    index = torch.from_numpy(tile.numpy().argmax(axis=1))
    return tile.gather(1, index[:, None])[:, 0], index


def _update_columns(best: _Best, columns: slice, tile: Tensor, first_row: int) -> None:
    """Let the tile's columns compete with what the tiles above gave."""
    if tile.device.type != "cpu":
        value, index = tile.max(dim=0)
        if best.has_second:
            column = torch.arange(tile.shape[1], device=tile.device)
            best.update_second(columns, value, _maxima_beside(tile, index, column, dim=0))
        best.update(columns, value, index + first_row)
        return
    # Neither library has a fast argmax down the columns, but a maximum without index is cheap. So: maxima of
    # groups of rows, the first best group of the columns that improve, the first best row inside that group.
    group_maxima = _group_maxima(tile)
    value = group_maxima.amax(dim=0)
    better = (value > best.value[columns]).nonzero()[:, 0]
    group = torch.from_numpy(group_maxima[:, better].T.contiguous().numpy().argmax(axis=1))
    row = group[:, None] * _GROUP + torch.arange(_GROUP)
    inside = tile[row.clamp_max(len(tile) - 1), better[:, None]]
    row = group * _GROUP + torch.from_numpy(inside.numpy().argmax(axis=1))
    if best.has_second:  # the maxima of all other columns lose as they are
        best.update_second(columns, value, _maxima_beside(tile, row, better, dim=0))
    best.value[columns][better] = value[better]
    best.index[columns][better] = row + first_row


def _maxima_beside(tile: Tensor, row: Tensor, column: Tensor, *, dim: int) -> Tensor:
    """Largest values along `dim` without the places (row, column); the tile comes back as it was."""
    winners = tile[row, column]
    tile[row, column] = -torch.inf
    maxima = tile.amax(dim)
    tile[row, column] = winners
    return maxima


def _group_maxima(tile: Tensor) -> Tensor:
    """Column maxima of every 16 rows; the last group may be shorter."""
    whole = len(tile) // _GROUP * _GROUP
    maxima = [tile[:whole].view(-1, _GROUP, tile.shape[1]).amax(dim=1)] if whole else []
    if whole < len(tile):
        maxima.append(tile[whole:].amax(dim=0, keepdim=True))
    return torch.cat(maxima)


def _check(descriptors0: Tensor, descriptors1: Tensor, block: int | None) -> None:
    width = check_shape("descriptors0", descriptors0, "N D")["D"]
    check_shape("descriptors1", descriptors1, f"M {width}")
    if block is not None and block < 1:
        raise ShapeError(f"block: expected at least 1, got {block}")
    if descriptors0.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"descriptors0: expected float32 or float64, got {descriptors0.dtype}")
    if (descriptors1.dtype, descriptors1.device) != (descriptors0.dtype, descriptors0.device):
        raise ShapeError(
            f"descriptors1: expected {descriptors0.dtype} on {descriptors0.device} like descriptors0, "
            f"got {descriptors1.dtype} on {descriptors1.device}"
        )
    for name, descriptors in (("descriptors0", descriptors0), ("descriptors1", descriptors1)):
        # The extremes are not finite if any value is not, and cost a third of testing every value.
        if descriptors.numel() and not all(torch.isfinite(extreme) for extreme in descriptors.aminmax()):
            raise ShapeError(
                f"{name}: expected finite values, got NaN or infinity; was the network's output checked?"
            )
