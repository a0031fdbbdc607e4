rule build_extension:
    """Native operators: what this machine can build; an empty library and a stated reason where it cannot."""
    input:
        sources=source_files(),
    output:
        library="build/extension/_matchlib_C.so",
        info="build/extension/build_info.json",
    log:
        "logs/build_extension.log",
    benchmark:
        "results/benchmarks/build_extension.tsv"
    params:
        toolchain=json.dumps(toolchain_fingerprint(), sort_keys=True),
    script:
        "../workflow_scripts/build_extension.py"
