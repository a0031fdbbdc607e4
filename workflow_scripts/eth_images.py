"""List the images of a scene, before its pairs are retrieved."""

import json
from pathlib import Path

from matchlib.jobs.reconstruction import list_images
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    list_images(
        json.loads(snakemake.params.config),
        index=Path(snakemake.input.index),
        scene=snakemake.wildcards.scene,
        images=Path(snakemake.output.images),
    )
