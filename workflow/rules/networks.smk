# Datasets and trained networks, each converted to one format.


# `updated` does not delete the old dataset before the job. The job replaces it when the new one is
# complete, so data that cannot be downloaded again is not lost.
rule dataset:
    output:
        output=updated(directory("data/datasets/{dataset}")),
    log:
        "logs/dataset/{dataset}.log",
    threads: lambda wildcards: PARAMS.dataset[wildcards.dataset].threads
    params:
        code=GRAPH.code("dataset"),
        files=GRAPH.networks.image_files,
        settings=lambda wildcards: PARAMS.dataset[wildcards.dataset].model_dump_json(),
    shell:
        command("dataset")


# Divide images into those for choices about a network, for reports and for training.
rule splits:
    input:
        dataset=GRAPH.dataset,
    output:
        output=directory("build/{model}/original/splits"),
    log:
        "logs/splits/{model}.log",
    threads: GRAPH.networks.threads_of_splits
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        code=GRAPH.code("splits"),
        validation=GRAPH.networks.validation_json,
        calibration=GRAPH.networks.calibration,
        files=GRAPH.networks.own_image_files,
        decoding=GRAPH.networks.decoding_json,
    shell:
        command("splits")


# The layer table, which describes a network to the graph. Missing and stale tables are already made
# when the Snakefile is read, because the graph depends on them. This rule makes a table on demand,
# with `--forcerun inspect`, or on storage.
rule inspect:
    output:
        "data/networks/{model}.json",
    log:
        "logs/inspect/{model}.log",
    params:
        network=GRAPH.network_json,
        code=GRAPH.tables.code_of_stored,
    shell:
        "lowrank inspect --log {log} --label 'inspect {wildcards.model}'"
        " --name {wildcards.model} --output {output} -- {params.network:q}"


# The code digests, which are parameters of the rules, as a file for DVC.
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


# Without the parameter `code`, because the downloaded file does not depend on lowrank's code.
rule fetch_weights:
    output:
        output=updated(GRAPH.networks.downloaded("{model}")),
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
        # Layers that cannot be replaced, because even exact factors change the network's outputs.
        replaceable="build/{model}/original/replaceable.json",
    log:
        "logs/checkpoint/{model}.log",
    threads: lambda wildcards: PARAMS.checkpoint[wildcards.model].threads
    resources:
        mem_mb=GRAPH.resources.memory("evaluating"),
        runtime=GRAPH.resources.minutes(
            "evaluating", lambda wildcards: PARAMS.checkpoint[wildcards.model].threads
        ),
        gpu=GRAPH.resources.measuring_gpu(
            lambda wildcards: PARAMS.checkpoint[wildcards.model].device
        ),
    params:
        task=GRAPH.task,
        code=GRAPH.code("checkpoint"),
        network=GRAPH.network_json,
        state_key=lambda wildcards: PARAMS.checkpoint[wildcards.model].state_key or "",
        threads=lambda wildcards: PARAMS.checkpoint[wildcards.model].threads,
        device=lambda wildcards: PARAMS.checkpoint[wildcards.model].device,
    shell:
        command("checkpoint")


# Makes the shipped checkpoints. It runs only if a user requests its output by name.
rule pretrain:
    input:
        dataset=GRAPH.dataset,
        start=GRAPH.networks.start,
    output:
        weights="build/pretrain/{model}.safetensors",
        provenance="build/pretrain/{model}.json",
    log:
        "logs/pretrain/{model}.log",
    retries: TRAINING_RETRIES
    threads: lambda wildcards: GRAPH.networks.pretrain(wildcards).threads
    resources:
        mem_mb=GRAPH.resources.training_memory(GRAPH.networks.pretrain),
        runtime=GRAPH.resources.training_minutes(GRAPH.networks.pretrain),
        gpu=GRAPH.resources.training_gpu(GRAPH.networks.pretrain),
    params:
        task=GRAPH.task,
        code=GRAPH.code("pretrain"),
        network=GRAPH.network_json,
        settings=lambda wildcards: GRAPH.networks.pretrain(wildcards).model_dump_json(),
    shell:
        command("pretrain")
