"""Unpack all archives of a dataset."""

from pathlib import Path

from matchlib.downloads.config import read_source
from matchlib.downloads.dataset import unpack_dataset
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    unpack_dataset(
        read_source(Path(snakemake.params.description)),
        Path("data/archives") / snakemake.wildcards.source,
        Path(snakemake.output.marker).parent,
    )
