"""Choose the image pairs of a scene, and list its images where that is not done before."""

import json
from pathlib import Path

from matchlib.jobs.reconstruction import list_images, list_pairs
from matchlib.logs import log_to

with log_to(snakemake.log[0]):
    config, scene = json.loads(snakemake.params.config), snakemake.wildcards.scene
    index, features = Path(snakemake.input.index), snakemake.input.get("features")
    if images := snakemake.output.get("images"):
        list_images(config, index=index, scene=scene, images=Path(images))
    list_pairs(
        config,
        index=index,
        scene=scene,
        pairs=Path(snakemake.output.pairs),
        features=Path(features) if features else None,
    )
