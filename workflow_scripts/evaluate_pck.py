"""PCK of one method by all protocols."""

import json
from pathlib import Path

from matchlib.jobs.evaluation import run_pck
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    run_pck(
        [json.loads(text) for text in snakemake.params.protocols],
        method=snakemake.params.method,
        settings=json.loads(snakemake.params.settings),
        weights=Path(snakemake.input.weights) if snakemake.input.get("weights") else None,
        root=Path(json.loads(Path(snakemake.input.index).read_text())["root"]),
        points=[Path(path) for path in snakemake.input.points],
        label=snakemake.wildcards.label,
        out=[Path(path) for path in snakemake.output.results],
    )
