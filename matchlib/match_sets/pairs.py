"""Training pairs with depth and pose, from finished match sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.completion import MARKER, digest_file, digest_json, require_complete
from matchlib.datasets.batch import PairBatch
from matchlib.datasets.depth import read_depth
from matchlib.datasets.images import read_image
from matchlib.errors import DataError
from matchlib.match_sets.config import MatchSetConfig
from matchlib.match_sets.index import RECORDS, read_images, read_pair_table, slots_of
from matchlib.match_sets.layout import HEADER_FLOATS, PairGeometry, decode_header, record_floats
from matchlib.match_sets.resize import resize_depth, resize_image

_DEFAULT = MatchSetConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSetSource:
    """One scene's match set in `folder`, and the dataset below `root` whose images it speaks of.

    min_rotation_deg, max_rot_diff_deg: pairs outside are left out of training (tfmatch's load-time filter)
    """

    dataset_format: str
    root: Path
    scene: str
    folder: Path
    min_rotation_deg: float = _DEFAULT.min_rotation_deg
    max_rot_diff_deg: float = _DEFAULT.max_rot_diff_deg


@dataclass(frozen=True, slots=True)
class _Scene:
    """What loading needs of one scene. record: (P,) number of each pair's record; index0, index1: (P,) image
    ids.
    """

    name: str
    records: Path
    slots: int
    record: npt.NDArray[np.int64]
    index0: npt.NDArray[np.int64]
    index1: npt.NDArray[np.int64]
    files: dict[int, tuple[Path, Path | None]]


class DepthPosePairs:
    """Pairs of several scenes, as the trainer's `PairSource`. Holds no open file, so data-loader workers can
    copy it.

    size:   (width, height) that images and depth maps are resized to, each side by its own factor, as ASLFeat
            does
    digest: of the markers and limits of all sources: equal digests mean equal pairs
    Raises DataError for a match set that is not finished, or if no pair is left.
    """

    def __init__(self, sources: Sequence[MatchSetSource], *, size: tuple[int, int]) -> None:
        self._size = size
        self._scenes = [_open_scene(source) for source in sources]
        self._ends = np.cumsum([len(scene.record) for scene in self._scenes], dtype=np.int64)
        if len(self) == 0:
            raise DataError(
                f"no pair in {len(sources)} match sets: all were dropped when they were built (their logs name the "
                f"reasons) or lie outside min_rotation_deg and max_rot_diff_deg"
            )
        self.digest = digest_json(
            [
                [s.scene, digest_file(s.folder / MARKER), s.min_rotation_deg, s.max_rot_diff_deg]
                for s in sources
            ]
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def load(self, index: int, seed: int) -> PairBatch:
        """Pair `index` as a batch of one; `seed` goes into it for whoever draws at random.

        Raises DataError, naming the file, where an image or depth map is unreadable or a depth map all zero.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        scene = self._scenes[place]
        row = index - (int(self._ends[place - 1]) if place else 0)
        index0, index1 = int(scene.index0[row]), int(scene.index1[row])
        geometry = _read_geometry(scene, int(scene.record[row]))
        image0, depth0 = self._read(scene, index0)
        image1, depth1 = self._read(scene, index1)
        return PairBatch(
            image0=image0,
            image1=image1,
            depth0=depth0,
            depth1=depth1,
            K0=self._scaled(geometry.K0, geometry.size0),
            K1=self._scaled(geometry.K1, geometry.size1),
            T_0to1=torch.from_numpy(geometry.T_0to1).float()[None],
            seeds=(seed,),
            names=(f"{scene.name}/{index0:08d}-{index1:08d}",),
        )

    def _read(self, scene: _Scene, index: int) -> tuple[Tensor, Tensor]:
        """Image (1, 3, H, W) float32 in [0, 1] and depth (1, H, W) float32."""
        if index not in scene.files:
            raise DataError(
                f"{scene.records.parent}: image {index} is not in images.csv; build the match set again"
            )
        image_path, depth_path = scene.files[index]
        if depth_path is None:
            raise DataError(f"{image_path}: has no depth map, but training with depth_pose needs one")
        width, height = self._size
        depth = read_depth(depth_path)
        if not depth.any():
            raise DataError(f"{depth_path}: no depth above 0")
        image = torch.from_numpy(resize_image(read_image(image_path), width, height))
        resized = torch.from_numpy(np.ascontiguousarray(resize_depth(depth, width, height)))
        return image.permute(2, 0, 1).contiguous().float().div_(255)[None], resized[None]

    def _scaled(self, K: npt.NDArray[np.float64], size: tuple[int, int]) -> Tensor:
        scale = np.diag([self._size[0] / size[0], self._size[1] / size[1], 1.0])
        return torch.from_numpy(scale @ K).float()[None]


def _open_scene(source: MatchSetSource) -> _Scene:
    require_complete(source.folder, hint="run: snakemake match_sets_all")
    table = read_pair_table(source.folder)
    is_kept = (table.rotation_deg >= source.min_rotation_deg) & (
        table.rot_diff_deg <= source.max_rot_diff_deg
    )
    keep = np.flatnonzero(is_kept)
    return _Scene(
        name=source.root.name if source.scene == "." else source.scene,
        records=source.folder / RECORDS,
        slots=slots_of(source.folder),
        record=keep,
        index0=table.index0[keep],
        index1=table.index1[keep],
        files=read_images(source.folder, source.root),
    )


def _read_geometry(scene: _Scene, record: int) -> PairGeometry:
    """The header of one record; a read of 184 bytes, so nothing stays mapped or open."""
    try:
        with open(scene.records, "rb") as stream:
            stream.seek(record * 4 * record_floats(scene.slots))
            data = stream.read(4 * HEADER_FLOATS)
    except OSError as error:
        raise DataError(f"{scene.records}: cannot be read ({error.strerror})") from error
    if len(data) != 4 * HEADER_FLOATS:
        raise DataError(f"{scene.records}: record {record} is cut; build the match set again")
    return decode_header(np.frombuffer(data, dtype="<f4"))
