"""What figures come from, as the last part of a section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matchlib.visualization.report import Column, Row, Section, Table


class HasOrigins(Protocol):
    """An entry of a section: its row, the group that the row stands in, and digests by name of what it was made of."""

    @property
    def label(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def origins(self) -> Sequence[tuple[str, str]]: ...


def origins_section(entries: Sequence[HasOrigins]) -> tuple[Section, ...]:
    """One section with a table of all digests, or none where no entry states any."""
    rows = [
        Row(cells=[entry.label, name, digest], group=entry.group)
        for entry in entries
        for name, digest in entry.origins
    ]
    columns = [Column(name="method"), Column(name="input"), Column(name="digest", code=True)]
    table = Table(columns=columns, rows=rows, caption="What these figures come from", sortable=False)
    return (Section(title="Origin", tables=[table]),) if rows else ()
