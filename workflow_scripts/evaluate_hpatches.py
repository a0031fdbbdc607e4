"""Evaluate one method on HPatches sequences: matching accuracy, and homographies by every protocol."""

import json
from pathlib import Path

from matchlib.jobs.evaluation import run_hpatches
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    run_hpatches(
        json.loads(snakemake.params.config),
        features=Path(snakemake.input.features),
        root=Path(json.loads(Path(snakemake.input.index).read_text())["root"]),
        label=snakemake.wildcards.label,
        result=Path(snakemake.output.result),
        homographies=[Path(path) for path in snakemake.output.homographies],
    )
