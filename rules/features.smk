rule list_images:
    """The images of a dataset that is an evaluation by itself."""
    input:
        index="results/datasets/{dataset}.json",
    output:
        images="results/image_sets/{dataset}.json",
    log:
        "logs/image_sets/{dataset}.log",
    script:
        "../workflow_scripts/list_images.py"


rule extract_features:
    """Features of every image of a dataset by one method."""
    input:
        images="results/image_sets/{image_set}.json",
        weights=weights_of,
        files=files_of_label,
        extension=ancient("build/extension/build_info.json"),
    output:
        features="results/features/{image_set}/{label}.h5",
    log:
        "logs/features/{image_set}/{label}.log",
    benchmark:
        "results/benchmarks/features/{image_set}/{label}.tsv"
    threads: few_threads
    resources:
        gpu=gpus_of_label,
        mem_mb=8000,
    params:
        method=lambda wildcards: LABELS[wildcards.label].method,
        settings=lambda wildcards: json.dumps(
            dict(LABELS[wildcards.label].settings), sort_keys=True
        ),
        revision=REVISIONS["features"],
    script:
        "../workflow_scripts/extract_features.py"


rule extract_all:
    input:
        hpatches_files("results/features/{dataset}/{label}.h5"),
        pose_files("results/features/pose-{dataset}/{label}.h5"),
