# Data and trained networks, in one form each.


# Not deleted before the job, but replaced by it when the new one is complete: what cannot be
# fetched again must not be lost.
rule dataset:
    output:
        output=update(directory("data/datasets/{dataset}")),
    log:
        "logs/dataset/{dataset}.log",
    threads: lambda wildcards: PARAMS.dataset[wildcards.dataset].threads
    params:
        code=GRAPH.code("dataset"),
        files=GRAPH.networks.image_files,
        settings=lambda wildcards: PARAMS.dataset[wildcards.dataset].model_dump_json(),
    shell:
        command("dataset")


# Which images choices about a network are made on, and which are reported.
rule splits:
    input:
        dataset=GRAPH.dataset,
    output:
        output=directory("build/{model}/original/splits"),
    log:
        "logs/splits/{model}.log",
    threads: GRAPH.networks.threads_of_splits
    params:
        code=GRAPH.code("splits"),
        validation=GRAPH.networks.validation_json,
        files=GRAPH.networks.validation_files,
        decoding=GRAPH.networks.decoding_json,
    shell:
        command("splits")


# What the graph knows of a network. Reading the Snakefile makes a table that is missing or stale,
# because the graph depends on it; this rule makes it on demand, `--forcerun inspect`.
rule inspect:
    output:
        "data/networks/{model}.json",
    log:
        "logs/inspect/{model}.log",
    params:
        network=GRAPH.network_json,
    shell:
        "lowrank inspect --log {log} --label 'inspect {wildcards.model}'"
        " --name {wildcards.model} --output {output} -- {params.network:q}"


# For DVC, which compares files: the digests that the rules have as parameters.
rule code:
    output:
        output="build/code.json",
    log:
        "logs/code.log",
    params:
        code=GRAPH.code(),
        networks=GRAPH.tables.network_codes_json,
    shell:
        command("code")


# Without `code`: what the registry offers is what arrives, whatever fetches it.
rule fetch_weights:
    output:
        output=update(GRAPH.networks.downloaded("{model}")),
    log:
        "logs/fetch_weights/{model}.log",
    params:
        network=GRAPH.network_json,
    shell:
        command("fetch_weights")


rule checkpoint:
    input:
        table=GRAPH.tables.table,
        weights=GRAPH.networks.weights,
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
    output:
        state="build/{model}/original/model.safetensors",
        metrics="build/{model}/original/metrics.json",
        # Layers that no factors can replace without changing what the network computes.
        replaceable="build/{model}/original/replaceable.json",
    log:
        "logs/checkpoint/{model}.log",
    threads: lambda wildcards: PARAMS.checkpoint[wildcards.model].threads
    params:
        code=GRAPH.code("checkpoint"),
        network=GRAPH.network_json,
        state_key=lambda wildcards: PARAMS.checkpoint[wildcards.model].state_key or "",
        threads=lambda wildcards: PARAMS.checkpoint[wildcards.model].threads,
    shell:
        command("checkpoint")


# How the shipped checkpoints were made. Nothing asks for its output unless a user does, by name.
rule pretrain:
    input:
        dataset=GRAPH.dataset,
        start=GRAPH.networks.start,
    output:
        weights="build/pretrain/{model}.safetensors",
        provenance="build/pretrain/{model}.json",
    log:
        "logs/pretrain/{model}.log",
    threads: lambda wildcards: GRAPH.networks.pretrain(wildcards).threads
    params:
        code=GRAPH.code("pretrain"),
        network=GRAPH.network_json,
        settings=lambda wildcards: GRAPH.networks.pretrain(wildcards).model_dump_json(),
    shell:
        command("pretrain")
