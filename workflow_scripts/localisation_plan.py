"""Decide which images and pairs a localisation needs."""

import json
from pathlib import Path

from matchlib.jobs.localisation import plan
from matchlib.logs import log_to

images, retrieved = snakemake.output.get("images"), snakemake.input.get("retrieved")
with log_to(snakemake.log[0]):
    plan(
        json.loads(snakemake.params.config),
        f"evaluate_{snakemake.wildcards.challenge}",
        index=Path(snakemake.input.index),
        out=Path(snakemake.output.marker).parent,
        images=Path(images) if images else None,
        retrieved=Path(retrieved) if retrieved else None,
    )
