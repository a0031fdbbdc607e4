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
    threads: few_threads
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


rule pck_points:
    """The places that every method is asked about, drawn once for all."""
    input:
        index="results/datasets/{dataset}.json",
    output:
        points="results/pck/{dataset}/{protocol}/points.h5",
    log:
        "logs/pck/{dataset}/{protocol}/points.log",
    params:
        protocol=lambda wildcards: json_of(PCK_PROTOCOLS[wildcards.protocol]),
        revision=REVISIONS["pck"],
    script:
        "../workflow_scripts/pck_points.py"


rule evaluate_pck_method:
    """PCK of one method by all protocols."""
    input:
        index="results/datasets/{dataset}.json",
        points=expand(
            "results/pck/{{dataset}}/{protocol}/points.h5", protocol=PCK_PROTOCOLS
        ),
        weights=weights_of,
        files=files_of_label,
        extension=ancient("build/extension/build_info.json"),
    output:
        results=expand(
            "results/pck/{{dataset}}/{protocol}/{{label}}.json", protocol=PCK_PROTOCOLS
        ),
    log:
        "logs/pck/{dataset}/{label}.log",
    benchmark:
        "results/benchmarks/pck/{dataset}/{label}.tsv"
    resources:
        gpu=gpus_of_label,
        mem_mb=8000,
    params:
        protocols=[json_of(protocol) for protocol in PCK_PROTOCOLS.values()],
        method=lambda wildcards: LABELS[wildcards.label].method,
        settings=lambda wildcards: json.dumps(
            dict(LABELS[wildcards.label].settings), sort_keys=True
        ),
        revision=REVISIONS["pck"],
    script:
        "../workflow_scripts/evaluate_pck.py"


rule pck_ablation_method:
    """The same descriptors searched exactly and approximately."""
    input:
        index="results/datasets/{dataset}.json",
        points="results/pck/{dataset}/{protocol}/points.h5",
        weights=weights_of,
        files=files_of_label,
        extension=ancient("build/extension/build_info.json"),
    output:
        result="results/pck/{dataset}/{protocol}/ablation/{label}.json",
    log:
        "logs/pck/{dataset}/{protocol}/ablation/{label}.log",
    resources:
        gpu=gpus_of_label,
        mem_mb=8000,
    params:
        protocol=rules.pck_points.params.protocol,
        method=rules.evaluate_pck_method.params.method,
        settings=rules.evaluate_pck_method.params.settings,
        revision=REVISIONS["pck"],
    script:
        "../workflow_scripts/pck_ablation.py"


rule pck_table:
    """One table of all methods and protocols, and the one that separates descriptor from matcher."""
    input:
        results=pck_files("results/pck/{dataset}/{protocol}/{label}.json"),
        ablation=pck_ablation_files(),
    output:
        csv="results/pck/table.csv",
        json="results/pck/table.json",
        ablation_csv="results/pck/ablation.csv",
        ablation_json="results/pck/ablation.json",
    log:
        "logs/pck/table.log",
    script:
        "../workflow_scripts/pck_table.py"


rule evaluate_pck:
    input:
        rules.pck_table.output if PCK else [],


rule pose_pairs:
    """The image pairs whose relative poses every method is asked for, and the images that they need."""
    input:
        index="results/datasets/{dataset}.json",
        match_sets=lambda wildcards: (
            match_sets_of([wildcards.dataset]) if POSE.list is None else []
        ),
    output:
        pairs="results/pose/{dataset}/pairs.json",
        images="results/image_sets/pose-{dataset}.json",
    log:
        "logs/pose/{dataset}/pairs.log",
    params:
        config=json_of(POSE),
        match_sets="results/match_sets/{dataset}",
        revision=REVISIONS["pose"],
    script:
        "../workflow_scripts/pose_pairs.py"


rule evaluate_pose_method:
    """Relative poses of all pairs from one method's features, by all protocols."""
    input:
        pairs="results/pose/{dataset}/pairs.json",
        images="results/image_sets/pose-{dataset}.json",
        features="results/features/pose-{dataset}/{label}.h5",
    output:
        result="results/pose/{dataset}/{label}.json",
    log:
        "logs/pose/{dataset}/{label}.log",
    benchmark:
        "results/benchmarks/pose/{dataset}/{label}.tsv"
    params:
        config=json_of(POSE),
        revision=REVISIONS["pose"],
    script:
        "../workflow_scripts/evaluate_pose.py"


rule pose_table:
    """One table of all methods and protocols."""
    input:
        results=pose_files("results/pose/{dataset}/{label}.json"),
    output:
        csv="results/pose/table.csv",
        json="results/pose/table.json",
    log:
        "logs/pose/table.log",
    script:
        "../workflow_scripts/pose_table.py"


rule evaluate_pose:
    input:
        rules.pose_table.output if POSE else [],


rule evaluate_all:
    input:
        rules.evaluate_hpatches.input,
        rules.evaluate_pck.input,
        rules.evaluate_pose.input,
        rules.evaluate_aachen.input,
        rules.evaluate_aachen_v1_1.input,
        rules.evaluate_eth.input,
