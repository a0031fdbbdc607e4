"""The `matchlib` command: what the graph does, one step at a time, without Snakemake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from matchlib import __version__
from matchlib.cli import benchmarks, cameras, data, images, information, training
from matchlib.cli.verbs import Verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (0 done, 1 a stated error, 75 interrupted: run again to go on)."""
    from matchlib.logs import log_to

    options = parse(arguments)
    try:
        with log_to(None):
            run: Callable[[argparse.Namespace], int | None] = options.run
            return run(options) or 0
    except BrokenPipeError:  # `matchlib plan | head`
        sys.stderr.close()
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command; `KEY=VALUE` words may stand anywhere behind the verb.

    argparse itself takes all positional words from one place and calls those behind the next option unrecognised.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(options, "settings") or any(word.startswith("-") or "=" not in word for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.settings = [*options.settings, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their options."""
    parser = argparse.ArgumentParser(prog="matchlib", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=__version__)
    verbs = Verbs(parser)
    for part in (images, benchmarks, cameras, training, data, information):
        part.add_verbs(verbs)
    return parser
