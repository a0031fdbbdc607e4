"""Matches in hloc's HDF5 file and back.

A group per pair, `<name0>/<name1>` with every '/' of the names replaced by '-', of `matches0` (N0,) int32, the
keypoint of image 1 that each keypoint of image 0 is matched to or -1, and `matching_scores0` (N0,), 0 where there is
none. hloc itself stores int16 indices and half-precision scores where it can; both are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from matchlib.completion import atomic_path, digest_file
from matchlib.errors import DataError
from matchlib.matching.pair_lists import Pair
from matchlib.matching.store import MatchHeader, MatchReader, PairMatches, swapped
from matchlib.matching.types import Matches
from matchlib.matching.writer import write_matches


def export_hloc_matches(reader: MatchReader, path: Path) -> int:
    """Write all matches as one hloc file, atomically; returns the number of pairs.

    Raises DataError for two pairs that have one name there.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for name0, name1, matches in reader.items():
            group_name = _group_name(name0, name1)
            if group_name in file:
                raise DataError(
                    f"{path}: two pairs have the name '{group_name}' in hloc's file, which replaces '/' by '-'; rename "
                    f"an image of '{name0}', '{name1}'"
                )
            group = file.create_group(group_name)
            count = reader.keypoint_counts[name0]
            matches0 = np.full(count, -1, np.int32)
            scores0 = np.zeros(count, np.float32)
            matches0[matches.index[:, 0]] = matches.index[:, 1]
            scores0[matches.index[:, 0]] = matches.scores
            group.create_dataset("matches0", data=matches0)
            group.create_dataset("matching_scores0", data=scores0)
    return len(reader)


def read_hloc_matches(path: Path, pairs: Sequence[Pair]) -> Iterator[tuple[str, str, Matches]]:
    """The matches of `pairs` in an hloc file, in that order, whichever image the file names first.

    Raises DataError for a file that is not readable, a pair that it lacks, and matches that are not one to one.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error})") from error
    with file:
        for name0, name1 in pairs:
            if _group_name(name0, name1) in file:
                yield name0, name1, _read_group(file[_group_name(name0, name1)], path)
            elif _group_name(name1, name0) in file:
                yield name0, name1, swapped(_read_group(file[_group_name(name1, name0)], path))
            else:
                raise DataError(
                    f"{path}: no matches of '{name0}' and '{name1}'; match the whole pair list again"
                )


def import_hloc_matches(
    path: Path, folder: Path, pairs: Sequence[Pair], keypoint_counts: dict[str, int], *, features: str = ""
) -> None:
    """Store an hloc file as a folder of ours, so that a `MatchReader` reads it.

    keypoint_counts: keypoints of each image of `pairs` in the features that were matched
    features:        digest of those, if known
    Raises DataError as `read_hloc_matches`, and for matches of other features (an index out of range).
    """
    header = MatchHeader(features=features, settings={"imported": digest_file(path)})
    found = (
        (
            name0,
            name1,
            PairMatches(matches=matches, count0=keypoint_counts[name0], count1=keypoint_counts[name1]),
        )
        for name0, name1, matches in read_hloc_matches(path, pairs)
    )
    write_matches(folder, found, header=header)


def _group_name(name0: str, name1: str) -> str:
    return f"{name0.replace('/', '-')}/{name1.replace('/', '-')}"


def _read_group(group: h5py.Group, path: Path) -> Matches:
    try:
        matches0 = np.asarray(group["matches0"][()], np.int64)
        scores0 = np.asarray(group["matching_scores0"][()], np.float32)
        (is_matched,) = np.nonzero(matches0 > -1)
        index = np.stack([is_matched, matches0[is_matched]], axis=1)
        matches = Matches(index=index, scores=scores0[is_matched])
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise DataError(f"{path}: pair '{group.name}': damaged ({error}); match again") from error
    if len(np.unique(index[:, 1])) < len(index):
        raise DataError(
            f"{path}: pair '{group.name}': a keypoint of the second image is matched more than once; match mutually"
        )
    return matches
