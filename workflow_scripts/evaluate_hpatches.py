"""Evaluate one method on HPatches sequences."""

import json
from pathlib import Path

from matchlib.evaluation.config import HPatchesProtocol
from matchlib.evaluation.hpatches import write_result
from matchlib.evaluation.hpatches_run import evaluate
from matchlib.logs import log_to
from matchlib.typed_yaml import load_typed

with log_to(snakemake.log[0]):
    result = evaluate(
        features=Path(snakemake.input.features),
        dataset_root=Path(json.loads(Path(snakemake.input.index).read_text())["root"]),
        protocol=load_typed(HPatchesProtocol, json.loads(snakemake.params.protocol), "protocol"),
        label=snakemake.wildcards.label,
    )
    write_result(result, Path(snakemake.output.result))
