"""The matches of a pair that a relative-pose protocol uses: what is estimated from, and what is drawn in reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from matchlib.datasets.pose_pairs import PosePair
from matchlib.errors import DataError
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.features.types import Features, Float32
from matchlib.matching.mutual_nearest import match_mutual_nearest
from matchlib.matching.types import Matches


class MatchSource(Protocol):
    """Finished matches: `matching.store.MatchReader`, or whatever answers like it.

    features: digest of the features file that they index into, "" if unknown; settings: of the matcher
    """

    features: str
    settings: Mapping[str, Any]

    @property
    def digest(self) -> str: ...

    def read(self, name0: str, name1: str) -> Matches: ...


@dataclass(frozen=True, slots=True)
class Matching:
    """What a protocol says about matching; equal ones share their matches."""

    max_keypoints: int | None
    ratio: float | None

    @classmethod
    def of(cls, protocol: PoseProtocol) -> Matching:
        return cls(protocol.max_keypoints, protocol.ratio)


@dataclass(frozen=True, slots=True)
class MatchedPair:
    """Matches between the features of two images, as indices into them."""

    features0: Features
    features1: Features
    matches: Matches

    @property
    def keypoints(self) -> tuple[Float32, Float32]:
        """Positions of the matches in both images, (M, 2) each, in pixels of the original images."""
        index = self.matches.index
        return self.features0.keypoints[index[:, 0]], self.features1.keypoints[index[:, 1]]

    def limited(self, protocol: PoseProtocol) -> MatchedPair:
        """Those of the matches that the protocol uses."""
        if protocol.max_matches is None:
            return self
        return replace(self, matches=self.matches.top(protocol.max_matches))


def match_pair(
    pair: PosePair,
    views: tuple[Features, Features],
    matching: Matching,
    *,
    source: MatchSource | None = None,
    device: str = "cpu",
) -> MatchedPair:
    """Matches of a pair, before a protocol limits their number (`MatchedPair.limited`).

    views: features of both images. source: use its matches instead of matching here.
    device: where descriptors are compared. Raises DataError for given matches of other features.
    """
    features0, features1 = views
    if source is not None:
        found = source.read(pair.name0, pair.name1)
        counts = np.array([len(features0), len(features1)])
        if len(found) and (found.index.min() < 0 or (found.index.max(axis=0) >= counts).any()):
            raise DataError(
                f"matches of {pair.name0} and {pair.name1}: an index lies beyond the {counts[0]} and {counts[1]} "
                f"keypoints; they were made from other features, match again"
            )
        return MatchedPair(features0, features1, found)
    if matching.max_keypoints is not None:
        features0, features1 = features0.top(matching.max_keypoints), features1.top(matching.max_keypoints)
    return MatchedPair(
        features0, features1, match_mutual_nearest(features0, features1, device, ratio=matching.ratio)
    )
