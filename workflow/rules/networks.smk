# Data and trained networks, in one form each.


rule dataset:
    output:
        directory("data/datasets/{dataset}"),
    log:
        "logs/dataset/{dataset}.log",
    params:
        search=lambda wildcards: PARAMS.dataset[wildcards.dataset].search,
    shell:
        "lowrank dataset --log {log} --name {wildcards.dataset} --search {params.search:q}"
        " --output {output}"


rule checkpoint:
    input:
        weights=GRAPH.weights,
        dataset=GRAPH.dataset,
    output:
        state="build/{model}/original/model.safetensors",
        metrics="build/{model}/original/metrics.json",
    log:
        "logs/checkpoint/{model}.log",
    threads: lambda wildcards: PARAMS.checkpoint[wildcards.model].threads
    params:
        threads=lambda wildcards: PARAMS.checkpoint[wildcards.model].threads,
    shell:
        "lowrank checkpoint --log {log} --label 'checkpoint {wildcards.model}'"
        " --network {wildcards.model} --weights {input.weights:q} --dataset {input.dataset}"
        " --threads {params.threads} --state {output.state} --metrics {output.metrics}"


# How the shipped checkpoints were made. Nothing asks for its output unless a user does, by name.
rule pretrain:
    input:
        dataset=GRAPH.dataset,
        start=GRAPH.start,
    output:
        weights="build/pretrain/{model}.safetensors",
        provenance="build/pretrain/{model}.json",
    log:
        "logs/pretrain/{model}.log",
    threads: lambda wildcards: GRAPH.pretrain(wildcards).threads
    params:
        settings=lambda wildcards: GRAPH.pretrain(wildcards).model_dump_json(),
    shell:
        "lowrank pretrain --log {log} --label 'pretrain {wildcards.model}'"
        " --network {wildcards.model} --dataset {input.dataset} --settings {params.settings:q}"
        " --start '{input.start}' --state build/resume/pretrain/{wildcards.model}.pt"
        " --weights {output.weights} --provenance {output.provenance}"
