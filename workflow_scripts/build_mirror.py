"""Generate the demo world."""

import json
from pathlib import Path

from matchlib.logs import log_to
from matchlib.mirror.build import build_mirror
from matchlib.mirror.config import MirrorConfig
from matchlib.typed_yaml import load_typed

with log_to(snakemake.log[0]):
    build_mirror(
        load_typed(MirrorConfig, json.loads(snakemake.params.config), "mirror"),
        Path(snakemake.output.marker).parent,
        workers=snakemake.threads,
    )
