"""Training pairs from plain photographs: two random views of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from matchlib.completion import digest_json
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError
from matchlib.photo_pairs.config import WarpConfig
from matchlib.photo_pairs.frame import fit_photo
from matchlib.photo_pairs.homographies import Float64, overlap_share, view_homographies
from matchlib.photo_pairs.labels import PseudoLabels, finished_shards
from matchlib.photo_pairs.photo_batch import PhotoBatch
from matchlib.randomness import generator_for
from matchlib.typed_yaml import dump_typed

_SMALLEST_SIDE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoSource:
    """Photographs of one dataset and how views are made of them.

    dataset: its name, for messages
    names:   paths of the photographs below `root`
    labels:  folder whose finished subfolders are shards of interest points, or None
    """

    dataset: str
    root: Path
    names: tuple[str, ...]
    warps: WarpConfig
    labels: Path | None = None


class HomographyPairs:
    """One pair per photograph of several sources, as the trainer's `PairSource`. Holds no open file.

    size:   (width, height) of the views
    digest: of names, file sizes, labels, settings and `size`: equal digests mean equal pairs
    Raises DataError if there is no photograph, one is missing, or one has no labels although its source has them;
    ConfigError if only some of the sources have labels, or for views below 16 pixels.
    """

    def __init__(self, sources: Sequence[PhotoSource], *, size: tuple[int, int]) -> None:
        if min(size) < _SMALLEST_SIDE:
            raise ConfigError(
                f"image_size: expected at least {_SMALLEST_SIDE} pixels, got {size[0]} x {size[1]}"
            )
        if len({source.labels is None for source in sources}) > 1:
            raise ConfigError("photographs: expected labels for all datasets or for none, got them for some")
        self._size = size
        self._sources = tuple(sources)
        self._ends = np.cumsum([len(source.names) for source in sources], dtype=np.int64)
        if len(self) == 0:
            raise DataError(f"no photograph in {len(sources)} datasets; expected at least one")
        self._labels = [_open_labels(source) for source in sources]
        self.digest = digest_json(
            [
                list(size),
                *(
                    _describe(source, labels)
                    for source, labels in zip(self._sources, self._labels, strict=True)
                ),
            ]
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def load(self, index: int, seed: int) -> PhotoBatch:
        """Pair `index` as a batch of one; `seed` decides its homographies and photometric changes.

        Raises DataError, naming the file, for a photograph that is unreadable or too small, and where no drawn pair of
        views overlaps enough.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        source, labels = self._sources[place], self._labels[place]
        name = source.names[index - (int(self._ends[place - 1]) if place else 0)]
        path = source.root / name
        photo = read_image(path)
        fit = fit_photo((photo.shape[1], photo.shape[0]), self._size, source.warps, str(path))
        H_0, H_1 = draw_views(self._size, seed, source.warps, str(path))
        points = None if labels is None else fit.points(labels.points(name)[:, :2])
        return PhotoBatch(
            photos=torch.from_numpy(fit.image(photo)).permute(2, 0, 1).contiguous()[None],
            H_photo_to_0=torch.from_numpy(H_0)[None],
            H_photo_to_1=torch.from_numpy(H_1)[None],
            labels=None if points is None else (torch.from_numpy(points),),
            warps=(source.warps,),
            seeds=(seed,),
            names=(f"{source.dataset}/{name}",),
        )


def draw_views(size: tuple[int, int], seed: int, config: WarpConfig, where: str) -> tuple[Float64, Float64]:
    """Homographies (3, 3), photo to view 0 and to view 1, whose views overlap enough; the first such draw.

    Raises DataError, beginning with `where`, if none of `config.attempts` draws does.
    """
    best = 0.0
    for attempt in range(config.attempts):
        H_0, H_1 = view_homographies(size, generator_for(seed, "homographies", attempt), config)
        share = overlap_share(H_0, H_1, size)
        if share >= config.min_valid_share:
            return H_0, H_1
        best = max(best, share)
    raise DataError(
        f"{where}: no valid overlap: in {config.attempts} draws at most {best:.0%} of view 0 can be seen in view 1, "
        f"expected {config.min_valid_share:.0%}; lower `min_valid_share` or the strength of the warps"
    )


def _open_labels(source: PhotoSource) -> PseudoLabels | None:
    if source.labels is None:
        return None
    labels = PseudoLabels(finished_shards(source.labels))
    missing = [name for name in source.names if name not in labels]
    if missing:
        raise DataError(
            f"{source.labels}: no labels for {len(missing)} of {len(source.names)} photographs of "
            f"{source.dataset}, the first is {missing[0]}; label the photographs again"
        )
    return labels


def _describe(source: PhotoSource, labels: PseudoLabels | None) -> list[object]:
    """What the pairs of a source depend on, as a JSON value."""
    files = []
    for name in source.names:
        try:
            files.append([name, (source.root / name).stat().st_size])
        except OSError as error:
            raise DataError(f"{source.root / name}: cannot be read ({error.strerror})") from error
    return [files, dump_typed(source.warps), None if labels is None else labels.digest]
