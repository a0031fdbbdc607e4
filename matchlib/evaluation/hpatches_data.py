"""The pairs of an HPatches evaluation: which sequences, their features, their homographies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import digest_file
from matchlib.datasets.hpatches import EXCLUDED_SEQUENCES, Sequence, list_sequences, read_sequence
from matchlib.errors import DataError
from matchlib.evaluation.config import SequenceSet
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features

# Names without their prefix. The names decide, not the count: a folder with 108 other sequences is not the
# set.
_ILLUMINATION = (
    "ajuntament autannes bologna books boutique bridger brooklyn castle chestnuts contruction crownday "
    "crownnight dc dome duda fenis fog fruits gonnenberg greenhouse greentea indiana kions ktirio kurhaus "
    "leuven lionday lionnight londonbridge melon miniature nescafe nijmegen nuts objects parking partyfood "
    "pencils pinard pool porta resort salon santuario school ski smurf steps table tools toy troulos veggies "
    "village whitebuilding yellowtent zion "
)
_VIEWPOINT = (
    "abstract adam apprentices artisans astronautis azzola bark bees beyus bip bird birdwoman blueprint boat "
    "bricks busstop calder cartooncity charing churchill circus coffeehouse colors courses dirtywall dogman "
    "eastsouth feast fest gardens grace graffiti home laptop london machines man maskedman pomegranate "
    "posters samples soldiers strand sunseason tabletop talent tempera there underground vitro wall wapping "
    "war weapons woman wormhole wounded yard yuri "
)
FULL_SEQUENCES: tuple[str, ...] = tuple(
    [f"i_{name}" for name in _ILLUMINATION.split()] + [f"v_{name}" for name in _VIEWPOINT.split()]
)
"""The 116 sequences (57 illumination, 59 viewpoint) of hpatches-sequences-release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSequence:
    """One sequence with the features of its six images; homographies[k - 2] maps image 1 to image k."""

    name: str
    features: tuple[Features, ...]
    homographies: tuple[npt.NDArray[np.float64], ...]

    def pairs(self) -> Iterator[tuple[int, Features, Features, npt.NDArray[np.float64]]]:
        """(k, features of image 1, features of image k, H from 1 to k) for k = 2..6."""
        for k, H_1tok in enumerate(self.homographies, start=2):
            yield k, self.features[0], self.features[k - 1], H_1tok


def select_sequences(root: Path, which: SequenceSet) -> tuple[str, ...]:
    """Names of the sequences to evaluate, sorted.

    A named set must be complete: DataError names the sequences that are missing.
    """
    present = list_sequences(root)
    if which == "all_present":
        return present
    excluded = EXCLUDED_SEQUENCES if which == "108" else ()
    wanted = tuple(sorted(set(FULL_SEQUENCES) - set(excluded)))
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise DataError(
            f"{root}: the set '{which}' lacks {len(missing)} of {len(wanted)} sequences: "
            f"{', '.join(missing)}; unpack the full hpatches-sequences-release, or set sequences: "
            f"all_present (such numbers compare to no published ones)"
        )
    return wanted


def read_sequences(root: Path, names: tuple[str, ...], reader: FeatureReader) -> Iterator[EvaluationSequence]:
    """Sequences in the order of `names`, features under `<sequence>/<k>.ppm`.

    Raises DataError if an image has no features, or if its file is not the one that the features come from.
    """
    for name in names:
        sequence = read_sequence(root, name)
        yield EvaluationSequence(
            name=name, features=_features_of(sequence, reader), homographies=sequence.homographies
        )


def _features_of(sequence: Sequence, reader: FeatureReader) -> tuple[Features, ...]:
    features = []
    for path in sequence.image_paths:
        key = f"{sequence.name}/{path.name}"
        features.append(reader.read(key))
        stated = reader.image_digest(key)
        if stated and stated != digest_file(path):
            raise DataError(
                f"{reader.path}: the features of '{key}' come from another version of {path}; extract again"
            )
    return tuple(features)
