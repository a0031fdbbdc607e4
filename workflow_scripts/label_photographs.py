"""Label a shard of a dataset's photographs."""

import json
from pathlib import Path

from matchlib.jobs.data import label_shard
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    label_shard(
        method=snakemake.params.method,
        settings=json.loads(snakemake.params.settings),
        weights=Path(snakemake.input.weights),
        index=Path(snakemake.input.index),
        shard=int(snakemake.wildcards.shard),
        shards=int(snakemake.wildcards.shards),
        seed=snakemake.params.seed,
        out=Path(snakemake.output.marker).parent,
    )
