"""Which scenes or photographs of a dataset train, which validate, and which are never used. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from matchlib.config import DatasetConfig
from matchlib.datasets.types import FORMATS
from matchlib.downloads.config import EXCLUDE_SCENES, DatasetSource
from matchlib.errors import ConfigError
from matchlib.registry import load_symbol


def max_validation(settings: DatasetConfig, format_name: str) -> int:
    """The most scenes, or photographs, of a dataset that serve for validation."""
    is_photos = FORMATS.get(format_name).list_images is not None
    return settings.validation_images if is_photos else settings.validation_scenes


def list_subsets(
    source: DatasetSource,
    root: Path,
    *,
    format_name: str,
    train_split: str,
    validation_split: str | None,
    max_validation: int,
    exclude: tuple[str, ...] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Scenes of a dataset on disk by subset, or photographs where the format has those; else none (hpatches).

    max_validation: the most scenes or photographs that are held out or used for validation
    exclude:        see `DatasetConfig.exclude`
    Raises ConfigError for an unknown split and for a list of training scenes that names an excluded one,
    DataError for missing lists or folders.
    """
    dataset_format = FORMATS.get(format_name)
    lister = dataset_format.list_images
    if dataset_format.read_scene is not None:
        lister = dataset_format.list_scenes
    if lister is None:
        return {"train": (), "validation": ()}
    list_names = cast(Callable[[Path, str], tuple[str, ...]], load_symbol(lister))
    held_out = None if validation_split is None else list_names(root, validation_split)
    is_list = train_split not in dataset_format.folder_splits
    return select_scenes(
        source, list_names(root, train_split), held_out, max_validation, exclude=exclude, is_list=is_list
    )


def select_scenes(
    source: DatasetSource,
    scenes: Iterable[str],
    held_out: Iterable[str] | None,
    max_validation: int,
    *,
    exclude: tuple[str, ...] | None = None,
    is_list: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Split a dataset's scenes: excluded ones never train; validation scenes never train.

    Those of the description's `exclude_scenes` still validate if `held_out` names them, as GL3D's own test list
    does; those of its named `exclusions` never do.
    Without `held_out`, validation scenes are the description's own; without any of those, the last
    `max_validation` scenes (at most a fifth) in sorted order are held out.
    is_list: somebody wrote `scenes` down; one that a named list excludes is then an error and not left out
    Raises ConfigError.
    """
    lists = source.excluded(exclude)
    tested = {scene: name for name, names in lists.items() if name != EXCLUDE_SCENES for scene in names}
    scenes = set(scenes)
    if is_list and (clash := sorted(scenes & set(tested))):
        raise ConfigError(
            f"dataset {source.name}: its list of training scenes holds {', '.join(clash)}, which the exclusions "
            f"'{tested[clash[0]]}' keep for a benchmark; take it out, or set `exclude` to the lists to apply"
        )
    usable = sorted(scenes - set(tested) - set(lists.get(EXCLUDE_SCENES, ())))
    if held_out is None:
        held_out = sorted(set(usable) & set(source.validation_scenes))
        if not held_out:
            held_out = usable[len(usable) - min(max_validation, len(usable) // 5) :]
    validation = set(held_out) - set(tested)
    return {
        "train": tuple(scene for scene in usable if scene not in validation),
        "validation": tuple(sorted(validation)[:max_validation]),
    }
