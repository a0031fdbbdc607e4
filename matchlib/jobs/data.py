"""Datasets: what lies where, and labels for photographs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from matchlib.completion import atomic_write_json, digest_file
from matchlib.config import DatasetConfig, method_settings
from matchlib.datasets.types import FORMATS
from matchlib.downloads.config import DatasetSource, read_source
from matchlib.downloads.dataset import check_in_place
from matchlib.errors import DataError
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol
from matchlib.subsets import list_subsets, max_validation
from matchlib.typed_yaml import dump_typed, load_typed, read_yaml

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIndex:
    """Where a dataset lies and which scenes, or photographs, it has; changes whenever what was unpacked changes.

    train, validation: names of scenes, or paths of photographs relative to `root`
    content: digest of the marker of the unpacked root, null for a root that is used in place
    excluded: scenes that must not be used, whether or not they are there, by the name of the list
    """

    dataset: str
    format: str
    root: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    content: str | None
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def index_dataset(
    name: str, settings: DatasetConfig, *, source: Path, unpacked: Path | None, out: Path
) -> None:
    """Write the index of a dataset.

    source:   its description
    unpacked: marker in the folder that its archives were unpacked into; None for a root that is used in place
    Raises DataError where the root does not hold what its format needs.
    """
    description = read_source(source)
    format_name = settings.format or description.format
    layout = FORMATS.get(format_name)
    if unpacked is not None:
        root = unpacked.parent
    elif settings.root is not None:
        root = Path(settings.root)
        if layout.list_images is None:  # photographs are listed below, which checks as much
            check_in_place(format_name, root, split=settings.train_split if layout.read_scene else "all")
    else:
        raise DataError(f"{name}: neither unpacked nor given a root")
    scenes = list_subsets(
        description,
        root,
        format_name=format_name,
        train_split=settings.train_split,
        validation_split=settings.validation_split,
        max_validation=max_validation(settings, format_name),
        exclude=settings.exclude,
    )
    _log_exclusions(name, description, settings)
    what = "scenes" if layout.list_images is None else "photographs"
    _log.info(
        "%s: %d training and %d validation %s", name, len(scenes["train"]), len(scenes["validation"]), what
    )
    if scenes["train"] and not scenes["validation"]:
        _log.warning(
            "%s: nothing to validate on, so a stage ends with its last weights, not its best: of fewer than 5 %s none "
            "is held out; name some by validation_split, or by validation_scenes of the description",
            name,
            what,
        )
    index = DatasetIndex(
        dataset=name,
        format=format_name,
        root=str(root),
        train=scenes["train"],
        validation=scenes["validation"],
        content=None if unpacked is None else digest_file(unpacked),
        excluded=description.excluded(settings.exclude),
    )
    atomic_write_json(out, dump_typed(index))


def _log_exclusions(name: str, description: DatasetSource, settings: DatasetConfig) -> None:
    applied = description.excluded(settings.exclude)
    left_off = [list_name for list_name in description.excluded() if list_name not in applied]
    if applied:
        counts = ", ".join(f"{list_name} {len(scenes)}" for list_name, scenes in applied.items())
        total = len(set().union(*applied.values()))
        _log.info("%s: %d scenes are never used: %s", name, total, counts)
    if left_off:
        _log.warning(
            "%s: exclude leaves off %s: scenes that benchmarks test on may be trained on",
            name,
            ", ".join(left_off),
        )


def read_index(path: Path) -> DatasetIndex:
    """Read what `index_dataset` wrote. Raises ConfigError."""
    return load_typed(DatasetIndex, read_yaml(path), str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Which images below `root` an evaluation needs features of, and the long side to extract them at (None: as is)."""

    root: Path
    names: tuple[str, ...]
    resize_long_side: int | None = None


def write_image_set(
    root: Path, names: Sequence[str], out: Path, *, resize_long_side: int | None = None
) -> None:
    """Write an `ImageSet`; one that does not resize does not mention it."""
    resize = {} if resize_long_side is None else {"resize_long_side": resize_long_side}
    atomic_write_json(out, {"root": str(root), "names": list(names), **resize})


def read_image_set(path: Path) -> ImageSet:
    """Read what `write_image_set` wrote. Raises DataError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        side = found.get("resize_long_side")
        return ImageSet(
            root=Path(found["root"]),
            names=tuple(found["names"]),
            resize_long_side=None if side is None else int(side),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected a JSON object with root and names ({error}); delete it") from error


def list_evaluation_images(index: Path, out: Path) -> None:
    """The image set of a dataset that is an evaluation by itself (HPatches)."""
    from matchlib.datasets.hpatches import image_set

    root = Path(read_index(index).root)
    write_image_set(root, image_set(root), out)


def label_shard(
    *,
    method: str,
    settings: Mapping[str, Any],
    weights: Path,
    index: Path,
    shard: int,
    shards: int,
    seed: int,
    out: Path,
    device: str = "auto",
) -> None:
    """Label every `shards`-th photograph of a dataset, beginning with number `shard`, into the folder `out`.

    index: what `index_dataset` wrote; training and validation photographs are labelled alike
    Goes on where a former attempt stopped. Raises DataError, ConfigError.
    """
    from matchlib.api import choose_device
    from matchlib.photo_pairs.labelling import label_photographs

    spec = METHODS.get(method)
    if spec.labeller is None:
        raise DataError(f"{method} labels no photographs")
    found = read_index(index)
    names = (*found.train, *found.validation)[shard::shards]
    build = cast(Any, load_symbol(spec.labeller))
    labeller = build(method_settings(spec, settings, f"settings of {method}"), weights, choose_device(device))
    label_photographs(root=Path(found.root), names=names, labeller=labeller, out=out, seed=seed)
