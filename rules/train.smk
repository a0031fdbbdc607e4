rule training_job:
    """All that one training stage depends on, as a file that `matchlib train` can run by hand."""
    input:
        indices=lambda wildcards: [
            dataset_index(name) for name in datasets_of(wildcards.run, wildcards.stage)
        ],
    output:
        job="results/train/{run}/{stage}.job.json",
    log:
        "logs/train/{run}/{stage}.job.log",
    params:
        run=lambda wildcards: run_settings(wildcards.run, wildcards.stage),
        datasets=lambda wildcards: [
            DATASET_SETTINGS[name]
            for name in datasets_of(wildcards.run, wildcards.stage)
        ],
        labels=lambda wildcards: label_folders_of(wildcards.run, wildcards.stage),
        initial=initial_weights_of,
    script:
        "../workflow_scripts/training_job.py"


rule train_stage:
    """One stage of one run. Killed at any moment, it goes on from its last checkpoint with the same result."""
    input:
        job="results/train/{run}/{stage}.job.json",
        match_sets=lambda wildcards: match_sets_of(
            filter(W.has_scenes, datasets_of(wildcards.run, wildcards.stage))
        ),
        labels=labels_of,
        initial=initial_weights_of,
        files=files_of_stage,
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
        gpu=gpus,
        mem_mb=16000,
        runtime="2d",
    params:
        revision=REVISIONS["train"],
        out=subpath(output.marker, parent=True),
    shell:
        "matchlib train {input.job:q} --out {params.out:q} > {log:q} 2>&1"


rule label_photographs:
    """Interest points for every n-th photograph of a dataset, by the weights of a stage; resumable inside."""
    input:
        index="results/datasets/{dataset}.json",
        weights="results/train/{run}/{stage}/weights.safetensors",
        extension=ancient("build/extension/build_info.json"),
    output:
        marker="results/labels/{run}/{stage}/{dataset}/{shards}-shards/{shard}/.complete",
    log:
        "logs/labels/{run}/{stage}/{dataset}/{shards}-shards/{shard}.log",
    benchmark:
        "results/benchmarks/labels/{run}/{stage}/{dataset}/{shards}-shards/{shard}.tsv"
    threads: few_threads
    resources:
        gpu=gpus,
        mem_mb=8000,
        runtime="2d",
    params:
        method=lambda wildcards: CFG.runs[wildcards.run].method,
        settings=lambda wildcards: json.dumps(
            dict(CFG.runs[wildcards.run].settings), sort_keys=True
        ),
        seed=lambda wildcards: CFG.runs[wildcards.run].seed,
        revision=REVISIONS["labels"],
    script:
        "../workflow_scripts/label_photographs.py"


rule train_all:
    input:
        [
            f"results/train/{run}/{stage}/.complete"
            for run, settings in CFG.runs.items()
            for stage in settings.stages
        ],
