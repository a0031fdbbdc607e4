"""Write the description of one training stage."""

import json
from pathlib import Path

from matchlib.config import DatasetConfig, RunConfig
from matchlib.jobs.training import describe_training, write_training_job
from matchlib.logs import log_to
from matchlib.typed_yaml import load_typed

with log_to(snakemake.log[0]):
    job = describe_training(
        run=snakemake.wildcards.run,
        stage=snakemake.wildcards.stage,
        settings=load_typed(RunConfig, json.loads(snakemake.params.run), f"runs.{snakemake.wildcards.run}"),
        datasets=[
            load_typed(DatasetConfig, json.loads(text), "datasets") for text in snakemake.params.datasets
        ],
        indices=[Path(path) for path in snakemake.input.indices],
        match_sets=Path("results/match_sets"),
        labels=list(snakemake.params.labels),
        initial_weights=snakemake.params.initial or None,
    )
    write_training_job(job, Path(snakemake.output.job))
