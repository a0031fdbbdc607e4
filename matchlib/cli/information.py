"""Verbs that tell: methods, settings, schema, the reference of all keys."""

from __future__ import annotations

import argparse

from matchlib.cli.verbs import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Declare this module's verbs."""
    verbs.add("methods", _methods, "List all methods and their training stages.")
    one = verbs.add("settings", _settings, "All settings of a method with their defaults, as YAML.")
    one.add_argument("method")
    verbs.add("schema", _schema, "JSON schema of the configuration file.")
    verbs.add("config-reference", _config_reference, "Every key of the configuration file, as Markdown.")


def _methods(_: argparse.Namespace) -> None:
    from matchlib.methods.spec import METHODS

    for name in METHODS.names():
        spec = METHODS.get(name)
        stages = ", ".join(f"{s} (needs {stage.needs or 'no data'})" for s, stage in spec.stages.items())
        print(
            f"{name}: {stages or ('needs a published weights file' if spec.weights == 'foreign' else 'not trained')}"
        )


def _settings(options: argparse.Namespace) -> None:
    import yaml

    from matchlib.config import settings_help
    from matchlib.methods.spec import METHODS

    print(yaml.safe_dump(settings_help(METHODS.get(options.method).config), sort_keys=False), end="")


def _schema(_: argparse.Namespace) -> None:
    from matchlib.config_reference import schema_text

    print(schema_text(), end="")


def _config_reference(_: argparse.Namespace) -> None:
    from matchlib.config_reference import reference_text

    print(reference_text(), end="")
