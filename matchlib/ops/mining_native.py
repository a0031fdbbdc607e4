"""Hardest-negative mining as the operator `matchlib::hardest_cells`.

Its kernels are in the extension (`csrc/mining.cpp`, `csrc/mining.cu`); where the extension has none for a
tensor's device or dtype, the operator computes the reference, which gives the same cells. Thin on purpose:
`matchlib.ops.mining` checks the arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.ops.extension import load_extension
from matchlib.ops.mining_reference import hardest_cells_reference, score_error

_SCHEMA = (
    "(Tensor queries, Tensor candidates, Tensor cells, Tensor first_cell, Tensor centres, Tensor radii_sq) "
    "-> (Tensor, Tensor)"
)


def _hardest_cells(
    queries: Tensor,
    candidates: Tensor,
    cells: Tensor,
    first_cell: Tensor,
    centres: Tensor,
    radii_sq: Tensor,
) -> tuple[Tensor, Tensor]:
    if queries.dtype != torch.float32 or not load_extension().serves(queries.device.type):
        return hardest_cells_reference(queries, candidates, cells, first_cell, centres, radii_sq)
    queries = queries.contiguous()
    index = cells.new_empty(queries.shape[:2])
    similarity = queries.new_empty(queries.shape[:2], dtype=torch.float64)
    on_cuda = queries.device.type == "cuda"
    torch.ops.matchlib_native.hardest_cells(
        *(queries, _with_rows_in_sequence(candidates), cells, first_cell, centres.contiguous(), radii_sq),
        score_error(torch.linalg.vector_norm(queries, dim=2), queries.shape[2], torch.float32),
        torch.cuda.current_stream(queries.device).cuda_stream if on_cuda else 0,
        *(index, similarity),
    )
    return index, similarity


def _with_rows_in_sequence(candidates: Tensor) -> Tensor:
    """The map as it is if a cell's place in memory is a multiple of its linear index, else a copy."""
    height, width = candidates.shape[2:]
    if height == 1 or candidates.stride(2) == width * candidates.stride(3):
        return candidates
    return candidates.contiguous()


# ---------------------------------------------------------------- registration
hardest_cells_op = torch.library.custom_op(
    "matchlib::hardest_cells", _hardest_cells, mutates_args=(), schema=_SCHEMA
)


@hardest_cells_op.register_fake
def _fake(
    queries: Tensor,
    candidates: Tensor,
    cells: Tensor,
    first_cell: Tensor,
    centres: Tensor,
    radii_sq: Tensor,
) -> tuple[Tensor, Tensor]:
    shape = queries.shape[:2]
    return cells.new_empty(shape), queries.new_empty(shape, dtype=torch.float64)
