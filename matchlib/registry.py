"""Names to entries of one kind; a package's entries are found by looking at its submodules."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Generic, TypeVar

from matchlib.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name, found on first use: submodules of `package` define `SPECS`, a tuple of entries.

    `kind` is the word used in messages, `package` the dotted name of the package that holds the entries:
    a new entry is a new module or folder in it, and no list anywhere is edited. Importing such a module
    must be cheap (no torch): heavy code is named by a dotted path inside the entry and imported on use.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] | None = None

    def _load(self) -> dict[str, T]:
        if self._entries is None:
            entries: dict[str, T] = {}
            package = importlib.import_module(self._package)
            for module_info in pkgutil.iter_modules(package.__path__):
                module = importlib.import_module(f"{self._package}.{module_info.name}")
                for spec in getattr(module, "SPECS", ()):
                    if spec.name in entries:
                        raise ConfigError(f"{self.kind} '{spec.name}' is registered twice")
                    entries[spec.name] = spec
            self._entries = entries
        return self._entries

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._load()))

    def get(self, name: str) -> T:
        """The entry of that name. Raises ConfigError that lists the known names."""
        entries = self._load()
        if name not in entries:
            close = difflib.get_close_matches(name, entries, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ConfigError(f"unknown {self.kind} '{name}'{hint} (known: {', '.join(sorted(entries))})")
        return entries[name]


def load_symbol(path: str) -> object:
    """Import `package.module:name`. Lets torch-free tables point at code that needs torch."""
    module_name, _, symbol = path.partition(":")
    return getattr(importlib.import_module(module_name), symbol)
