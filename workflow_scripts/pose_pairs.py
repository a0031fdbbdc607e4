"""Write the image pairs that relative poses are estimated for."""

import json
from pathlib import Path

from matchlib.jobs.pose import write_pose_list
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    write_pose_list(
        json.loads(snakemake.params.config),
        index=Path(snakemake.input.index),
        match_sets=Path(snakemake.params.match_sets),
        out=Path(snakemake.output.pairs),
        images=Path(snakemake.output.images),
    )
