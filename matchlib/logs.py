"""Log handlers for the two entrances, the command line and the graph's scripts; the library only emits records."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from matchlib.errors import MatchlibError

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextlib.contextmanager
def log_to(path: str | Path | None) -> Iterator[None]:
    """Send log records to a file (None: to stderr) while the block runs.

    A MatchlibError ends the process with status 1 and its one message instead of a traceback; other exceptions are
    logged with their traceback and re-raised.
    """
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler: logging.Handler = (
        logging.StreamHandler() if path is None else logging.FileHandler(path, mode="a")
    )
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    except MatchlibError as error:
        logging.getLogger("matchlib").error("%s", error)
        if path is not None:
            sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except Exception:
        logging.getLogger("matchlib").exception("unexpected error; this is a fault of matchlib")
        raise
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
