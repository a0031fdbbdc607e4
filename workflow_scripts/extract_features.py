"""Extract the features of a dataset's images by one method."""

import json
from pathlib import Path

from matchlib.jobs.evaluation import run_extraction
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    run_extraction(
        method=snakemake.params.method,
        settings=json.loads(snakemake.params.settings),
        weights=Path(snakemake.input.weights) if snakemake.input.get("weights") else None,
        images=Path(snakemake.input.images),
        out=Path(snakemake.output.features),
    )
