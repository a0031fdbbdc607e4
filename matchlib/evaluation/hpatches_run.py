"""The HPatches evaluation: from a features file and the dataset folder to an `HPatchesResult`."""

from __future__ import annotations

import logging
from pathlib import Path

from tqdm import tqdm

from matchlib.evaluation.config import THRESHOLDS_PX, HPatchesProtocol
from matchlib.evaluation.covisibility import covisible_scores
from matchlib.evaluation.homography import pair_corner_error
from matchlib.evaluation.hpatches import HPatchesResult, PairResult
from matchlib.evaluation.hpatches_data import EvaluationSequence, read_sequences, select_sequences
from matchlib.evaluation.metrics import Float, matching_accuracy, reprojection_errors
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features
from matchlib.matching.mutual_nearest import match_mutual_nearest

logger = logging.getLogger(__name__)


def evaluate_hpatches(
    features: Path,
    root: Path,
    *,
    protocol: HPatchesProtocol | None = None,
    label: str | None = None,
    device: str = "cpu",
    show_progress: bool = True,
) -> HPatchesResult:
    """Evaluate one features file (ours or hloc's, keys `<sequence>/<k>.ppm`) on the HPatches folder `root`.

    label: name in tables; by default the method that the features file states, or the file's name.
    device: where descriptors are compared. Images are not opened, but their digests are compared with those
    the features were taken from. Raises DataError for an incomplete sequence set, a sequence that lacks an
    image or a homography, an image without features, or features of another version of an image.
    """
    protocol = protocol or HPatchesProtocol()
    names = select_sequences(root, protocol.sequences)
    pairs: list[PairResult] = []
    image_features: list[int] = []
    with FeatureReader(features) as reader:
        rows = tqdm(
            read_sequences(root, names, reader),
            total=len(names),
            desc="hpatches",
            unit="sequence",
            disable=None if show_progress else True,
        )
        for sequence in rows:
            limited = _limited(sequence, protocol.max_keypoints)
            image_features += [len(item) for item in limited.features]
            pairs += [_evaluate_pair(limited.name, *pair, protocol, device) for pair in limited.pairs()]
        header = reader.header
        result = HPatchesResult(
            label=label or (header.method if header is not None else features.stem),
            protocol=protocol,
            features_digest=reader.digest,
            image_features=tuple(image_features),
            pairs=tuple(pairs),
        )
    _log(result)
    return result


def _limited(sequence: EvaluationSequence, max_keypoints: int | None) -> EvaluationSequence:
    if max_keypoints is None:
        return sequence
    return EvaluationSequence(
        name=sequence.name,
        features=tuple(item.top(max_keypoints) for item in sequence.features),
        homographies=sequence.homographies,
    )


def _evaluate_pair(
    name: str,
    k: int,
    features0: Features,
    features1: Features,
    H_0to1: Float,
    protocol: HPatchesProtocol,
    device: str,
) -> PairResult:
    matches = match_mutual_nearest(features0, features1, device, ratio=protocol.ratio)
    index0, index1 = matches.index.T
    errors = reprojection_errors(features0.keypoints[index0], features1.keypoints[index1], H_0to1)
    scores = covisible_scores(
        features0, features1, matches, H_0to1, threshold_px=protocol.covisible_threshold_px
    )
    return PairResult(
        sequence=name,
        k=k,
        features0=len(features0),
        features1=len(features1),
        matches=len(matches),
        accuracy=tuple(matching_accuracy(errors, THRESHOLDS_PX).tolist()),
        corner_error_px=pair_corner_error(features0, features1, matches, H_0to1, protocol.homography),
        repeatability=scores.repeatability,
        matching_score=scores.matching_score,
    )


def _log(result: HPatchesResult) -> None:
    without = [f"{pair.sequence} 1-{pair.k}" for pair in result.pairs if pair.matches == 0]
    empty = sum(1 for count in result.image_features if count == 0)
    logger.info(
        "%s on HPatches: %d sequences, %d pairs, MMA@3 %.4f, %.1f keypoints per image, %.1f matches per pair",
        result.label,
        len(result.sequences_of("all")),
        len(result.pairs),
        result.mma()[2],
        result.mean_features(),
        result.mean_matches(),
    )
    if without:
        logger.warning(
            "%s: %d pairs without matches count as 0 (%d images have no keypoints): %s",
            result.label,
            len(without),
            empty,
            ", ".join(without[:10]) + (", ..." if len(without) > 10 else ""),
        )
