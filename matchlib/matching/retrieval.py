"""Which images show the same place: one vector per image from the local features of any features file, and the nearest.

VLAD (Jégou et al., "Aggregating local descriptors into a compact image representation", CVPR 2010) with
intra-normalisation (Arandjelović & Zisserman, "All about VLAD", CVPR 2013): each keypoint adds the residual of its
descriptor to the nearest word of a codebook, the sum of each word is scaled to unit length, then the whole vector.

It needs no training data beside the images and stands in for the vocabulary trees of the benchmarks, but is no match
for learned global descriptors (NetVLAD and later): figures that rest on it do not compare with published ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.errors import DataError, requirement
from matchlib.features.store import FeatureReader
from matchlib.matching.config import VladConfig
from matchlib.matching.pair_lists import Pair
from matchlib.randomness import generator_for

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
_BLOCK = 256  # queries whose similarities are held at once
_EPSILON = 1e-12
_SHOWN = 5


def retrieve_pairs(
    features: Path,
    *,
    reference: Sequence[str],
    per_image: int,
    queries: Sequence[str] | None = None,
    config: VladConfig | None = None,
) -> tuple[Pair, ...]:
    """The `per_image` most similar reference images of each query, as pairs (query, reference), best first.

    features: a features file that has all these images
    queries:  None: the reference images themselves; of two images that choose each other the pair stands once
    An image is never paired with itself. Images without keypoints, and those that could not be read, are in no pair;
    they are counted in the log. Equal settings give equal pairs. Memory: one vector per reference image (32 KiB with 64
    words of 128 numbers), the sample, and the features of one image at a time.
    Raises DataError for images that the file lacks, for too few descriptors to learn the codebook from, and if no pair
    is found; ConfigError for `per_image` below 1.
    """
    config = config or VladConfig()
    requirement()(per_image >= 1, "per_image", "at least 1", per_image)
    reference = tuple(dict.fromkeys(reference))
    asked = reference if queries is None else tuple(dict.fromkeys(queries))
    place = {name: row for row, name in enumerate(reference)}
    pairs: dict[frozenset[str], Pair] = {}
    with FeatureReader(features) as reader:
        codebook = learn_codebook(reader, reference, config)
        reference_RV = describe_images(reader, reference, codebook, config)
        for start in range(0, len(asked), _BLOCK):
            names = asked[start : start + _BLOCK]
            if queries is None:
                vectors = reference_RV[start : start + _BLOCK]
            else:
                vectors = describe_images(reader, names, codebook, config)
            own = np.array([place.get(name, -1) for name in names], dtype=np.int64)
            found = most_similar(vectors, reference_RV, per_image, own=own)
            for name, rows in zip(names, found, strict=True):
                for pair in ((name, reference[row]) for row in rows):
                    pairs.setdefault(frozenset(pair), pair)
    if not pairs:
        raise DataError(
            f"{features}: none of {len(asked)} images has another one to be paired with; expected keypoints in both"
        )
    logger.info("%s: %d pairs retrieved for %d images", features, len(pairs), len(asked))
    return tuple(pairs.values())


# ---------------------------------------------------------------- codebook
def learn_codebook(reader: FeatureReader, names: Sequence[str], config: VladConfig) -> Float32:
    """(clusters, D) float32 centres of k-means over a sample of the descriptors of these images.

    Every image brings the same number of descriptors, drawn by seed and name; where there are more images than
    descriptors to sample, some images bring none. Raises DataError for fewer descriptors than clusters.
    """
    chosen = list(names)
    if len(chosen) > config.sample:
        rows = generator_for(config.seed, "retrieval", "images").permutation(len(chosen))[: config.sample]
        chosen = [chosen[row] for row in sorted(rows.tolist())]
    share = -(-config.sample // max(len(chosen), 1))
    drawn = []
    for name, descriptors in _described(reader, chosen, config.max_keypoints):
        if len(descriptors):
            order = generator_for(config.seed, "retrieval", name).permutation(len(descriptors))
            drawn.append(descriptors[order[:share]])
    found = sum(map(len, drawn))
    if found < config.clusters:
        raise DataError(
            f"{reader.path}: expected at least {config.clusters} descriptors (vlad.clusters) to learn the codebook "
            f"from, got {found} of {len(chosen)} images; are the images featureless? Else set fewer clusters"
        )
    return _k_means(np.concatenate(drawn), config)


def _k_means(sample_ND: Float32, config: VladConfig) -> Float32:
    rng = generator_for(config.seed, "retrieval", "centres")
    first = sample_ND[rng.choice(len(sample_ND), config.clusters, replace=False)]
    # With the first labels given, OpenCV draws nothing: its random generator is global.
    labels = _nearest_word(sample_ND, first).astype(np.int32)
    stop = (cv2.TERM_CRITERIA_MAX_ITER | cv2.TERM_CRITERIA_EPS, config.iterations, 1e-6)
    _, _, centres = cv2.kmeans(
        sample_ND, config.clusters, labels, stop, 1, cv2.KMEANS_USE_INITIAL_LABELS, None
    )
    return np.asarray(centres, dtype=np.float32)


def _nearest_word(descriptors_ND: Float32, codebook_KD: Float32) -> Int64:
    """Index of the nearest centre by Euclidean distance, (N,); of equal ones the first."""
    half_square = 0.5 * (codebook_KD**2).sum(axis=1)
    return np.asarray((descriptors_ND @ codebook_KD.T - half_square).argmax(axis=1), dtype=np.int64)


# ---------------------------------------------------------------- vectors
def vlad(descriptors_ND: Float32, codebook_KD: Float32) -> Float32:
    """The vector of one image, (K * D,) float32 of unit length; zeros for an image without descriptors (N = 0)."""
    sums = np.zeros_like(codebook_KD)
    if len(descriptors_ND):
        word = _nearest_word(descriptors_ND, codebook_KD)
        is_word = (word == np.arange(len(codebook_KD))[:, None]).astype(np.float32)  # (K, N)
        sums = is_word @ descriptors_ND - is_word.sum(axis=1, keepdims=True) * codebook_KD
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), _EPSILON)
    vector = sums.reshape(-1)
    return np.asarray(vector / max(float(np.linalg.norm(vector)), _EPSILON), dtype=np.float32)


def describe_images(
    reader: FeatureReader, names: Sequence[str], codebook: Float32, config: VladConfig
) -> Float32:
    """(R, K * D) float32: `vlad` of each image; zeros, and a line in the log, for images without keypoints."""
    vectors = np.zeros((len(names), codebook.size), np.float32)
    empty = []
    for row, (name, descriptors) in enumerate(_described(reader, names, config.max_keypoints)):
        if len(descriptors):
            vectors[row] = vlad(descriptors, codebook)
        else:
            empty.append(name)
    if empty:
        logger.warning(
            "%s: %d of %d images have no keypoints and are in no pair: %s",
            reader.path,
            len(empty),
            len(names),
            ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else ""),
        )
    return vectors


def _described(
    reader: FeatureReader, names: Sequence[str], max_keypoints: int | None
) -> Iterator[tuple[str, Float32]]:
    """Descriptors of each image in turn, (N, D); none, (0, 0), for images that could not be read at extraction."""
    for name in names:
        if name in reader.unreadable:
            yield name, np.zeros((0, 0), np.float32)
            continue
        found = reader.read(name)
        yield name, (found if max_keypoints is None else found.top(max_keypoints)).descriptors


# ---------------------------------------------------------------- search
def most_similar(query_QV: Float32, reference_RV: Float32, count: int, *, own: Int64) -> list[Int64]:
    """Rows of the `count` reference vectors of largest dot product with each query, best first; equal ones ascend.

    own: (Q,) int64, the row of the query itself among the reference vectors, which is left out; -1 where it has none
    Vectors of zeros find nothing and are not found, so an entry may be shorter than `count`.
    """
    similarity = query_QV @ reference_RV.T
    similarity[:, ~reference_RV.any(axis=1)] = -np.inf
    similarity[~query_QV.any(axis=1)] = -np.inf
    inside = np.flatnonzero(own >= 0)
    similarity[inside, own[inside]] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return [
        rows[np.isfinite(values[rows])].astype(np.int64)
        for rows, values in zip(order, similarity, strict=True)
    ]
