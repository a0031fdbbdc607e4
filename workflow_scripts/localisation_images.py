"""List the images of a localisation, before its query pairs are retrieved."""

import json
from pathlib import Path

from matchlib.jobs.localisation import list_images
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    list_images(
        json.loads(snakemake.params.config),
        f"evaluate_{snakemake.wildcards.challenge}",
        index=Path(snakemake.input.index),
        images=Path(snakemake.output.images),
    )
