"""Join the PCK results of all methods into tables."""

from pathlib import Path

from matchlib.evaluation.pck_result import read_pck_ablation, read_pck_result
from matchlib.evaluation.pck_table import pck_ablation_table, pck_table
from matchlib.evaluation.table import write_table
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    results = [read_pck_result(Path(path)) for path in snakemake.input.results]
    write_table(pck_table(results), Path(snakemake.output.csv).with_suffix(""))
    ablations = [read_pck_ablation(Path(path)) for path in snakemake.input.ablation]
    write_table(pck_ablation_table(ablations), Path(snakemake.output.ablation_csv).with_suffix(""))
