"""What is known of a dataset's archives: the YAML files in `config/datasets/`. Imports nothing heavy.

An archive may have many parts, but a description holds each fact once: `parts` spells out the names, `urls`
holds `{file}` where the name of a file goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from matchlib.errors import ConfigError
from matchlib.typed_yaml import read_typed

ArchiveKind = Literal["tar", "tar-split", "zip", "zip-split", "file"]
Status = Literal["available", "gone", "unverified"]

SPLIT_KINDS = ("tar-split", "zip-split")
MAX_PARTS = 10_000
EXCLUDE_SCENES = "exclude_scenes"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_URL = re.compile(r"(https?://|mirror:|file://)\S+")
_DIGEST_LENGTHS = {"sha256": 64, "sha1": 40, "md5": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of one file before it is fetched. Without any checksum the first download is recorded."""

    bytes: int | None = None
    """Exact length."""
    sha256: str | None = None
    """Checksum in hex."""
    sha1: str | None = None
    """Checksum in hex, where the host publishes no better one."""
    md5: str | None = None
    """Checksum in hex, where the host publishes no better one."""

    def __post_init__(self) -> None:
        if self.bytes is not None and self.bytes < 1:
            raise ConfigError(f"bytes: expected a positive length, got {self.bytes}")
        for name in _DIGEST_LENGTHS:
            _check_digest(name, getattr(self, name))

    def digests(self) -> dict[str, str]:
        """The known checksums by algorithm, in lower case."""
        known = {name: getattr(self, name) for name in _DIGEST_LENGTHS}
        return {name: digest.lower() for name, digest in known.items() if digest is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Names of the files of an archive that was cut into pieces, in the order of their bytes."""

    pattern: str
    """File name with `{number}`, e.g. `gl3d_imgs.tar.{number:03d}` or `BlendedMVS.z{number:02d}`."""
    first: int = 0
    """Number of the first part."""
    last: int | None = None
    """Number of the last part; null: ask the host (a tar ends where a part is missing, a zip says it)."""
    end: str | None = None
    """A file after the numbered ones: the `.zip` of a split zip."""

    def __post_init__(self) -> None:
        try:
            distinct = self.name(0) != self.name(1)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(f"pattern: expected a name with {{number}}, got '{self.pattern}'") from error
        if not distinct or not _NAME.fullmatch(self.name(0)):
            raise ConfigError(f"pattern: expected a plain file name with {{number}}, got '{self.pattern}'")
        if self.end is not None and not _NAME.fullmatch(self.end):
            raise ConfigError(f"end: expected a plain file name, got '{self.end}'")
        if self.first < 0:
            raise ConfigError(f"first: expected 0 or more, got {self.first}")
        if self.last is not None and not self.first <= self.last < self.first + MAX_PARTS:
            raise ConfigError(f"last: expected {self.first} to {self.first + MAX_PARTS - 1}, got {self.last}")

    def name(self, number: int) -> str:
        """File name of one numbered part."""
        return self.pattern.format(number=number)

    def names(self) -> tuple[str, ...]:
        """All file names in the order of their bytes; empty if the number of parts is not known."""
        if self.last is None:
            return ()
        numbered = tuple(self.name(number) for number in range(self.first, self.last + 1))
        return numbered if self.end is None else (*numbered, self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One archive of a dataset: a file, or the parts of one."""

    name: str
    """Short name; also the name of its folder."""
    kind: ArchiveKind
    """tar (plain, gz, bz2, xz), tar cut into bytes, zip, Info-ZIP split zip, or a file that is no archive."""
    urls: tuple[str, ...]
    """Addresses in order of preference; `{file}` stands for the file name, `mirror:` for the local mirror."""
    file: str | None = None
    """File name of an archive in one piece; null: the end of the first address."""
    parts: Parts | None = None
    """The pieces of a split archive."""
    bytes: int | None = None
    """Exact length of an archive in one piece."""
    sha256: str | None = None
    """Checksum of an archive in one piece; none at all means that the first download is recorded."""
    sha1: str | None = None
    """As sha256, where the host publishes no better one."""
    md5: str | None = None
    """As sha256, where the host publishes no better one."""
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    """Length and checksums of the pieces, by file name."""
    size_gb: float | None = None
    """Size as published (10^9 bytes), for the plan, where the exact length is not known."""
    content: str = ""
    """What is inside, in a few words."""
    into: str = "."
    """Folder below the dataset's root that it is unpacked into."""
    drop_prefixes: tuple[str, ...] = ()
    """Leading folders that are removed from the names inside, where they are present."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"name: expected letters, digits and . _ + -, got '{self.name}'")
        self._check_urls()
        own_facts = FileFacts(bytes=self.bytes, sha256=self.sha256, sha1=self.sha1, md5=self.md5)
        if (self.kind in SPLIT_KINDS) != (self.parts is not None):
            raise ConfigError(f"parts: needed for split archives and only for them, but kind is {self.kind}")
        if self.kind == "zip-split" and self.parts is not None and self.parts.end is None:
            raise ConfigError("parts: a split zip needs `end`, the name of its .zip file")
        if not _NAME.fullmatch(self.file_names()[0] if self.file_names() else self.name):
            raise ConfigError(f"file: expected a plain file name, got '{self.file_names()[0]}'; give `file`")
        if self.parts is not None and (self.file or self.bytes or own_facts.digests()):
            raise ConfigError("files: length and checksums of a split archive belong here, by file name")
        for prefix in (self.into, *self.drop_prefixes):
            if prefix.startswith("/") or ".." in prefix.split("/"):
                raise ConfigError(f"into: expected a folder below the dataset's root, got '{prefix}'")

    def _check_urls(self) -> None:
        if not self.urls:
            raise ConfigError("urls: expected at least one address")
        for url in self.urls:
            if not _URL.fullmatch(url):
                raise ConfigError(f"urls: expected http://, https://, file:// or mirror:, got '{url}'")
            if self.kind in SPLIT_KINDS and "{file}" not in url:
                raise ConfigError(f"urls: expected {{file}} where the name of a part goes, got '{url}'")

    def file_names(self) -> tuple[str, ...]:
        """Names of its files in the order of their bytes; empty if the number of parts is not known yet."""
        if self.parts is not None:
            return self.parts.names()
        return (self.file or self.urls[0].split("?")[0].rstrip("/").rpartition("/")[2].rpartition(":")[2],)

    def facts(self, file_name: str) -> FileFacts:
        """What is known of one of its files."""
        if self.parts is not None:
            return self.files.get(file_name, FileFacts())
        return FileFacts(bytes=self.bytes, sha256=self.sha256, sha1=self.sha1, md5=self.md5)

    def urls_of(self, file_name: str) -> tuple[str, ...]:
        """Addresses of one of its files."""
        return tuple(url.replace("{file}", file_name) for url in self.urls)

    def total_bytes(self) -> int | None:
        """Exact size if every file's is known, otherwise the published size, otherwise None."""
        known = [self.facts(name).bytes for name in self.file_names()]
        if known and all(size is not None for size in known):
            return sum(size for size in known if size is not None)
        return None if self.size_gb is None else round(self.size_gb * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSource:
    """Where a dataset comes from and what may be done with it."""

    name: str
    """Name of the dataset."""
    format: str
    """On-disk format, a module of `matchlib.datasets`."""
    licence: str
    """Licence of the data, not of matchlib."""
    homepage: str
    """Page of the authors."""
    status: Status
    """available; gone: the hosts no longer answer; unverified: tried, but nobody has looked lately."""
    archives: tuple[Archive, ...] = ()
    """All archives that the dataset needs."""
    note: str = ""
    """What a user should know before fetching."""
    substitute: str | None = None
    """What to use instead if the hosts are gone."""
    scenes: tuple[str, ...] | None = None
    """Names of all scenes; null: found on disk after unpacking."""
    validation_scenes: tuple[str, ...] = ()
    """Scenes that are held out for validation and never trained on."""
    exclude_scenes: tuple[str, ...] = ()
    """Scenes that are never used, e.g. because another benchmark tests on them."""
    exclude_scenes_from: str | None = None
    """A YAML file beside this one with more of them (keys `source` and `scenes`)."""
    exclusions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Named lists of scenes that a benchmark tests on: never used, unless `exclude` of the configuration says so."""
    used_by: tuple[str, ...] = ()
    """Methods and benchmarks that use it, for the plan."""

    def __post_init__(self) -> None:
        if EXCLUDE_SCENES in self.exclusions:
            raise ConfigError(
                f"exclusions.{EXCLUDE_SCENES}: this name is taken by the key `{EXCLUDE_SCENES}`"
            )
        names = [archive.name for archive in self.archives]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"archives: the name {twice[0]} occurs twice")

    def excluded(self, names: tuple[str, ...] | None = None) -> dict[str, tuple[str, ...]]:
        """Scenes to leave out, by the name of the list: all lists, or those that `names` gives.

        The scenes of the key `exclude_scenes` are the list of that name. Raises ConfigError for an unknown list.
        """
        lists = dict(self.exclusions)
        if self.exclude_scenes:
            lists[EXCLUDE_SCENES] = self.exclude_scenes
        unknown = sorted(set(names or ()) - set(lists))
        if unknown:
            raise ConfigError(
                f"exclude: dataset {self.name} has no list '{unknown[0]}' (known: {', '.join(lists) or 'none'})"
            )
        return {name: scenes for name, scenes in lists.items() if names is None or name in names}

    def archive(self, name: str) -> Archive:
        """The archive of that name. Raises ConfigError that lists the known ones."""
        for archive in self.archives:
            if archive.name == name:
                return archive
        known = ", ".join(archive.name for archive in self.archives) or "none"
        raise ConfigError(f"dataset {self.name}: unknown archive '{name}' (known: {known})")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneList:
    """A list of scenes that several datasets share."""

    source: str
    """Where the list comes from."""
    scenes: tuple[str, ...]
    """Names of the scenes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """How patient and how greedy downloads are."""

    attempts: int = 8
    """Attempts per address that bring nothing new before the next address is tried."""
    backoff_s: float = 1.0
    """Wait after the first failure; doubled after each further one, with a random part."""
    backoff_max_s: float = 120.0
    """Longest wait, also where the host asks for more."""
    connect_timeout_s: float = 20.0
    """Longest time until a host answers the connection."""
    read_timeout_s: float = 60.0
    """Longest silence within an answer."""
    max_connections: int = 4
    """Files of one archive that are fetched at once."""

    def __post_init__(self) -> None:
        for name in ("attempts", "max_connections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("backoff_s", "backoff_max_s", "connect_timeout_s", "read_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: expected a time above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """Where an archive stops being plausible; beyond, it is refused as a whole."""

    max_entries: int = 20_000_000
    """Files and folders inside."""
    max_ratio: float = 100.0
    """Unpacked bytes per byte of the archive."""
    free_bytes: int = 256_000_000
    """Unpacked bytes that are allowed whatever the ratio is: small files of zeros compress very well."""


def read_source(path: Path) -> DatasetSource:
    """Read a dataset description; `exclude_scenes` then holds those of `exclude_scenes_from` too.

    Raises ConfigError, one line per fault, naming file, line and key.
    """
    source = read_typed(DatasetSource, path)
    if source.exclude_scenes_from is None:
        return source
    more = read_typed(SceneList, path.parent / source.exclude_scenes_from).scenes
    return replace(source, exclude_scenes=tuple(dict.fromkeys((*source.exclude_scenes, *more))))


def _check_digest(name: str, digest: str | None) -> None:
    length = _DIGEST_LENGTHS[name]
    if digest is not None and not re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", digest):
        raise ConfigError(f"{name}: expected {length} hex digits, got '{digest}'")
