# Evaluations that need a camera beyond pairs: localisation (Aachen) and reconstruction (ETH). Matches are made by shards of
# a pair list; every step with COLMAP is a job of its own, whole or absent.


rule match_pairs:
    """Matches of every n-th part of a list of image pairs; resumable inside."""
    input:
        features="results/features/{image_set}/{label}.h5",
        pairs=pairs_of_image_set,
        extension=ancient("build/extension/build_info.json"),
    output:
        marker="results/matches/{image_set}/{label}/{shards}-shards/{shard}/.complete",
    log:
        "logs/matches/{image_set}/{label}/{shards}-shards/{shard}.log",
    benchmark:
        "results/benchmarks/matches/{image_set}/{label}/{shards}-shards/{shard}.tsv"
    threads: few_threads
    resources:
        gpu=gpus,
        mem_mb=4000,
    params:
        matcher=lambda wildcards: json_of(
            evaluation_of(wildcards.image_set).protocol.matcher
        ),
        revision=REVISIONS["matches"],
    script:
        "../workflow_scripts/match_pairs.py"


# ---------------------------------------------------------------- localisation
rule localisation_plan:
    """Which images and pairs a localisation needs; the same for all methods."""
    input:
        index=lambda wildcards: dataset_index(
            LOCALISATIONS[wildcards.challenge].dataset
        ),
    output:
        marker="results/{challenge}/plan/.complete",
        pairs="results/{challenge}/plan/pairs.txt",
        images="results/image_sets/localisation-{challenge}.json",
    log:
        "logs/{challenge}/plan.log",
    wildcard_constraints:
        challenge=alternatives(retrieving(False)),
    params:
        config=lambda wildcards: json_of(LOCALISATIONS[wildcards.challenge]),
        revision=REVISIONS["localisation"],
    script:
        "../workflow_scripts/localisation_plan.py"


# Where pairs are retrieved, the images are listed first: images -> features of one label -> pairs.
rule localisation_images:
    """All reference images and queries."""
    input:
        index=rules.localisation_plan.input.index,
    output:
        images="results/image_sets/localisation-{challenge}.json",
    log:
        "logs/{challenge}/images.log",
    wildcard_constraints:
        challenge=alternatives(retrieving(True)),
    params:
        config=rules.localisation_plan.params.config,
        revision=REVISIONS["localisation"],
    script:
        "../workflow_scripts/localisation_images.py"


rule localisation_retrieve:
    """The reference images that look most like each query; the same for all methods."""
    input:
        index=rules.localisation_plan.input.index,
        features=lambda wildcards: features_to_retrieve_by(
            f"localisation-{wildcards.challenge}"
        ),
    output:
        pairs="results/{challenge}/retrieved.txt",
    log:
        "logs/{challenge}/retrieve.log",
    wildcard_constraints:
        challenge=alternatives(retrieving(True)),
    threads: 4
    resources:
        mem_mb=4000,
    params:
        config=rules.localisation_plan.params.config,
        revision=REVISIONS["retrieval"],
    script:
        "../workflow_scripts/localisation_retrieve.py"


use rule localisation_plan as localisation_plan_retrieved with:
    input:
        index=rules.localisation_plan.input.index,
        retrieved="results/{challenge}/retrieved.txt",
    output:
        marker="results/{challenge}/plan/.complete",
        pairs="results/{challenge}/plan/pairs.txt",
    wildcard_constraints:
        challenge=alternatives(retrieving(True)),


rule localisation_import:
    """Features and matches of one method in a database."""
    input:
        index=rules.localisation_plan.input.index,
        plan="results/{challenge}/plan/.complete",
        features="results/features/localisation-{challenge}/{label}.h5",
        matches=lambda wildcards: match_shards_of(
            f"localisation-{wildcards.challenge}", wildcards.label
        ),
    output:
        database="results/{challenge}/{label}/database.db",
    log:
        "logs/{challenge}/{label}/import.log",
    params:
        step="import",
        folder=subpath(output.database, parent=True),
        config=rules.localisation_plan.params.config,
        revision=REVISIONS["localisation"],
    script:
        "../workflow_scripts/localisation_step.py"


use rule localisation_import as localisation_verify with:
    input:
        **dict(rules.localisation_import.input),
        database="results/{challenge}/{label}/database.db",
    output:
        database="results/{challenge}/{label}/verified.db",
    log:
        "logs/{challenge}/{label}/verify.log",
    threads: 8
    params:
        step="verify",
        folder=subpath(output.database, parent=True),
        config=rules.localisation_import.params.config,
        revision=rules.localisation_import.params.revision,


use rule localisation_import as localisation_triangulate with:
    input:
        **dict(rules.localisation_import.input),
        database="results/{challenge}/{label}/verified.db",
    output:
        marker="results/{challenge}/{label}/model/.complete",
    log:
        "logs/{challenge}/{label}/triangulate.log",
    params:
        step="triangulate",
        folder=subpath(output.marker, ancestor=2),
        config=rules.localisation_import.params.config,
        revision=rules.localisation_import.params.revision,


use rule localisation_import as localisation_register with:
    input:
        **dict(rules.localisation_import.input),
        database="results/{challenge}/{label}/verified.db",
        model="results/{challenge}/{label}/model/.complete",
    output:
        marker="results/{challenge}/{label}/poses/.complete",
    log:
        "logs/{challenge}/{label}/register.log",
    params:
        step="register",
        folder=subpath(output.marker, ancestor=2),
        config=rules.localisation_import.params.config,
        revision=rules.localisation_import.params.revision,


use rule localisation_import as localisation_score with:
    input:
        **dict(rules.localisation_import.input),
        poses="results/{challenge}/{label}/poses/.complete",
    output:
        result="results/{challenge}/{label}/scores/result.json",
    log:
        "logs/{challenge}/{label}/score.log",
    params:
        step="score",
        folder=subpath(output.result, ancestor=2),
        config=rules.localisation_import.params.config,
        revision=rules.localisation_import.params.revision,


rule localisation_table:
    """One table of all methods."""
    input:
        results=lambda wildcards: localisation_files(wildcards.challenge),
    output:
        csv="results/{challenge}/table.csv",
        json="results/{challenge}/table.json",
    log:
        "logs/{challenge}/table.log",
    script:
        "../workflow_scripts/localisation_table.py"


# ---------------------------------------------------------------- reconstruction
rule eth_pairs:
    """The pairs of a scene, the same for all methods."""
    input:
        index=lambda wildcards: dataset_index(ETH.scenes[wildcards.scene]),
    output:
        pairs="results/eth/{scene}/pairs.txt",
        images="results/image_sets/eth-{scene}.json",
    log:
        "logs/eth/{scene}/pairs.log",
    wildcard_constraints:
        scene=alternatives(scenes_retrieving(False)),
    params:
        config=json_of(ETH),
        revision=REVISIONS["reconstruction"],
    script:
        "../workflow_scripts/eth_pairs.py"


rule eth_images:
    """The images of a scene, before its pairs are retrieved."""
    input:
        index=rules.eth_pairs.input.index,
    output:
        images="results/image_sets/eth-{scene}.json",
    log:
        "logs/eth/{scene}/images.log",
    wildcard_constraints:
        scene=alternatives(scenes_retrieving(True)),
    params:
        config=rules.eth_pairs.params.config,
        revision=REVISIONS["reconstruction"],
    script:
        "../workflow_scripts/eth_images.py"


use rule eth_pairs as eth_pairs_retrieved with:
    input:
        index=rules.eth_pairs.input.index,
        features=lambda wildcards: features_to_retrieve_by(f"eth-{wildcards.scene}"),
    output:
        pairs="results/eth/{scene}/pairs.txt",
    wildcard_constraints:
        scene=alternatives(scenes_retrieving(True)),
    threads: 4
    resources:
        mem_mb=4000,
    params:
        config=rules.eth_pairs.params.config,
        revision=REVISIONS["retrieval"],


rule eth_import:
    """Features and matches of one method in a database."""
    input:
        index=rules.eth_pairs.input.index,
        pairs="results/eth/{scene}/pairs.txt",
        features="results/features/eth-{scene}/{label}.h5",
        matches=lambda wildcards: match_shards_of(
            f"eth-{wildcards.scene}", wildcards.label
        ),
    output:
        database="results/eth/{scene}/{label}/database.db",
    log:
        "logs/eth/{scene}/{label}/import.log",
    params:
        step="import",
        folder=subpath(output.database, parent=True),
        config=json_of(ETH),
        revision=REVISIONS["reconstruction"],
    script:
        "../workflow_scripts/eth_step.py"


use rule eth_import as eth_verify with:
    input:
        **dict(rules.eth_import.input),
        database="results/eth/{scene}/{label}/database.db",
    output:
        database="results/eth/{scene}/{label}/verified.db",
    log:
        "logs/eth/{scene}/{label}/verify.log",
    threads: 8
    params:
        step="verify",
        folder=subpath(output.database, parent=True),
        config=rules.eth_import.params.config,
        revision=rules.eth_import.params.revision,


use rule eth_import as eth_map with:
    input:
        **dict(rules.eth_import.input),
        database="results/eth/{scene}/{label}/verified.db",
    output:
        marker="results/eth/{scene}/{label}/model-{repeat}/.complete",
    log:
        "logs/eth/{scene}/{label}/map-{repeat}.log",
    params:
        step="map",
        folder=subpath(output.marker, ancestor=2),
        config=rules.eth_import.params.config,
        revision=rules.eth_import.params.revision,


use rule eth_import as eth_statistics with:
    input:
        **dict(rules.eth_import.input),
        database="results/eth/{scene}/{label}/verified.db",
        models=expand(
            "results/eth/{{scene}}/{{label}}/model-{repeat}/.complete",
            repeat=range(ETH.protocol.repeats if ETH else 0),
        ),
    output:
        result="results/eth/{scene}/{label}/result.json",
    log:
        "logs/eth/{scene}/{label}/statistics.log",
    params:
        step="statistics",
        folder=subpath(output.result, parent=True),
        config=rules.eth_import.params.config,
        revision=rules.eth_import.params.revision,


rule eth_table:
    """One table of all scenes and methods."""
    input:
        results=eth_files(),
    output:
        csv="results/eth/table.csv",
        json="results/eth/table.json",
        rows="results/eth/table.txt",
    log:
        "logs/eth/table.log",
    script:
        "../workflow_scripts/eth_table.py"


rule evaluate_aachen:
    input:
        localisation_targets("aachen"),


rule evaluate_aachen_v1_1:
    input:
        localisation_targets("aachen_v1_1"),


rule evaluate_eth:
    input:
        rules.eth_table.output if ETH else [],
