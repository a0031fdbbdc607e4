rule extract_features:
    """Features of every image of a dataset by one method."""
    input:
        index="results/datasets/{dataset}.json",
        weights=weights_of,
        files=files_of_label,
        extension=ancient("build/extension/build_info.json"),
    output:
        features="results/features/{dataset}/{label}.h5",
    log:
        "logs/features/{dataset}/{label}.log",
    benchmark:
        "results/benchmarks/features/{dataset}/{label}.tsv"
    threads: 2
    resources:
        gpu=lambda wildcards: 1 if LABELS[wildcards.label].run else 0,
        mem_mb=8000,
    params:
        method=lambda wildcards: LABELS[wildcards.label].method,
        settings=lambda wildcards: json.dumps(
            dict(LABELS[wildcards.label].settings), sort_keys=True
        ),
        format=lambda wildcards: FORMATS[wildcards.dataset],
        revision=REVISIONS["features"],
    script:
        "../workflow_scripts/extract_features.py"


rule extract_all:
    input:
        hpatches_files("results/features/{dataset}/{label}.h5"),
