"""Join the HPatches results of all methods into one table."""

from pathlib import Path

from matchlib.evaluation.hpatches import read_result
from matchlib.evaluation.table import hpatches_table, write_table
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    table = hpatches_table([read_result(Path(path)) for path in snakemake.input.results])
    write_table(table, csv=Path(snakemake.output.csv), json=Path(snakemake.output.json))
