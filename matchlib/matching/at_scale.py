"""Match the features of many pairs of images: one resumable job per shard of a pair list."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.features.store import FeatureReader
from matchlib.matching.config import MatcherConfig
from matchlib.matching.feed import FeatureFeed, FeatureSource, LoadedImage
from matchlib.matching.matcher import match_descriptors
from matchlib.matching.order import Int64, number_images, plan_shard
from matchlib.matching.pair_lists import Pair, check_pairs, read_pair_list
from matchlib.matching.store import MatchHeader, PairMatches
from matchlib.matching.types import Matches
from matchlib.matching.writer import PART_SECONDS, MatchWriter

_log = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30
_LOG_SECONDS = 60.0
_NAMED = 5


def match_shard(
    features: Path,
    pairs: Path,
    out: Path,
    *,
    config: MatcherConfig | None = None,
    shard: int = 0,
    shards: int = 1,
    device: str = "cpu",
    cache_bytes: int = CACHE_BYTES,
    show_progress: bool = True,
) -> None:
    """Match shard `shard` (from 0) of the pair list `pairs` into the folder `out` (read it with `MatchReader`).

    features: a features file, ours or hloc's. See `match_pairs` for the rest.
    """
    listed = read_pair_list(pairs)
    if listed.duplicates or listed.selves:
        _log.info(
            "%s: %d lines, %d of them repeat a pair and %d pair an image with itself: %d pairs",
            *(pairs, listed.lines, listed.duplicates, listed.selves, len(listed.pairs)),
        )
    with FeatureReader(features) as source:
        missing = check_pairs(listed.pairs, source.names)
        if missing:
            raise DataError(
                f"{features}: no features of {len(missing)} images of {pairs}: {_some(missing)}; extract them (names "
                f"are relative to one image folder), or take their pairs out of the list"
            )
        match_pairs(
            source,
            listed.pairs,
            out,
            config=config,
            shard=shard,
            shards=shards,
            device=device,
            cache_bytes=cache_bytes,
            show_progress=show_progress,
        )


def match_pairs(
    source: FeatureSource,
    pairs: Sequence[Pair],
    out: Path,
    *,
    config: MatcherConfig | None = None,
    shard: int = 0,
    shards: int = 1,
    device: str = "cpu",
    cache_bytes: int = CACHE_BYTES,
    part_seconds: float = PART_SECONDS,
    show_progress: bool = True,
) -> None:
    """Match one shard of `pairs`, each undirected pair once, into the folder `out`.

    Returns at once if `out` is finished for the same features, pairs and settings; otherwise goes on after the last
    part that an interrupted run sealed. The matches of a pair do not depend on shards, order or cache.

    cache_bytes: descriptors kept in the memory of `device`; see `FeatureFeed`
    Images without keypoints have no matches. Raises DataError, before any work, for images without features, for
    descriptors that cannot be compared, and while another process writes to `out`.
    """
    config = config or MatcherConfig()
    if cache_bytes < 0:
        raise ConfigError(f"cache_bytes: expected 0 or more, got {cache_bytes}")
    missing = check_pairs(pairs, source.names)
    if missing:
        raise DataError(f"{out}: no features of {len(missing)} images: {_some(missing)}; extract them first")
    names, pairs_P2 = number_images(pairs)
    order = plan_shard(pairs_P2, shard, shards)
    header = MatchHeader(features=source.digest, settings=asdict(config), shard=shard, shards=shards)
    with MatchWriter(out, header, [pairs[at] for at in order], part_seconds=part_seconds) as writer:
        if writer.is_finished:
            _log.info("%s: up to date", out)
            return
        feed = FeatureFeed(
            source,
            names,
            pairs_P2[order[writer.done :]],
            device=device,
            cache_bytes=cache_bytes,
            max_keypoints=config.max_keypoints,
        )
        _match_all(writer, feed, config, show_progress)
        writer.finish()


def _match_all(writer: MatchWriter, feed: FeatureFeed, config: MatcherConfig, show_progress: bool) -> None:
    first, total = writer.done, len(writer.pairs)
    started = last_line = time.monotonic()
    matched = 0
    # disable=None: a bar on a terminal, nothing in a log file.
    with tqdm(
        initial=first, total=total, desc="match", unit="pair", disable=None if show_progress else True
    ) as bar:
        for pair, (image0, image1) in zip(writer.pairs[first:], feed, strict=True):
            try:
                found = _match_one(image0, image1, config)
            except ShapeError as error:
                raise DataError(
                    f"{writer.folder}: images '{pair[0]}' and '{pair[1]}': {error}; extract them again"
                ) from error
            matched += len(found.matches)
            writer.add(found)
            bar.update()
            if time.monotonic() - last_line >= _LOG_SECONDS:
                last_line = time.monotonic()
                _log.info("%s", _progress_line(first, writer.done, total, last_line - started))
    seconds = time.monotonic() - started
    _log.info(
        "%s: %d pairs in %.0f s (%.1f per second), %d matches, %d images read%s",
        *(writer.folder, total - first, seconds, (total - first) / max(seconds, 1e-9), matched, feed.loads),
        f", {first} pairs kept from before" if first else "",
    )


def _match_one(image0: LoadedImage, image1: LoadedImage, config: MatcherConfig) -> PairMatches:
    if len(image0.descriptors) == 0 or len(image1.descriptors) == 0:  # whose width may be unknown, too
        matches = Matches(index=np.empty((0, 2), np.int64), scores=np.empty(0, np.float32))
    else:
        index, similarity = match_descriptors(image0.descriptors, image1.descriptors, config)
        matches = _in_file_order(index, similarity, image0, image1)
    return PairMatches(matches=matches, count0=image0.count, count1=image1.count)


def _in_file_order(index: Tensor, similarity: Tensor, image0: LoadedImage, image1: LoadedImage) -> Matches:
    """Rows of the descriptors in memory become keypoints of the file. Rows ascend, so the order stays."""
    index_K2: Int64 = index.cpu().numpy()
    columns = [
        column if image.rows is None else image.rows[column]
        for column, image in zip(index_K2.T, (image0, image1), strict=True)
    ]
    return Matches(index=np.stack(columns, axis=1), scores=similarity.float().cpu().numpy())


def _progress_line(first: int, done: int, total: int, seconds: float) -> str:
    rate = (done - first) / max(seconds, 1e-9)
    minutes = (total - done) / max(rate, 1e-9) / 60
    return f"matched {done} of {total} pairs, {rate:.2f} per second, {minutes:.0f} minutes left"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
