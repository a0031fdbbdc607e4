"""Run an extractor over a set of images: decoding ahead, writing behind, resumable after any kill."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from matchlib.completion import digest_file, fingerprint
from matchlib.datasets.images import read_image
from matchlib.errors import DataError
from matchlib.features.config import ExtractionConfig
from matchlib.features.store import FeatureWriter, StoreHeader
from matchlib.features.types import Extractor, Features, Image
from matchlib.revisions import REVISIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionReport:
    """What an extraction did.

    images:     images with features in the file, of which `reused` come from an earlier run
    keypoints:  keypoints of the images extracted in this run
    unreadable: image -> reason
    digest:     content digest of the features file
    """

    images: int
    reused: int
    keypoints: int
    unreadable: Mapping[str, str]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """One image as it comes from a reading thread: pixels, or why there are none."""

    name: str
    digest: str = ""
    image: Image | None = None
    fault: str | None = None


def extract_features(
    root: Path,
    names: Sequence[str],
    *,
    extractor: Extractor,
    out: Path,
    config: ExtractionConfig | None = None,
    show_progress: bool = True,
) -> ExtractionReport:
    """Extract the features of `root/name` for every name into one HDF5 file (see `features.store`).

    A killed run goes on after the last part that it sealed (see `features.store`); an existing `out` of the
    same extractor and settings lends the features of images whose bytes have not changed. Keypoints are in
    pixels of the original image whatever `config` resizes. Raises DataError if there are no images, if too many
    are unreadable, or if another process writes to `out`.
    """
    config = config or ExtractionConfig()
    wanted = list(dict.fromkeys(names))
    if not wanted:
        raise DataError(f"{root}: no images to extract features from")
    unreadable: dict[str, str] = {}
    keypoints = 0
    with FeatureWriter(out, _header(extractor, config)) as writer:
        for name in set(writer.kept) - set(wanted):
            writer.drop(name)
        with _WriteBehind(writer, limit=config.prefetch) as sink:
            loaded_images = _load_ahead(root, wanted, writer.kept.copy(), config)
            for loaded in _with_progress(loaded_images, len(wanted), extractor.name, show_progress):
                if loaded.fault is not None:
                    unreadable[loaded.name] = loaded.fault
                    _stop_if_too_many(unreadable, len(wanted), root, config)
                elif loaded.image is not None:
                    features = _extract(extractor, loaded.name, loaded.image, config)
                    keypoints += len(features)
                    sink.add(loaded, features)
        for name in set(unreadable) & set(writer.kept):  # readable in an earlier run, broken since
            writer.drop(name)
        digest = writer.finish(unreadable)
    reused = len(wanted) - len(unreadable) - sink.written
    report = ExtractionReport(
        images=len(wanted) - len(unreadable),
        reused=reused,
        keypoints=keypoints,
        unreadable=unreadable,
        digest=digest,
    )
    _log(report, extractor, out)
    return report


def extract_image(extractor: Extractor, image: Image, config: ExtractionConfig | None = None) -> Features:
    """Features of one (H, W, 3) uint8 RGB image, resized first as `config` says (not at all by default).

    Keypoints come back in pixels of `image`: pixel centres map as x_image = (x_resized + 1/2) W / w - 1/2.
    """
    size = (image.shape[1], image.shape[0])
    extracted_size = (config or ExtractionConfig()).extraction_size(size)
    if extracted_size == size:
        return extractor.extract(image)
    # Averages over areas shrink without aliasing; enlarging, they would make blocks.
    interpolation = cv2.INTER_AREA if max(extracted_size) < max(size) else cv2.INTER_LINEAR
    resized = cv2.resize(image, extracted_size, interpolation=interpolation).astype(np.uint8, copy=False)
    features = extractor.extract(resized)
    ratio = np.array(size) / extracted_size
    keypoints = ((features.keypoints + 0.5) * ratio - 0.5).astype(np.float32)
    return replace(features, keypoints=keypoints, image_size=size)


def _header(extractor: Extractor, config: ExtractionConfig) -> StoreHeader:
    settings = {"extractor": extractor.fingerprint, "resize_short_side": config.resize_short_side}
    if config.resize_long_side is not None:  # stated only where set: files without it keep their fingerprint
        settings["resize_long_side"] = config.resize_long_side
    return StoreHeader(
        method=extractor.name,
        fingerprint=fingerprint(stage="features", revision=REVISIONS["features"], settings=settings),
        settings=settings,
    )


def _extract(extractor: Extractor, name: str, image: Image, config: ExtractionConfig) -> Features:
    try:
        return extract_image(extractor, image, config)
    except Exception as error:
        error.add_note(f"while extracting the features of {name}")
        raise


# ---------------------------------------------------------------- reading ahead
def _load(root: Path, name: str, kept_digest: str | None) -> _Loaded:
    path = root / name
    try:
        digest = digest_file(path)
        if digest == kept_digest:
            return _Loaded(name=name, digest=digest)
        return _Loaded(name=name, digest=digest, image=read_image(path))
    except (OSError, DataError) as error:
        return _Loaded(name=name, fault=str(error))


def _load_ahead(
    root: Path, names: Sequence[str], kept: Mapping[str, str], config: ExtractionConfig
) -> Iterator[_Loaded]:
    """The images in order, decoded by threads, at most `prefetch` of them waiting."""
    with ThreadPoolExecutor(config.threads, thread_name_prefix="read-image") as pool:
        waiting: deque[Future[_Loaded]] = deque()
        try:
            for name in names:
                waiting.append(pool.submit(_load, root, name, kept.get(name)))
                if len(waiting) > config.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _WriteBehind:
    """Hands features to one writing thread; the caller waits only when `limit` of them are pending."""

    def __init__(self, writer: FeatureWriter, *, limit: int) -> None:
        self.written = 0
        self._writer = writer
        self._limit = limit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write-features")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> _WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Also after an error: what was extracted so far is kept for the next run.
        self._pool.shutdown(wait=True)
        if kind is None:
            self._drain(0)

    def add(self, loaded: _Loaded, features: Features) -> None:
        """Queue one image; raises what an earlier write raised."""
        self._pending.append(self._pool.submit(self._write, loaded, features))
        self._drain(self._limit)
        self.written += 1

    def _write(self, loaded: _Loaded, features: Features) -> None:
        self._writer.add(loaded.name, features, image_digest=loaded.digest)

    def _drain(self, keep: int) -> None:
        while len(self._pending) > keep:
            self._pending.popleft().result()


# ---------------------------------------------------------------- messages
def _with_progress(items: Iterable[_Loaded], total: int, label: str, show: bool) -> Iterable[_Loaded]:
    # disable=None: a bar on a terminal, nothing in a log file.
    return tqdm(items, total=total, desc=f"extract {label}", unit="image", disable=None if show else True)


def _stop_if_too_many(
    unreadable: Mapping[str, str], total: int, root: Path, config: ExtractionConfig
) -> None:
    if len(unreadable) <= config.max_unreadable_share * total:
        return
    reasons = "; ".join(list(unreadable.values())[:5])
    raise DataError(
        f"{root}: {len(unreadable)} of {total} images are unreadable, more than max_unreadable_share = "
        f"{config.max_unreadable_share:g}: {reasons}; repair them, or raise the share to leave them out"
    )


def _log(report: ExtractionReport, extractor: Extractor, out: Path) -> None:
    logger.info(
        "%s: features of %d images by %s (%d reused), %d keypoints, %d images unreadable",
        out,
        report.images,
        extractor.name,
        report.reused,
        report.keypoints,
        len(report.unreadable),
    )
    for name, reason in report.unreadable.items():
        logger.warning("left out %s: %s", name, reason)
