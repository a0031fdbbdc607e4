rule build_mirror:
    """The demo world: scenes and sequences in upstream's formats, packed as upstream's archives."""
    output:
        marker="results/mirror/.complete",
    log:
        "logs/mirror.log",
    benchmark:
        "results/benchmarks/mirror.tsv"
    threads: 2
    params:
        config=json_of(CFG.mirror),
        revision=REVISIONS["mirror"],
    script:
        "../workflow_scripts/build_mirror.py"
