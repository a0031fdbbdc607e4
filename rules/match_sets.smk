rule match_set:
    """Pairs of one scene with correspondences, filtered and drawn."""
    input:
        index="results/datasets/{dataset}.json",
    output:
        marker="results/match_sets/{dataset}/{match_set}/.complete",
    log:
        "logs/match_sets/{dataset}/{match_set}.log",
    resources:
        mem_mb=1500,
    params:
        config=lambda wildcards: MATCH_SET_SETTINGS[wildcards.dataset],
        scene=lambda wildcards: wildcards.match_set.removesuffix(match_set_folder("")),
        format=lambda wildcards: FORMATS[wildcards.dataset],
        seed=0,
        revision=REVISIONS["match_sets"],
        regenerate=REGENERATE,
    script:
        "../workflow_scripts/build_match_set.py"


rule match_sets_all:
    input:
        lambda wildcards: match_sets_of(TRAINING_DATASETS),
