"""Retrieve the reference images that look most like each query."""

import json
from pathlib import Path

from matchlib.jobs.localisation import retrieve
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    retrieve(
        json.loads(snakemake.params.config),
        f"evaluate_{snakemake.wildcards.challenge}",
        index=Path(snakemake.input.index),
        features=Path(snakemake.input.features),
        out=Path(snakemake.output.pairs),
    )
