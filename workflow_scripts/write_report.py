"""Write the report page."""

import json
from pathlib import Path

from matchlib.logs import log_to
from matchlib.visualization.build import build_report

with log_to(snakemake.log[0]):
    published, index = snakemake.params.published, snakemake.input.get("index")
    pose_pairs, pose_images = snakemake.input.get("pose_pairs"), snakemake.input.get("pose_images")
    build_report(
        Path(snakemake.output.page),
        results=[Path(path) for path in snakemake.input.results],
        homographies=[Path(path) for path in snakemake.input.homographies],
        training=[Path(path).parent for path in snakemake.input.training],
        features=dict(zip(snakemake.params.labels, map(Path, snakemake.input.features), strict=True)),
        pck=[Path(path) for path in snakemake.input.pck],
        pck_ablation=[Path(path) for path in snakemake.input.pck_ablation],
        poses=[Path(path) for path in snakemake.input.poses],
        pose_features=dict(
            zip(snakemake.params.pose_labels, map(Path, snakemake.input.pose_features), strict=True)
        ),
        pose_pairs=Path(pose_pairs) if pose_pairs else None,
        pose_root=Path(json.loads(Path(pose_images).read_text())["root"]) if pose_images else None,
        localisations=[Path(path).parents[1] for path in snakemake.input.localisations],
        reconstructions=[Path(path).parent for path in snakemake.input.reconstructions],
        hpatches_root=Path(json.loads(Path(index).read_text())["root"]) if index else None,
        published=sorted(Path(published).glob("*.npy")) if published else [],
        about=dict(snakemake.params.about),
    )
