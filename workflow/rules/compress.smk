# A round: ranks for its layers, factors for each, then fine-tuning. The next round starts from
# the network of the last.


rule select_ranks:
    input:
        state=GRAPH.state_before,
        table="data/networks/{model}.json",
    output:
        "build/{model}/{method}/{at}/ranks.json",
    log:
        "logs/select_ranks/{model}/{method}/{at}.log",
    threads: PARAMS.select_ranks.threads
    params:
        layers=GRAPH.layers_json,
        settings=lambda wildcards: PARAMS.methods[wildcards.method].ranks.model_dump_json(),
        threads=PARAMS.select_ranks.threads,
    shell:
        "lowrank select_ranks --log {log} --label 'select_ranks {wildcards.model}'"
        " --state {input.state} --table {input.table} --layers {params.layers:q}"
        " --settings {params.settings:q} --threads {params.threads} --plan {output}"


rule decompose:
    input:
        state=GRAPH.state_before,
        table="data/networks/{model}.json",
        plan="build/{model}/{method}/{at}/ranks.json",
    output:
        "build/{model}/{method}/{at}/factors/{layer}.safetensors",
    log:
        "logs/decompose/{model}/{method}/{at}/{layer}.log",
    threads: PARAMS.decompose.threads
    params:
        threads=PARAMS.decompose.threads,
    shell:
        "lowrank decompose --log {log} --label 'decompose {wildcards.model} {wildcards.layer}'"
        " --state {input.state} --table {input.table} --plan {input.plan}"
        " --layer {wildcards.layer} --threads {params.threads} --factors {output}"


rule finetune:
    input:
        previous=GRAPH.state_before,
        factors=GRAPH.factors,
        dataset=GRAPH.dataset,
    output:
        state="build/{model}/{method}/rounds/{round}/model.safetensors",
        metrics="build/{model}/{method}/rounds/{round}/metrics.json",
        curve="build/{model}/{method}/rounds/{round}/curve.json",
        timing="build/{model}/{method}/rounds/{round}/timing.json",
    log:
        "logs/finetune/{model}/{method}/{round}.log",
    threads: lambda wildcards: PARAMS.finetune_of(wildcards.method).threads
    params:
        layers=GRAPH.layers_json,
        settings=lambda wildcards: PARAMS.finetune_of(wildcards.method).model_dump_json(),
        factors=GRAPH.factors_folder,
    shell:
        "lowrank finetune --log {log}"
        " --label 'finetune {wildcards.model} {wildcards.method} {wildcards.round}'"
        " --previous {input.previous} --factors {params.factors} --layers {params.layers:q}"
        " --round {wildcards.round} --dataset {input.dataset} --settings {params.settings:q}"
        " --resume build/resume/{wildcards.model}/{wildcards.method}/{wildcards.round}.pt"
        " --state {output.state} --metrics {output.metrics} --curve {output.curve}"
        " --timing {output.timing}"
