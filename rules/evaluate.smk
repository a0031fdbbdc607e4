rule evaluate_hpatches_method:
    """Matching accuracy and homographies of one method."""
    input:
        index="results/datasets/{dataset}.json",
        features="results/features/{dataset}/{label}.h5",
    output:
        result="results/hpatches/{dataset}/{label}.json",
        homographies=expand(
            "results/homography/{{dataset}}/{{label}}/{name}.json",
            name=HOMOGRAPHY_PROTOCOLS,
        ),
    log:
        "logs/hpatches/{dataset}/{label}.log",
    benchmark:
        "results/benchmarks/hpatches/{dataset}/{label}.tsv"
    threads: 2
    params:
        config=json_of(HPATCHES),
        revision=REVISIONS["hpatches"],
    script:
        "../workflow_scripts/evaluate_hpatches.py"


rule hpatches_table:
    """One table of all methods, as CSV and JSON."""
    input:
        results=hpatches_files("results/hpatches/{dataset}/{label}.json"),
        homographies=homography_files(),
    output:
        csv="results/hpatches/table.csv",
        json="results/hpatches/table.json",
        homography_csv="results/homography/table.csv",
        homography_json="results/homography/table.json",
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
