rule download_archive:
    """All files of one archive, resumed where an earlier attempt stopped, checked before they count."""
    input:
        mirror=mirror_needed_by,
    output:
        marker="data/archives/{source}/{archive}/.complete",
    log:
        "logs/download/{source}/{archive}.log",
    resources:
        downloads=1,
        runtime="2d",
    params:
        archive=lambda wildcards: json_of(
            W.sources[DOWNLOADS[wildcards.source]].archive(wildcards.archive)
        ),
        description=lambda wildcards: W.source_path(DOWNLOADS[wildcards.source]),
        policy=json_of(CFG.downloads),
        revision=REVISIONS["download"],
    script:
        "../workflow_scripts/download_archive.py"


rule unpack_dataset:
    """All archives of a dataset, verified, into its root; nothing half-unpacked ever lies there."""
    input:
        archives=lambda wildcards: archives_of(wildcards.source),
    output:
        marker="data/{source}/.complete",
    log:
        "logs/unpack/{source}.log",
    resources:
        runtime="12h",
    params:
        description=lambda wildcards: W.source_path(DOWNLOADS[wildcards.source]),
        revision=REVISIONS["unpack"],
    script:
        "../workflow_scripts/unpack_dataset.py"


rule index_dataset:
    """Where a dataset lies and which scenes it has."""
    input:
        unpacked=lambda wildcards: unpacked(wildcards.dataset),
    output:
        index="results/datasets/{dataset}.json",
    log:
        "logs/datasets/{dataset}.log",
    wildcard_constraints:
        dataset=alternatives(
            name for name, scenes in STATIC_SCENES.items() if scenes is not None
        ),
    params:
        config=lambda wildcards: json_of(CFG.datasets[wildcards.dataset]),
        source=lambda wildcards: W.source_path(wildcards.dataset),
    script:
        "../workflow_scripts/index_dataset.py"


# The same where scenes are found only after unpacking. A checkpoint, even a finished one, makes Snakemake evaluate the
# whole graph twice, so datasets whose scenes are known before do without.
checkpoint find_scenes:
    input:
        unpacked=rules.index_dataset.input.unpacked,
    output:
        index="results/datasets/{dataset}.json",
    log:
        "logs/datasets/{dataset}.log",
    wildcard_constraints:
        dataset=alternatives(
            name for name, scenes in STATIC_SCENES.items() if scenes is None
        ),
    params:
        config=rules.index_dataset.params.config,
        source=rules.index_dataset.params.source,
    script:
        "../workflow_scripts/index_dataset.py"


rule download_all:
    input:
        [marker for source in DOWNLOADS for marker in archives_of(source)],
