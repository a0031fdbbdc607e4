"""Plain values (YAML, JSON, `--config`) to frozen dataclasses, with errors that name file, key and remedy.

The dataclasses are ordinary ones; pydantic checks and converts, `typed_faults` translates what it says:
`config/config.yaml:12: runs.base.lr: unknown key; did you mean learning_rate? (known: learning_rate, steps)`.
Several faults give several lines. Text that holds a number counts as a number, because YAML reads `1e-4` as
text and Snakemake's `--config` turns every nested number into text.
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from matchlib.errors import ConfigError
from matchlib.typed_faults import Fault, Location, faults_of

T = TypeVar("T")

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


# ---------------------------------------------------------------- reading
def load_typed(cls: type[T], value: Any, where: str) -> T:
    """Build the dataclass `cls` from plain dicts, lists and scalars.

    Nested dataclasses, mappings, tuples, Literals and unions are followed; unknown keys, missing keys, wrong
    types and what a `__post_init__` refuses (a ConfigError whose text starts with the field's name) are
    reported together, one line each, every line starting with `where`. Raises ConfigError.
    """
    try:
        return _validate(cls, value)
    except _Refused as refused:
        lines = [f"{where}: {fault.text()}" for fault in refused.faults]
        raise ConfigError("\n".join(lines)) from refused.__cause__


def read_typed(cls: type[T], path: Path) -> T:
    """As `load_typed`, from a YAML file; errors also name the line. Raises ConfigError."""
    value = read_yaml(path)
    try:
        return _validate(cls, value)
    except _Refused as refused:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        lines = [f"{path}:{_line_of(root, fault.location)}: {fault.text()}" for fault in refused.faults]
        raise ConfigError("\n".join(lines)) from refused.__cause__


def read_yaml(path: Path) -> Any:
    """The plain value of a YAML or JSON file; in YAML a key given twice in a mapping is an error.

    Raises ConfigError.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            if path.suffix == ".json":  # a thousand times faster, and lists of photographs are long
                return json.load(stream)
            return yaml.load(stream, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not readable as YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not readable as JSON: {error.msg}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`inference.max_keypoints=2000 loss.descriptor=circle` as a nested mapping; values are read as YAML.

    Raises ConfigError for a word that is not KEY=VALUE, and for a key below one that has a value.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}': expected KEY=VALUE, e.g. inference.max_keypoints=2000")
        *parents, last = key.split(".")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{word}': {parent} was given a value before")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"'{word}': the value is not readable as YAML") from error
    return settings


def merged(value: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with `changes` put over it, level by level; lists are replaced as wholes."""
    result = dict(value)
    for key, change in changes.items():
        below = result.get(key)
        is_nested = isinstance(change, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, change) if is_nested else change  # type: ignore[arg-type]
    return result


def without(value: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """`value` without these keys, dots between levels; keys that it lacks are no error."""
    result = dict(value)
    for key in keys:
        first, _, rest = key.partition(".")
        below = result.get(first)
        if not rest:
            result.pop(first, None)
        elif isinstance(below, Mapping):
            result[first] = without(below, [rest])
            if not result[first]:
                del result[first]
    return result


def dump_typed(value: Any) -> Any:
    """A configuration dataclass as plain dicts, lists and scalars, ready for JSON or YAML."""
    return _adapter(type(value)).dump_python((value,), mode="json")[0]  # type: ignore[arg-type]


def json_schema(cls: type) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a configuration dataclass; attribute docstrings become descriptions."""
    config = ConfigDict(**_CONFIG, use_attribute_docstrings=True)
    wrapped = TypeAdapter(tuple[cls], config=config).json_schema()  # type: ignore[valid-type]
    definitions: dict[str, Any] = wrapped["$defs"]
    schema = definitions.pop(cls.__name__)
    if definitions:
        schema["$defs"] = definitions
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# ---------------------------------------------------------------- validation
class _Refused(Exception):
    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__()
        self.faults = faults


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    # A config cannot be given for a dataclass itself, but one given for the tuple around it reaches all
    # dataclasses inside.
    return TypeAdapter(tuple[cls], config=_CONFIG)  # type: ignore[valid-type]


def _validate(cls: type[T], value: Any) -> T:
    details: list[ErrorDetails] = []
    cause: ValidationError | None = None
    result: Any = None
    try:
        (result,) = _adapter(cls).validate_python((value,))  # type: ignore[arg-type]
    except ValidationError as error:
        details, cause = error.errors(include_url=False), error
    faults = faults_of(cls, value, details)
    if faults:
        raise _Refused(faults) from cause
    return typing.cast(T, result)


# ---------------------------------------------------------------- YAML
class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key_node.value}' occurs twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _line_of(root: yaml.Node | None, location: Location) -> int:
    """Line (from 1) of the deepest part of `location` that the document has."""
    line, node = 1, root
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        else:
            found = None
        if found is None:
            return line
        line, node = found[0].start_mark.line + 1, found[1]
    return line
