"""`config/README.md` and the JSON schema, written from the dataclasses themselves: never out of date."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from matchlib.config import WorkflowConfig
from matchlib.downloads.config import DatasetSource
from matchlib.methods.spec import METHODS
from matchlib.typed_yaml import dump_typed, json_schema

_HEAD = """\
# Every key of the configuration

Written by `matchlib config-reference > config/README.md`; do not edit by hand.

- `config.yaml` is the demo. `snakemake --configfile FILE` reads FILE *instead*; several files after `--configfile` are
  merged, later ones win.
- Single keys: `snakemake --config 'runs={aslfeat: {stages: {base: {steps: 100}}}}'`. `--config regenerate=true`
  builds match sets again.
- An unknown key, a wrong type, or a stage whose dataset cannot give what it needs stops before anything runs.
- Paths of dataset descriptions are relative to the first configuration file; all others to the folder you run in.
- Threads, memory and partitions are no configuration of results: they stand in `profiles/`.
"""


def schema_text() -> str:
    """JSON schema of the configuration file, as committed in `config/schemas/`."""
    return json.dumps(json_schema(WorkflowConfig), indent=2, sort_keys=True) + "\n"


def reference_text() -> str:
    """Markdown that lists every key with type, default and meaning."""
    parts = [_HEAD, "## The configuration file\n", _table(WorkflowConfig)]
    for name in METHODS.names():
        spec = METHODS.get(name)
        stages = ", ".join(spec.stages) or "none"
        parts += [f"## Settings of method `{name}`\n", f"Training stages: {stages}.\n", _table(spec.config)]
    parts += ["## Dataset descriptions (`config/datasets/*.yaml`)\n", _table(DatasetSource)]
    return "\n".join(parts)


def _table(cls: type) -> str:
    schema = json_schema(cls)
    definitions = schema.get("$defs", {})
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in _rows(schema, definitions, "", _defaults(cls)):
        lines.append(f"| `{key}` | {_cell(kind)} | {_cell(default)} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _defaults(cls: type) -> dict[str, Any]:
    """Default values by field, as plain values; fields without default are absent."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            continue
        found[field.name] = dump_typed(value) if dataclasses.is_dataclass(value) else value
    return found


def _rows(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str, defaults: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    required = set(schema.get("required", ()))
    for name, entry in schema.get("properties", {}).items():
        key = f"{prefix}{name}"
        nested, is_mapping = _nested(entry, definitions)
        default = defaults.get(name, entry.get("default"))
        shown = "required" if name in required else _value(default) if nested is None else ""
        yield key, _type(entry, definitions), shown, entry.get("description", "")
        if nested is not None:
            inner = default if isinstance(default, Mapping) and not is_mapping else _schema_defaults(nested)
            yield from _rows(nested, definitions, f"{key}.{'NAME.' if is_mapping else ''}", inner)


def _schema_defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: entry["default"] for name, entry in schema.get("properties", {}).items() if "default" in entry
    }


def _nested(
    entry: Mapping[str, Any], definitions: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, bool]:
    """The settings that a key holds (one, or one per name), and whether they are per name."""
    for candidate in (entry, *entry.get("anyOf", ())):
        if "$ref" in candidate:
            return definitions[candidate["$ref"].rpartition("/")[2]], False
        for keyword in ("additionalProperties", "items"):
            inner = candidate.get(keyword)
            if isinstance(inner, Mapping) and "$ref" in inner:
                return definitions[inner["$ref"].rpartition("/")[2]], True
    return None, False


def _type(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_type(option, definitions) for option in entry["anyOf"]))
    if "enum" in entry:
        return ", ".join(f"`{choice}`" for choice in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "$ref" in entry:
        return "settings"
    kind = str(entry.get("type", "any"))
    if kind == "array":
        items = entry.get("prefixItems")
        if items:
            return "list of " + ", ".join(_type(item, definitions) for item in items)
        return f"list of {_type(entry.get('items', {}), definitions)}"
    if kind == "object":
        inner = entry.get("additionalProperties")
        return "settings by name" if isinstance(inner, Mapping) and "$ref" in inner else "mapping"
    return {"string": "text", "boolean": "true or false", "null": "null"}.get(kind, kind)


def _value(value: Any) -> str:
    return f"`{json.dumps(value, default=list)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
