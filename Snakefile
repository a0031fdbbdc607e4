"""matchlib: raw archives -> match sets -> trained local features -> benchmark tables -> report.

snakemake --cores N                      everything that config/config.yaml (the demo) asks for
snakemake --cores N --configfile F       the same graph on the data and runs of F
"""

from snakemake.utils import min_version

min_version("9.16")

# A --configfile replaces the demo; merging the two would mix demo data into a real run.
if not workflow.configfiles:

    configfile: "config/config.yaml"


# Only with `--sdm apptainer`: the image that `docker build -t matchlib .` makes. Otherwise: make setup.
container: "docker-daemon://matchlib:0.1.0"


include: "rules/common.smk"
include: "rules/mirror.smk"
include: "rules/data.smk"
include: "rules/match_sets.smk"
include: "rules/extension.smk"
include: "rules/train.smk"
include: "rules/features.smk"
include: "rules/cameras.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


localrules:
    all,
    download_all,
    match_sets_all,
    train_all,
    extract_all,
    evaluate_hpatches,
    evaluate_pck,
    evaluate_pose,
    evaluate_aachen,
    evaluate_aachen_v1_1,
    evaluate_eth,
    evaluate_all,
    report,
    download_archive,
    training_job,


rule all:
    default_target: True
    input:
        rules.report.input,
