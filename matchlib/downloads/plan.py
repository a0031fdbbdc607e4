"""What would be fetched: files, sizes, hosts, licences, and what is there already. Touches no network."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from matchlib.completion import read_marker
from matchlib.downloads.config import Archive, DatasetSource
from matchlib.downloads.progress import readable_bytes
from matchlib.downloads.transport import MIRROR_SCHEME, mirror_path


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One archive of a plan.

    files:         number of files, None where only the host knows
    total_bytes:   size of all files, None if nobody has published it
    present_bytes: what is on the disk already, finished or not
    present:       "in place" (a root of the user), "complete", "partly", "no", or "gone" (no host has it)
    hosts:         where it comes from, in order of preference
    """

    dataset: str
    archive: str
    content: str
    files: int | None
    total_bytes: int | None
    present_bytes: int
    present: str
    hosts: tuple[str, ...]

    def missing_bytes(self) -> int | None:
        """Bytes that are still to come, None if the size is not known."""
        if self.present in ("in place", "complete", "gone"):
            return 0
        return None if self.total_bytes is None else max(self.total_bytes - self.present_bytes, 0)


def plan(
    sources: Iterable[DatasetSource],
    archive_folder: Path,
    *,
    roots: Mapping[str, Path | None] | None = None,
    mirror_root: Path | None = None,
) -> tuple[PlanRow, ...]:
    """One row per archive of the given datasets.

    archive_folder: holds `<dataset>/<archive>/` with what was downloaded before
    roots:          dataset name -> folder of a copy that the user has, which is used in place
    mirror_root:    where `mirror:` addresses lie; files that are there tell their own sizes
    """
    in_place = {name for name, root in (roots or {}).items() if root is not None}
    return tuple(
        _row(
            source, archive, archive_folder / source.name / archive.name, source.name in in_place, mirror_root
        )
        for source in sources
        for archive in source.archives
    )


def _row(
    source: DatasetSource, archive: Archive, folder: Path, in_place: bool, mirror_root: Path | None
) -> PlanRow:
    sizes = _sizes_in_mirror(archive, mirror_root)
    present_bytes = _present_bytes(folder)
    if in_place:
        present = "in place"
    elif read_marker(folder) is not None:
        present = "complete"
    elif source.status == "gone":
        present = "gone"
    else:
        present = "partly" if present_bytes else "no"
    return PlanRow(
        dataset=source.name,
        archive=archive.name,
        content=archive.content,
        files=len(archive.file_names()) or len(sizes) or None,
        total_bytes=sum(sizes) if sizes else archive.total_bytes(),
        present_bytes=present_bytes,
        present=present,
        hosts=tuple(dict.fromkeys(_host(url) for url in archive.urls)),
    )


def _sizes_in_mirror(archive: Archive, mirror_root: Path | None) -> list[int]:
    """Lengths of an archive's files in the local mirror; empty if it is not (or not wholly) there."""
    templates = [url for url in archive.urls if url.startswith(MIRROR_SCHEME)]
    if mirror_root is None or not templates:
        return []
    names: Iterable[str] = archive.file_names()
    if archive.parts is not None and archive.parts.last is None:
        parts = archive.parts
        numbered = map(parts.name, itertools.count(parts.first))
        names = itertools.takewhile(
            lambda name: _in_mirror(templates[0], name, mirror_root).is_file(), numbered
        )
        names = [*names, *([] if parts.end is None else [parts.end])]
    paths = [_in_mirror(templates[0], name, mirror_root) for name in names]
    return [path.stat().st_size for path in paths] if all(path.is_file() for path in paths) else []


def _in_mirror(template: str, name: str, mirror_root: Path) -> Path:
    return mirror_root / mirror_path(template.replace("{file}", name))


def _present_bytes(folder: Path) -> int:
    notes = (".sha256", ".json", ".wrong", ".complete")
    if not folder.is_dir():
        return 0
    return sum(
        path.stat().st_size for path in folder.iterdir() if path.is_file() and not path.name.endswith(notes)
    )


def _host(url: str) -> str:
    return urlsplit(url).netloc or ("local mirror" if url.startswith("mirror:") else "this machine")


def render_plan(sources: Sequence[DatasetSource], rows: Sequence[PlanRow]) -> str:
    """The plan as text: licence, status and users per dataset, a line per archive, what is to come."""
    lines: list[str] = []
    for source in sources:
        own = [row for row in rows if row.dataset == source.name]
        lines.append(f"{source.name} ({source.format}): licence {source.licence}; status {source.status}")
        lines.append(f"  home: {source.homepage}")
        if source.used_by:
            lines.append(f"  used by: {', '.join(source.used_by)}")
        for title, text in (("note", source.note), ("instead", source.substitute)):
            if text:
                lines += textwrap.wrap(f"{title}: {text}", 108, initial_indent="  ", subsequent_indent="    ")
        lines += _table([_cells(row) for row in own])
        if not own:
            lines.append("  nothing to fetch")
        lines.append("")
    lines.append(_total(rows))
    return "\n".join(lines) + "\n"


def _cells(row: PlanRow) -> tuple[str, ...]:
    size = "size unknown" if row.total_bytes is None else readable_bytes(row.total_bytes)
    files = "? files" if row.files is None else f"{row.files} file" + ("s" if row.files > 1 else "")
    here = {"no": "to fetch", "partly": f"{readable_bytes(row.present_bytes)} there"}.get(
        row.present, row.present
    )
    return (row.archive, size, files, here, ", ".join(row.hosts), row.content)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  " + "  ".join(row).rstrip() for row in padded]


def _total(rows: Sequence[PlanRow]) -> str:
    missing = [row.missing_bytes() for row in rows]
    known = sum(size for size in missing if size is not None)
    unknown = sum(size is None for size in missing)
    text = f"still to fetch: {readable_bytes(known)}"
    gone = sum(row.present == "gone" for row in rows)
    text += f", and {unknown} archives of unknown size" if unknown else ""
    return text + (f"; {gone} archives are gone from their hosts" if gone else "")
