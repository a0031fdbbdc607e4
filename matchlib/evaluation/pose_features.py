"""The features that a relative-pose evaluation reads: which are missing, and a bounded cache of the others."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Literal

from matchlib.completion import digest_file
from matchlib.datasets.pose_pairs import PosePairSet
from matchlib.errors import DataError
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features

logger = logging.getLogger(__name__)

MissingImages = Literal["stop", "count"]


class FeatureCache:
    """Features of the images of a list, the latest kept up to a number of bytes.

    `read` raises DataError for features that come from another version of an image, where the image is there.
    """

    def __init__(self, reader: FeatureReader, pairs: PosePairSet, limit: int) -> None:
        self._reader, self._root, self._limit = reader, pairs.root, limit
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0
        self._checked: set[str] = set()

    def read(self, name: str) -> Features:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        if name not in self._checked:
            self._check_image(name)
        features = self._kept[name] = self._reader.read(name)
        self._bytes += _bytes_of(features)
        # Two images are always kept: the pair in hand.
        while self._bytes > self._limit and len(self._kept) > 2:
            self._bytes -= _bytes_of(self._kept.popitem(last=False)[1])
        return features

    def _check_image(self, name: str) -> None:
        path, stated = self._root / name, self._reader.image_digest(name)
        if stated and path.is_file() and digest_file(path) != stated:
            raise DataError(
                f"{self._reader.path}: the features of '{name}' come from another version of {path}; extract again"
            )
        self._checked.add(name)


def _bytes_of(features: Features) -> int:
    return features.keypoints.nbytes + features.scores.nbytes + features.descriptors.nbytes


def missing_images(features: FeatureReader, pairs: PosePairSet, missing: MissingImages) -> set[str]:
    """Images of the list without features, where they are to be counted. Raises DataError where they are not."""
    lacking = {name for name in pairs.image_names if name not in features or name in features.unreadable}
    if not lacking:
        return lacking
    named = ", ".join(sorted(lacking)[:5]) + (", ..." if len(lacking) > 5 else "")
    if missing == "stop" or len(lacking) == len(pairs.image_names):
        raise DataError(
            f"{features.path}: no features of {len(lacking)} of the {len(pairs.image_names)} images of {pairs.name}: "
            f"{named}; extract them, with names relative to {pairs.root}"
            + ("" if missing == "count" else ", or set missing: count, which lets their pairs fail")
        )
    logger.warning("%s: %d images without features, their pairs fail: %s", pairs.name, len(lacking), named)
    return lacking


def resize_of(features: FeatureReader) -> str:
    """What the features' images were resized to, from the settings that the file states."""
    settings = {} if features.header is None else features.header.settings
    stated = {key: settings[key] for key in ("resize_short_side", "resize_long_side") if key in settings}
    if not stated:
        return "unknown"
    sides = [
        f"{key.removeprefix('resize_').replace('_', ' ')} {side}" for key, side in stated.items() if side
    ]
    return ", ".join(sides) or "original size"
