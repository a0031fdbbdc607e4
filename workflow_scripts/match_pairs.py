"""Match one shard of a list of image pairs."""

import json
from pathlib import Path

from matchlib.api import choose_device
from matchlib.logs import log_to
from matchlib.matching.at_scale import match_shard
from matchlib.matching.config import MatcherConfig
from matchlib.typed_yaml import load_typed

with log_to(snakemake.log[0]):
    match_shard(
        Path(snakemake.input.features),
        Path(snakemake.input.pairs),
        Path(snakemake.output.marker).parent,
        config=load_typed(MatcherConfig, json.loads(snakemake.params.matcher), "matcher"),
        shard=int(snakemake.wildcards.shard),
        shards=int(snakemake.wildcards.shards),
        device=choose_device("auto"),
    )
