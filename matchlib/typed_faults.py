"""What pydantic says about a fault, said in our words: where, what was expected, what was found."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

_MISSING = "missing; this key has no default"

# What each kind of pydantic error expected, in words. Kinds that are not listed keep pydantic's own sentence.
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "dataclass_type": "a mapping",
    "path_type": "a path",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a value.

    location: keys and indices as the user wrote them
    message:  what is wrong, or empty where `expected` and `got` say it
    meant:    the key that was probably meant where an unknown one stands
    """

    location: Location
    message: str
    expected: str = ""
    got: str = ""
    meant: str = ""

    def text(self) -> str:
        path = ".".join(_key_text(part) for part in self.location)
        message = f"expected {self.expected}, got {self.got}" if self.expected else self.message
        return f"{path}: {message}" if path else message


def faults_of(cls: type, value: Any, details: Sequence[ErrorDetails]) -> list[Fault]:
    """All faults of `value` as a `cls`, at most one per place.

    `details` are pydantic's, for a validation of the one-element tuple `(value,)` as `tuple[cls]`. Numbers
    given as yes/no are faults too, which pydantic would let pass; so `details` may be empty.
    """
    faults = list(_booleans_for_numbers(cls, value, ()))
    faults += [_fault(cls, detail) for detail in _without_losing_branches(cls, details)]
    # A misspelt key is one mistake, not an unknown key and a missing one.
    misspelt = {(*fault.location[:-1], fault.meant) for fault in faults if fault.meant}
    return _merged(
        [fault for fault in faults if not (fault.message == _MISSING and fault.location in misspelt)]
    )


def _booleans_for_numbers(declared: Any, value: Any, location: Location) -> Iterator[Fault]:
    """Places where YAML's yes/no/on/off stand for a number: pydantic would read them as 1 and 0."""
    members = _members(declared)
    declared = members[0] if len(members) == 1 else declared
    if declared in (int, float) and isinstance(value, bool):
        yield Fault(
            location, "", _EXPECTED["int_type" if declared is int else "float_type"], str(value).lower()
        )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _booleans_for_numbers(_inside(declared, key), item, (*location, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _booleans_for_numbers(_inside(declared, index), item, (*location, index))


def _without_losing_branches(cls: type, details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Where a value fits no member of a union, keep only the complaints of the member that came closest."""
    branches: dict[Location, dict[str | int, list[ErrorDetails]]] = {}
    for detail in details:
        for depth in _tag_depths(cls, detail["loc"]):
            loc = detail["loc"]
            branches.setdefault(loc[:depth], {}).setdefault(loc[depth], []).append(detail)
    dropped: set[int] = set()
    for before, by_tag in branches.items():
        # A complaint about something inside means that the member's outer shape fitted.
        inside = {
            tag: found for tag, found in by_tag.items() if any(len(d["loc"]) > len(before) + 1 for d in found)
        }
        if inside:
            best = min(inside, key=lambda tag: (_foreign_keys(inside[tag]), len(inside[tag])))
            dropped |= {id(d) for tag, found in by_tag.items() if tag != best for d in found}
    return [detail for detail in details if id(detail) not in dropped]


def _foreign_keys(details: Sequence[ErrorDetails]) -> int:
    return sum(detail["type"] in ("unexpected_keyword_argument", "missing") for detail in details)


def _fault(cls: type, detail: ErrorDetails) -> Fault:
    location, declared, parent = _resolve(cls, detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        key, known = str(location[-1]), _field_names(parent)
        meant = _closest(key, known)
        hint = f"; did you mean {meant}?" if meant else ""
        return Fault(location, f"unknown key{hint} (known: {', '.join(known)})", meant=meant)
    if kind == "missing" and location and isinstance(location[-1], int):
        expected = f"{len(typing.get_args(parent))} values"
        return Fault(location[:-1], "", expected, _short(detail["input"]))
    if kind == "missing":
        return Fault(location, _MISSING)
    if kind == "too_long":
        return Fault(location, "", f"{context['max_length']} values", str(context["actual_length"]))
    if kind == "value_error":
        return _refused_by_dataclass(location, declared, str(context["error"]))
    if kind == "literal_error":
        choices = [str(choice) for choice in typing.get_args(declared)]
        meant = _closest(str(detail["input"]), choices)
        hint = f"; did you mean {meant}?" if meant else ""
        expected = f"one of {', '.join(choices)}" if len(choices) > 1 else "".join(choices)
        return Fault(location, "", expected, _short(detail["input"]) + hint)
    if kind == "dataclass_type" and (names := _field_names(declared)):
        return Fault(location, "", f"a mapping with keys {', '.join(names)}", _short(detail["input"]))
    if kind in _EXPECTED:
        return Fault(location, "", _EXPECTED[kind], _short(detail["input"]))
    return Fault(location, f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {_short(detail['input'])}")


def _refused_by_dataclass(location: Location, declared: Any, message: str) -> Fault:
    """A `__post_init__` says `steps: expected ...`; the path to the dataclass goes before it."""
    where, colon, rest = message.partition(": ")
    field = where.rpartition(".")[2]  # some say the whole path themselves; ours is the one that is right
    if colon and field in _field_names(declared):
        return Fault((*location, field), rest)
    return Fault(location, message)


def _merged(faults: Sequence[Fault]) -> list[Fault]:
    """One fault per place: `expected an integer` and `expected null` become `expected an integer or null`."""
    places: dict[Location, list[Fault]] = {}
    for fault in faults:
        places.setdefault(fault.location, []).append(fault)
    return [
        dataclasses.replace(
            same[0], expected=" or ".join(dict.fromkeys(f.expected for f in same if f.expected))
        )
        for same in places.values()
    ]


# ---------------------------------------------------------------- types
def _members(declared: Any) -> list[Any]:
    """The members of a union without None; the type itself if it is no union."""
    if typing.get_origin(declared) is typing.Annotated:
        return _members(typing.get_args(declared)[0])
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(declared) if member is not types.NoneType]
    return [declared]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name in _field_names(cls)}


def _field_names(declared: Any) -> list[str]:
    if not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
        return []
    return [field.name for field in dataclasses.fields(declared) if field.init]


def _inside(declared: Any, key: Any) -> Any:
    """The declared type of `value[key]` (or `value.key`) of a value of type `declared`; object if unknown."""
    if isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return _hints(declared).get(key, object)
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if not isinstance(origin, type) or not arguments:
        return object
    if issubclass(origin, Mapping):
        return arguments[1]
    if issubclass(origin, tuple) and arguments[-1] is not Ellipsis:
        return arguments[key] if isinstance(key, int) and key < len(arguments) else object
    return arguments[0]


def _steps(cls: type, loc: Location) -> Iterator[tuple[int, str | int, bool, Any]]:
    """Follow pydantic's location through the types: (depth, part, is it a tag of pydantic's, type there).

    Tags name the member of a union that was tried, or say that a mapping's key is meant.
    """
    declared: Any = cls
    for depth, part in enumerate(loc[1:], start=1):  # loc[0] is the index in the tuple around the value
        members = _members(declared)
        if len(members) > 1:
            declared = next(
                (member for member in members if _tag(member) == str(part).partition("[")[0]), object
            )
            yield depth, part, True, declared
        else:
            declared = _inside(members[0], part) if part != "[key]" else str
            yield depth, part, part == "[key]", declared


def _tag(member: Any) -> str:
    if typing.get_origin(member) is typing.Literal:
        return "literal"
    return getattr(typing.get_origin(member) or member, "__name__", "")


def _tag_depths(cls: type, loc: Location) -> list[int]:
    return [depth for depth, part, is_tag, _ in _steps(cls, loc) if is_tag and part != "[key]"]


def _resolve(cls: type, loc: Location) -> tuple[Location, Any, Any]:
    """The location as the user wrote it, the type declared there, and the type of what holds it."""
    location: Location = ()
    declared: Any = cls
    parent: Any = None
    for _, part, is_tag, here in _steps(cls, loc):
        if is_tag:
            declared = here
        else:
            location, parent, declared = (*location, part), declared, here
        members = _members(declared)
        declared = members[0] if len(members) == 1 else declared
    return location, declared, parent


# ---------------------------------------------------------------- words
def _closest(word: str, known: Sequence[str]) -> str:
    """The known word that was probably meant, or ""."""
    close = difflib.get_close_matches(word, known, n=1)
    # "lr" is no near spelling of learning_rate, but its initials.
    initials = [name for name in known if "".join(part[:1] for part in name.split("_")) == word.lower()]
    return (close or initials or [""])[0]


def _key_text(part: str | int) -> str:
    """A key as it stands in a path; odd ones (with line breaks, say) are quoted: a fault stays one line."""
    text = str(part)
    return text if re.fullmatch(r"[\w./ -]+", text) else repr(text)


def _short(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    words = reprlib.Repr()
    words.maxstring = 60
    return words.repr(value)
