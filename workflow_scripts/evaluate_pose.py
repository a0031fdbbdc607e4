"""Estimate the relative poses of all pairs from one method's features, and measure their errors."""

import json
from pathlib import Path

from matchlib.jobs.pose import run_pose
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    run_pose(
        json.loads(snakemake.params.config),
        features=Path(snakemake.input.features),
        pairs=Path(snakemake.input.pairs),
        images=Path(snakemake.input.images),
        label=snakemake.wildcards.label,
        out=Path(snakemake.output.result),
    )
