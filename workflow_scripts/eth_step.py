"""One step of a reconstruction: import, verify, map or statistics."""

import json
from pathlib import Path

from matchlib.jobs.reconstruction import run_step
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    run_step(
        snakemake.params.step,
        json.loads(snakemake.params.config),
        index=Path(snakemake.input.index),
        scene=snakemake.wildcards.scene,
        pairs=Path(snakemake.input.pairs),
        features=Path(snakemake.input.features),
        matches=[Path(path).parent for path in snakemake.input.matches],
        folder=Path(snakemake.params.folder),
        label=snakemake.wildcards.label,
        repeat=int(snakemake.wildcards.get("repeat", 0)),
    )
