# What a user takes away: the ONNX files, what they cost on a device, and the result.


rule export_onnx:
    input:
        state=GRAPH.last_state,
        dataset=GRAPH.dataset,
    output:
        model="build/{model}/{method}/model.onnx",
        report="build/{model}/{method}/export.json",
    log:
        "logs/export_onnx/{model}/{method}.log",
    threads: PARAMS.export_onnx.threads
    params:
        threads=PARAMS.export_onnx.threads,
        images=PARAMS.export_onnx.images,
        accuracy="--accuracy",
    shell:
        "lowrank export_onnx --log {log} --label 'export_onnx {wildcards.model}'"
        " --state {input.state} --dataset {input.dataset} --threads {params.threads}"
        " --images {params.images} {params.accuracy}"
        " --model {output.model} --report {output.report}"


use rule export_onnx as export_original with:
    input:
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
    output:
        model="build/{model}/original/model.onnx",
        report="build/{model}/original/export.json",
    log:
        "logs/export_original/{model}.log",
    # The original's accuracy is the checkpoint's: that this file computes the same is checked.
    params:
        threads=PARAMS.export_onnx.threads,
        images=PARAMS.export_onnx.images,
        accuracy="--no-accuracy",


rule benchmark:
    input:
        original="build/{model}/original/model.onnx",
        compressed="build/{model}/{method}/model.onnx",
    output:
        "build/{model}/{method}/benchmark/{device}.json",
    log:
        "logs/benchmark/{model}/{method}/{device}.log",
    # All cores, so that no other job of this run disturbs the clock.
    threads: workflow.cores
    params:
        settings=lambda wildcards: PARAMS.benchmark[wildcards.device].model_dump_json(),
    shell:
        "lowrank benchmark --log {log} --label 'benchmark {wildcards.model} {wildcards.method}'"
        " --original {input.original} --compressed {input.compressed}"
        " --device {wildcards.device} --settings {params.settings:q} --output {output}"


# Lists of files come from functions: `consider-ancient` in profiles/dvc passes over plain lists.
rule summarize:
    input:
        original="build/{model}/original/metrics.json",
        exports=GRAPH.exports,
        state=GRAPH.last_state,
        plans=GRAPH.plans,
        rounds=GRAPH.round_files,
        benchmarks=GRAPH.benchmarks,
        table="data/networks/{model}.json",
        first_run=GRAPH.first_run(),
    output:
        result="results/{model}_{method}.json",
        layers="results/plots/{model}_{method}/layers.json",
        curve="results/plots/{model}_{method}/curve.json",
    log:
        "logs/summarize/{model}/{method}.log",
    shell:
        "lowrank summarize --log {log} --label 'summarize {wildcards.model} {wildcards.method}'"
        " --table {input.table} --original {input.original} --exports '{input.exports}'"
        " --state {input.state} --plans '{input.plans}' --rounds '{input.rounds}'"
        " --benchmarks '{input.benchmarks}' --result {output.result} --layers {output.layers}"
        " --curve {output.curve}"


# A result that no rule makes: say which name is wrong instead of "no rule to produce".
rule unknown_result:
    input:
        GRAPH.refuse,
    output:
        "results/{variant}.json",
    wildcard_constraints:
        variant=GRAPH.unknown_variant,
