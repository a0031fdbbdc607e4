"""Join the results of all methods into a table."""

from pathlib import Path

from matchlib.jobs.localisation import write_tables
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    write_tables([Path(path) for path in snakemake.input.results], Path(snakemake.output.csv).with_suffix(""))
