"""Build the native operators."""

from pathlib import Path

from matchlib.logs import log_to
from matchlib.ops.build import build_extension

with log_to(snakemake.log[0]):
    build_extension(Path(snakemake.output.info).parent)
