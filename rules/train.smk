rule training_job:
    """All that one training stage depends on, as a file that `matchlib train` can run by hand."""
    input:
        indices=lambda wildcards: [
            dataset_index(name) for name in CFG.runs[wildcards.run].train_on
        ],
    output:
        job="results/train/{run}/{stage}.job.json",
    log:
        "logs/train/{run}/{stage}.job.log",
    params:
        run=lambda wildcards: run_settings(wildcards.run, wildcards.stage),
        filters=lambda wildcards: [
            MATCH_SET_SETTINGS[name] for name in CFG.runs[wildcards.run].train_on
        ],
        initial=initial_weights_of,
    script:
        "../workflow_scripts/training_job.py"


rule train_stage:
    """One stage of one run. Killed at any moment, it goes on from its last checkpoint with the same result."""
    input:
        job="results/train/{run}/{stage}.job.json",
        match_sets=lambda wildcards: match_sets_of(CFG.runs[wildcards.run].train_on),
        initial=initial_weights_of,
        extension=ancient("build/extension/build_info.json"),  # a rebuild must not retrain
    output:
        marker="results/train/{run}/{stage}/.complete",
        weights="results/train/{run}/{stage}/weights.safetensors",
        last="results/train/{run}/{stage}/last.safetensors",
        initial="results/train/{run}/{stage}/initial.safetensors",
        history="results/train/{run}/{stage}/history.jsonl",
    log:
        "logs/train/{run}/{stage}.log",
    benchmark:
        "results/benchmarks/train/{run}/{stage}.tsv"
    threads: 8
    resources:
        gpu=1,
        mem_mb=16000,
        runtime="2d",
    params:
        revision=REVISIONS["train"],
        out=subpath(output.marker, parent=True),
    shell:
        "matchlib train {input.job:q} --out {params.out:q} > {log:q} 2>&1"


rule train_all:
    input:
        [
            f"results/train/{run}/{stage}/.complete"
            for run, settings in CFG.runs.items()
            for stage in settings.stages
        ],
