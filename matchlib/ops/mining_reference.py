"""Hardest-negative mining in plain PyTorch: the meaning of `matchlib.ops.mining`, blocked, for every device.

Products are taken tile by tile and never stored as a whole. What lies in a query's discs is written over in the
tile, cell by cell: a disc has some dozen cells, a mask of coordinates would have as many as there are scores
and costs more than the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from matchlib.ops.matmul import matmul_nt

_ROWS, _COLUMNS = (
    1024,
    2400,
)  # a tile of 10 MB: stays in the last cache, and thin ones waste the library's start
_DISC_CELLS = 1 << 21  # most disc cells that are listed at a time
_EXACT_PAIRS = 1 << 12  # pairs compared exactly at a time
_MOST_HITS = 1 << 17  # pairs that are kept for comparison before it is made
_LANES = 8
_TINY_LENGTH, _TINY_ERROR = 1e-18, 1e-30  # what underflow may have taken from lengths and products


def hardest_cells_reference(
    queries: Tensor,
    candidates: Tensor,
    cells: Tensor,
    first_cell: Tensor,
    centres: Tensor,
    radii_sq: Tensor,
) -> tuple[Tensor, Tensor]:
    """Best cell of each query among its image's `cells` outside of its discs.

    queries:    (B, N, D) float32 or float64, finite; candidates: (B, D, H, W), same dtype.
    cells:      (sum of M_b,) int64, linear indices y * W + x, ascending within an image; image b's are
                cells[first_cell[b] : first_cell[b + 1]].
    first_cell: (B + 1,) int64.
    centres:    (B, N, E, 2) float64, (x, y) in cells; at infinity: a disc that excludes nothing.
    radii_sq:   (E,) float64.
    Returns `index` (B, N) int64, -1 where nothing is left, and `similarity` (B, N) float64, -inf there. Which cell
    is best is the rule of `matchlib.ops.mining`.
    """
    batch, count, _ = queries.shape
    index = cells.new_full((batch, count), -1)
    similarity = queries.new_full((batch, count), -torch.inf, dtype=torch.float64)
    borders = first_cell.tolist()
    disc_boxes = sum((2 * _box(radius_sq) + 1) ** 2 for radius_sq in radii_sq.tolist())
    rows_per_tile = max(1, min(_ROWS, _DISC_CELLS // max(1, disc_boxes)))
    # Mixed precision would make the products coarser than their bound says.
    with torch.autocast(queries.device.type, enabled=False):
        for image in range(batch):
            own = cells[borders[image] : borders[image + 1]]
            for rows in slices(count if len(own) else 0, rows_per_tile):
                discs = _disc_cells(centres[image, rows], radii_sq, candidates.shape[2], candidates.shape[3])
                found = _search_image(queries[image, rows], candidates[image].flatten(1), own, *discs)
                index[image, rows][found.row] = found.cell
                similarity[image, rows][found.row] = found.score
    return index, similarity


def exact_scores(queries_PD: Tensor, candidates_PD: Tensor) -> Tensor:
    """Dot products (P,) float64 of the rows, in the order of additions that all back ends share.

    Eight interleaved sums, element d going to sum d modulo 8, folded in halves. Products of float32 are exact
    in float64.
    """
    products = queries_PD.double() * candidates_PD.double()
    products = torch.nn.functional.pad(products, (0, -products.shape[1] % _LANES))
    sums = products.new_zeros(len(products), _LANES)
    for part in products.view(len(products), products.shape[1] // _LANES, _LANES).unbind(1):
        sums = sums + part
    while sums.shape[1] > 1:
        left, right = sums.chunk(2, dim=1)
        sums = left + right
    return sums[:, 0]


def score_error(length: Tensor, depth: int, dtype: torch.dtype) -> Tensor:
    """Bound on the rounding error of dot products with vectors of unit length, in the dtype's arithmetic.

    length: Euclidean lengths, any shape; depth: number of elements. For any order of additions, with or without
    fused ones, the error is at most D u / (1 - D u) |q| |c| (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., eq. 3.5); the few units added cover the arithmetic on the bound itself, the tiny number
    lengths that underflow.
    """
    unit = torch.finfo(dtype).eps / 2
    return 1.01 * (depth + 8) * unit / (1 - depth * unit) * (length + _TINY_LENGTH)


# ---------------------------------------------------------------- one image
@dataclass(frozen=True, slots=True)
class _Pairs:
    """Queries and candidate cells: (P,) int64 each, and a score (P,)."""

    row: Tensor
    cell: Tensor
    score: Tensor

    def at(self, which: Tensor) -> _Pairs:
        return _Pairs(self.row[which], self.cell[which], self.score[which])


def _search_image(
    queries_ND: Tensor, map_DM: Tensor, cells: Tensor, disc_row: Tensor, disc_cell: Tensor
) -> _Pairs:
    """The best of `cells` of each query that has any; the score is the exact one."""
    disc_position = torch.searchsorted(cells, disc_cell).clamp_max(len(cells) - 1)
    is_candidate = cells[disc_position] == disc_cell
    disc_row, disc_position = disc_row[is_candidate], disc_position[is_candidate]
    dtype = _score_dtype(queries_ND)
    reach = score_error(torch.linalg.vector_norm(queries_ND, dim=1).to(dtype), queries_ND.shape[1], dtype)
    floor = reach.new_full((len(queries_ND),), -torch.inf)  # no best score is lower than this
    hits: list[_Pairs] = []  # what may still be the best; the score is the highest that the true one can be
    for columns in slices(len(cells), _COLUMNS):
        block = _block(map_DM, cells[columns])
        tile = matmul_nt(queries_ND.to(dtype), block.to(dtype))
        inside = (disc_position >= columns.start) & (disc_position < columns.stop)
        tile[disc_row[inside], disc_position[inside] - columns.start] = -torch.inf
        length = torch.linalg.vector_norm(block, dim=1).amax().to(dtype)
        error = reach * (length + _TINY_LENGTH) + _TINY_ERROR
        floor = torch.maximum(floor, tile.amax(dim=1) - error)
        # The clamp: nothing that is excluded reaches a floor that is still -inf.
        row, column = (tile >= (floor - error).clamp_min(torch.finfo(dtype).min)[:, None]).nonzero(
            as_tuple=True
        )
        hits.append(_Pairs(row, cells[columns][column], tile[row, column] + error[row]))
        if sum(len(hit.row) for hit in hits) > _MOST_HITS:
            hits = [_best(queries_ND, map_DM, hits, floor)]
    return _best(queries_ND, map_DM, hits, floor)


def _best(queries_ND: Tensor, map_DM: Tensor, hits: list[_Pairs], floor: Tensor) -> _Pairs:
    """One pair for each query that has any: the largest exact score, the lowest cell among equals."""
    pairs = _Pairs(
        torch.cat([hit.row for hit in hits]),
        torch.cat([hit.cell for hit in hits]),
        torch.cat([hit.score.double() for hit in hits]),
    )
    pairs = pairs.at(pairs.score >= floor[pairs.row])
    for part in slices(len(pairs.row), _EXACT_PAIRS):
        pairs.score[part] = exact_scores(queries_ND[pairs.row[part]], map_DM[:, pairs.cell[part]].T)
    order = pairs.cell.argsort(stable=True)
    order = order[pairs.score[order].argsort(descending=True, stable=True)]
    pairs = pairs.at(order[pairs.row[order].argsort(stable=True)])
    is_first = torch.ones_like(pairs.row, dtype=torch.bool)
    is_first[1:] = pairs.row[1:] != pairs.row[:-1]
    return pairs.at(is_first)


def _disc_cells(centres_NE2: Tensor, radii_sq: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which cells lie in discs: query (P,) and linear index (P,), a cell once for each of its discs."""
    nothing = torch.empty(0, dtype=torch.int64, device=centres_NE2.device)
    rows, cells = [nothing], [nothing]
    for disc, radius_sq in enumerate(radii_sq.tolist()):
        box = _box(radius_sq)
        offset = torch.arange(-box, box + 1, device=centres_NE2.device)
        centre_x, centre_y = centres_NE2[:, disc].unbind(1)
        # The clamp keeps centres far away, even at infinity, within the integers, and outside of the map.
        x = centre_x.floor().clamp(-box - 2, width + box + 2).long()[:, None, None] + offset
        y = centre_y.floor().clamp(-box - 2, height + box + 2).long()[:, None, None] + offset[:, None]
        distance_sq = (x - centre_x[:, None, None]).square() + (y - centre_y[:, None, None]).square()
        inside = (distance_sq < radius_sq) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        rows.append(inside.nonzero()[:, 0])
        cells.append((y * width + x)[inside])
    return torch.cat(rows), torch.cat(cells)


def _box(radius_sq: float) -> int:
    """How far around the floor of a centre the cells of its disc reach."""
    return int(radius_sq**0.5) + 1


def _block(map_DM: Tensor, cells: Tensor) -> Tensor:
    """Descriptors (m, D) of the cells, contiguous."""
    if int(cells[-1] - cells[0]) == len(cells) - 1:  # ascending, so this is a run without gaps
        return map_DM[:, cells[0] : cells[-1] + 1].T.contiguous()
    return map_DM[:, cells].T.contiguous()


def _score_dtype(queries: Tensor) -> torch.dtype:
    """Type of the preselecting products; float64 where the program lets float32 ones be less than that."""
    is_full_float32 = queries.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if queries.dtype == torch.float32 and is_full_float32 else torch.float64


def slices(count: int, size: int) -> Iterator[slice]:
    """Ranges of nearly equal length, at most `size` each."""
    tiles = -(-count // size)
    for tile in range(tiles):
        yield slice(count * tile // tiles, count * (tile + 1) // tiles)
