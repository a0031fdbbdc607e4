"""One step of a localisation: import, verify, triangulate, register or score."""

import json
from pathlib import Path

from matchlib.jobs.localisation import run_step
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    run_step(
        snakemake.params.step,
        json.loads(snakemake.params.config),
        f"evaluate_{snakemake.wildcards.challenge}",
        index=Path(snakemake.input.index),
        plan_folder=Path(snakemake.input.plan).parent,
        features=Path(snakemake.input.features),
        matches=[Path(path).parent for path in snakemake.input.matches],
        folder=Path(snakemake.params.folder),
        label=snakemake.wildcards.label,
    )
