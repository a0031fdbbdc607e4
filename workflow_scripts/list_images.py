"""List the images of a dataset that features are needed of."""

from pathlib import Path

from matchlib.jobs.data import list_evaluation_images
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    list_evaluation_images(Path(snakemake.input.index), Path(snakemake.output.images))
