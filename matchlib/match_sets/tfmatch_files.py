"""Original `*.match_set` files of tfmatch, one pair each, 53,432 bytes: reading, writing, and conversion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matchlib.completion import atomic_write, digest_file, digest_json, write_marker
from matchlib.errors import ConfigError, DataError
from matchlib.match_sets.index import (
    INDEX,
    PAIR_COLUMNS,
    RECORDS,
    PairRow,
    format_pairs,
    read_pairs,
    slots_of,
)
from matchlib.match_sets.layout import (
    TFMATCH_SLOTS,
    Float32,
    MatchRecord,
    decode_header,
    decode_record,
    keypoint_blocks,
    map_records,
    record_floats,
)
from matchlib.revisions import REVISIONS

FILE_BYTES = 4 * record_floats(TFMATCH_SLOTS)
_NAME = re.compile(r"(\d+)_0_(\d+)_(\d+)\.match_set")


def read_match_set(path: Path) -> MatchRecord:
    """One file. Raises DataError for a missing file or one that is not 53,432 bytes long."""
    return decode_record(_read_floats(path), TFMATCH_SLOTS)


def match_set_name(row: PairRow) -> str:
    """tfmatch's file name: pair number, 0, rotation and orientation difference in whole degrees."""
    return f"{row.pair}_0_{int(row.rotation_deg)}_{int(row.rot_diff_deg)}.match_set"


def export_match_sets(folder: Path, out: Path) -> int:
    """Write the records of a finished match set as files into `out` (existing files stay). Returns their
    number.

    Raises ConfigError if the set has other than 1024 slots: tfmatch's reader has the file length built in.
    """
    slots, rows = slots_of(folder), read_pairs(folder)
    if rows and slots == 0:
        raise ConfigError(
            f"{folder}: has pairs without keypoints; .match_set files need match_sets.source: corr or depth"
        )
    if slots not in (0, TFMATCH_SLOTS):
        raise ConfigError(
            f"{folder}: has {slots} slots; .match_set files need match_sets.slots: {TFMATCH_SLOTS}"
        )
    records = map_records(folder / RECORDS, TFMATCH_SLOTS) if rows else np.zeros((0, 0), np.float32)
    for row, record in zip(rows, records, strict=True):
        atomic_write(out / match_set_name(row), record.tobytes())
    return len(rows)


def import_match_sets(paths: Sequence[Path], out: Path, *, first_global_index: int) -> int:
    """Turn tfmatch's files of one scene into a finished match set in `out`; returns the number of pairs.

    The angles come from the file names, `<pair>_0_<rotation>_<orientation difference>.match_set`; image ids
    are the stored dataset-wide indices minus `first_global_index`. `images.csv` is empty: the files do not
    name images.
    Raises DataError for a foreign name or length, and for an image that lies before the scene's first.
    """
    numbered = sorted((_parse_name(path), path) for path in paths)
    rows = []
    records = np.zeros((len(numbered), record_floats(TFMATCH_SLOTS)), dtype=np.float32)
    for record, ((pair, rotation, rot_diff), path) in zip(records, numbered, strict=True):
        record[:] = _read_floats(path)
        geometry = decode_header(record)
        index0, index1 = (index - first_global_index for index in geometry.global_index)
        if min(index0, index1) < 0 or not 0 <= geometry.inliers <= TFMATCH_SLOTS:
            raise DataError(
                f"{path}: images {geometry.global_index} with {geometry.inliers} inliers do not fit a scene "
                f"that begins at image {first_global_index}"
            )
        filled = [
            int(np.any(block != 0, axis=1).sum()) for block in keypoint_blocks(record, TFMATCH_SLOTS)[:2]
        ]
        rows.append(
            PairRow(
                pair=pair,
                index0=index0,
                index1=index1,
                inliers=geometry.inliers,
                rows0=filled[0],
                rows1=filled[1],
                rotation_deg=float(rotation),
                rot_diff_deg=float(rot_diff),
                overlap=None,
            )
        )
    atomic_write(out / RECORDS, records.astype("<f4").tobytes())
    atomic_write(out / INDEX, ",".join(PAIR_COLUMNS) + "\n" + format_pairs(rows))
    atomic_write(out / "images.csv", "index,image,depth\n")
    identity = digest_json(
        {
            "stage": "import_match_sets",
            "revision": REVISIONS["match_sets"],
            "records": digest_file(out / RECORDS),
        }
    )
    files = [out / RECORDS, out / INDEX, out / "images.csv"]
    write_marker(out, stage="match_sets", fingerprint=identity, files=files)
    return len(rows)


def _parse_name(path: Path) -> tuple[int, int, int]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path}: expected a name <pair>_0_<rotation>_<difference>.match_set")
    return int(match[1]), int(match[2]), int(match[3])


def _read_floats(path: Path) -> Float32:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) != FILE_BYTES:
        raise DataError(
            f"{path}: expected {FILE_BYTES} bytes, got {len(data)}; tfmatch files have 1024 slots"
        )
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
