"""HTML by functions. Every text goes through `element`, which escapes whatever is not already markup."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already, so that it is not escaped again."""

    __slots__ = ()


_VOID = frozenset({"meta", "img", "input"})


def element(tag: str, *children: str, **attributes: str | bool | None) -> Markup:
    """`<tag attributes>children</tag>`; children and values are escaped unless they are Markup.

    Attribute names: a trailing underscore is dropped (`class_`), others become hyphens (`data_value`). True
    gives a bare attribute, None and False leave it out.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {name}")
        elif value is not None and value is not False:
            parts.append(f' {name}="{html.escape(value, quote=True)}"')
    parts.append(">")
    if tag in _VOID:
        return Markup("".join(parts))
    return Markup("".join(parts) + join(children) + f"</{tag}>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """The parts one after the other, escaped unless they are Markup."""
    return Markup(separator.join(part if isinstance(part, Markup) else html.escape(part) for part in parts))
