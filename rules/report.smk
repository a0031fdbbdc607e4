rule write_report:
    """One self-contained page: tables, curves, training, matches, and where every number comes from."""
    input:
        tables=rules.evaluate_all.input,
        results=hpatches_files("results/hpatches/{dataset}/{label}.json"),
        homographies=homography_files(),
        features=hpatches_files("results/features/{dataset}/{label}.h5"),
        index=dataset_index(HPATCHES.dataset) if HPATCHES else [],
        pck=pck_files("results/pck/{dataset}/{protocol}/{label}.json"),
        pck_ablation=pck_ablation_files(),
        poses=pose_files("results/pose/{dataset}/{label}.json"),
        pose_features=pose_files("results/features/pose-{dataset}/{label}.h5"),
        pose_pairs=f"results/pose/{POSE.dataset}/pairs.json" if POSE else [],
        pose_images=f"results/image_sets/pose-{POSE.dataset}.json" if POSE else [],
        localisations=[
            path
            for challenge in LOCALISATIONS
            for path in localisation_files(challenge)
        ],
        reconstructions=eth_files(),
        training=rules.train_all.input,
    output:
        page="results/report/index.html",
    log:
        "logs/report.log",
    params:
        labels=W.hpatches_labels(),
        pose_labels=W.pose_labels(),
        published=HPATCHES.published if HPATCHES else None,
        about=about_this_run(),
        revision=REVISIONS["report"],
    script:
        "../workflow_scripts/write_report.py"


rule report:
    input:
        rules.write_report.output,
