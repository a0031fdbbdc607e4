"""Say where a dataset lies and which scenes it has."""

import json
from pathlib import Path

from matchlib.config import DatasetConfig
from matchlib.jobs.data import index_dataset
from matchlib.logs import log_to
from matchlib.typed_yaml import load_typed

with log_to(snakemake.log[0]):
    name = snakemake.wildcards.dataset
    index_dataset(
        name,
        load_typed(DatasetConfig, json.loads(snakemake.params.config), f"datasets.{name}"),
        source=Path(snakemake.params.source),
        unpacked=Path(snakemake.input.unpacked) if snakemake.input.unpacked else None,
        out=Path(snakemake.output.index),
    )
