"""Draw the places that every method is asked about."""

import json
from pathlib import Path

from matchlib.jobs.evaluation import run_pck_points
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    run_pck_points(
        json.loads(snakemake.params.protocol),
        root=Path(json.loads(Path(snakemake.input.index).read_text())["root"]),
        out=Path(snakemake.output.points),
    )
