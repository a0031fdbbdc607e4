"""How a verb is declared: a name, a function, a line of help, and options that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Run = Callable[[argparse.Namespace], int | None]


class Verbs:
    """The verbs of one parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(self, name: str, run: Run, text: str) -> argparse.ArgumentParser:
        """A verb; nothing heavy may be imported before its `run` is called."""
        added = self._verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added


def add_method(parser: argparse.ArgumentParser) -> None:
    """Which method, with which weights and settings."""
    parser.add_argument("--method", default="rootsift", help="see `matchlib methods`; default: rootsift")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="safetensors of a trained method, or a published file"
    )
    add_device(parser)
    add_settings(parser, "of the method, e.g. inference.multi_scale=true")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def add_settings(parser: argparse.ArgumentParser, text: str) -> None:
    """`KEY=VALUE` words; read them with `typed_yaml.parse_overrides`."""
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=text)
