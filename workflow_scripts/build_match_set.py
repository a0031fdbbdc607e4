"""Build the match set of one scene."""

import json
from pathlib import Path

from matchlib.logs import log_to
from matchlib.match_sets.build import build_match_set
from matchlib.match_sets.config import MatchSetConfig
from matchlib.typed_yaml import load_typed

with log_to(snakemake.log[0]):
    index = json.loads(Path(snakemake.input.index).read_text())
    build_match_set(
        dataset_format=snakemake.params.format,
        root=Path(index["root"]),
        scene=snakemake.params.scene,
        out=Path(snakemake.output.marker).parent,
        config=load_typed(MatchSetConfig, json.loads(snakemake.params.config), "match_sets"),
        seed=snakemake.params.seed,
        regenerate=snakemake.params.regenerate,
    )
