"""Fetch one archive."""

import json
from pathlib import Path

from matchlib.downloads.config import FetchPolicy, read_source
from matchlib.downloads.dataset import download_archive
from matchlib.logs import log_to
from matchlib.typed_yaml import load_typed

with log_to(snakemake.log[0]):
    download_archive(
        read_source(Path(snakemake.params.description)),
        snakemake.wildcards.archive,
        Path(snakemake.output.marker).parent,
        mirror_root=Path("results/mirror").resolve(),
        policy=load_typed(FetchPolicy, json.loads(snakemake.params.policy), "downloads"),
    )
