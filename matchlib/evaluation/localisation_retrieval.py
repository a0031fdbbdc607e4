"""Query pairs where nobody ships any: reference images ranked by mutual matches of a few descriptors per image.

Plain, and without any knowledge of poses. It needs the features of all reference images, not only of those in pairs,
and is no match for learned global descriptors: figures that rest on it do not compare with published ones.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.datasets.aachen import AachenDataset
from matchlib.errors import DataError
from matchlib.features.store import FeatureReader
from matchlib.matching.pair_lists import write_pair_list

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
_BLOCK_VALUES = 1 << 24  # similarities held at once, 64 MiB


def retrieve_job(
    dataset: AachenDataset, features: Path, out: Path, *, per_query: int = 20, budget: int = 128
) -> int:
    """Write the `per_query` best reference images of each query, best first, as lines `query reference`.

    budget: descriptors per image, those of the highest score. Reference images without a single mutual match are not
    listed. Returns the number of pairs. Raises DataError for images without features, and if there is no pair at all.
    """
    queries, reference = sorted(dataset.query_cameras()), list(dataset.reference)
    with FeatureReader(features) as reader:
        described = np.stack([_strongest(reader, name, budget) for name in reference])
        pairs = []
        for query in queries:
            votes = mutual_votes(_strongest(reader, query, budget), described)
            best = np.argsort(-votes, kind="stable")[:per_query]
            pairs += [(query, reference[row]) for row in best if votes[row] > 0]
    if not pairs:
        raise DataError(
            f"{features}: no query has a match with a reference image; are the images featureless?"
        )
    write_pair_list(out, pairs)
    logger.info("%s: %d pairs of %d queries", out, len(pairs), len(queries))
    return len(pairs)


def mutual_votes(query_BD: Float32, reference_RBD: Float32) -> npt.NDArray[np.int64]:
    """Number of mutual nearest neighbours of a query with each of R images, (R,) int64.

    Descriptors of unit length, B per image; rows of zeros stand for descriptors that an image lacks, and never match.
    """
    is_real = np.abs(query_BD).sum(axis=1) > 0
    budget = len(query_BD)
    rows = np.arange(budget)
    votes: list[npt.NDArray[np.int64]] = []
    block = max(1, _BLOCK_VALUES // max(budget * budget, 1))
    for start in range(0, len(reference_RBD), block):
        part = reference_RBD[start : start + block]
        similarity = query_BD @ part.transpose(0, 2, 1)  # (r, B, B): query, reference
        nearest = similarity.argmax(axis=2)
        back = np.take_along_axis(similarity.argmax(axis=1), nearest, axis=1)
        reaches = np.take_along_axis(np.abs(part).sum(axis=2) > 0, nearest, axis=1)
        votes.append(((back == rows) & is_real & reaches).sum(axis=1))
    return np.concatenate(votes).astype(np.int64)


def _strongest(reader: FeatureReader, name: str, budget: int) -> Float32:
    """(budget, D): descriptors of the best keypoints, filled up with zeros."""
    described = reader.read(name).top(budget).descriptors
    filled = np.zeros((budget, described.shape[1]), np.float32)
    filled[: len(described)] = described
    return filled
