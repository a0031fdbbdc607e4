rule evaluate_hpatches_method:
    """Matching accuracy and homographies of one method."""
    input:
        index="results/datasets/{dataset}.json",
        features="results/features/{dataset}/{label}.h5",
    output:
        result="results/hpatches/{dataset}/{label}.json",
    log:
        "logs/hpatches/{dataset}/{label}.log",
    benchmark:
        "results/benchmarks/hpatches/{dataset}/{label}.tsv"
    threads: 2
    params:
        protocol=json_of(HPATCHES and HPATCHES.protocol),
        revision=REVISIONS["hpatches"],
    script:
        "../workflow_scripts/evaluate_hpatches.py"


rule hpatches_table:
    """One table of all methods, as CSV and JSON."""
    input:
        results=hpatches_files("hpatches", "json"),
    output:
        csv="results/hpatches/table.csv",
        json="results/hpatches/table.json",
    log:
        "logs/hpatches/table.log",
    script:
        "../workflow_scripts/hpatches_table.py"


rule evaluate_hpatches:
    input:
        rules.hpatches_table.output if HPATCHES else [],


rule evaluate_all:
    input:
        rules.evaluate_hpatches.input,
