"""Choose the image pairs of a scene."""

import json
from pathlib import Path

from matchlib.jobs.reconstruction import list_pairs
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    list_pairs(
        json.loads(snakemake.params.config),
        index=Path(snakemake.input.index),
        scene=snakemake.wildcards.scene,
        pairs=Path(snakemake.output.pairs),
        images=Path(snakemake.output.images),
    )
