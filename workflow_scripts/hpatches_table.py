"""Join the HPatches results of all methods into tables."""

from pathlib import Path

from matchlib.evaluation.homography_result import read_homography_result
from matchlib.evaluation.hpatches import read_result
from matchlib.evaluation.table import homography_table, hpatches_table, write_table
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    results = [read_result(Path(path)) for path in snakemake.input.results]
    write_table(hpatches_table(results), Path(snakemake.output.csv).with_suffix(""))
    homographies = [read_homography_result(Path(path)) for path in snakemake.input.homographies]
    write_table(homography_table(homographies), Path(snakemake.output.homography_csv).with_suffix(""))
