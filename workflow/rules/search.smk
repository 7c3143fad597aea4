# The search for a target of `accuracy_drop`: each trial halves the range of costs. A trial is a method
# named `<method>_trial<number>`, with the folder `<method>/search/<number>`. The ordinary rules build
# it, at the share that `next_trial` chooses. In DVC, the stage `settle` owns the folder `search`.


rule next_trial:
    input:
        table="data/networks/{model}.json",
        trials=GRAPH.search.earlier_trials,
        latencies=GRAPH.search.latencies,
    output:
        output="build/{model}/{method}/search/{number}/share.json",
    log:
        "logs/next_trial/{model}/{method}/{number}.log",
    wildcard_constraints:
        method=GRAPH.searching,
    params:
        code=GRAPH.code("next_trial"),
        settings=GRAPH.ranks_json,
        layers=GRAPH.compress.all_layers_json,
        alternatives=GRAPH.compress.alternatives_json,
        quantize=GRAPH.quantize,
    shell:
        command("next_trial")


rule judge_trial:
    input:
        original="build/{model}/original/model.onnx",
        trial=GRAPH.search.delivered,
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
        aim="build/{model}/{method}/search/{number}/share.json",
    output:
        output="build/{model}/{method}/search/{number}/loss.json",
    log:
        "logs/judge_trial/{model}/{method}/{number}.log",
    wildcard_constraints:
        method=GRAPH.searching,
    threads: PARAMS.export_onnx.threads
    resources:
        mem_mb=GRAPH.resources.memory("evaluating"),
        runtime=GRAPH.resources.minutes("evaluating", PARAMS.export_onnx.threads),
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("judge_trial"),
        threads=PARAMS.export_onnx.threads,
    shell:
        command("judge_trial")


# The original in int8 is also a candidate.
use rule judge_trial as judge_control with:
    input:
        original="build/{model}/original/model.onnx",
        trial="build/{model}/original/int8",
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
        aim=[],
    output:
        output="build/{model}/{method}/search/control_loss.json",
    log:
        "logs/judge_control/{model}/{method}.log",


# Chooses the cheapest trial that meets the target.
rule settle:
    input:
        trials=GRAPH.search.all_trials,
        control=GRAPH.search.control_loss,
    output:
        report="build/{model}/{method}/search/chosen.json",
    log:
        "logs/settle/{model}/{method}.log",
    wildcard_constraints:
        method=GRAPH.searching,
    params:
        task=GRAPH.task,
        code=GRAPH.code("settle"),
        settings=GRAPH.ranks_json,
    shell:
        command("settle")


# The plan and the network of the chosen trial become those of the method. These are two rules,
# because in DVC the plan belongs to the stage `select_ranks` and the network to `finetune`.
rule take_plan:
    input:
        report="build/{model}/{method}/search/chosen.json",
        candidates=GRAPH.search.plans,
    output:
        files=["build/{model}/{method}/first/ranks.json"],
    log:
        "logs/take_plan/{model}/{method}.log",
    wildcard_constraints:
        method=GRAPH.searching,
    params:
        code=GRAPH.code("take_trial"),
    shell:
        command("take_trial")


use rule take_plan as take_network with:
    input:
        report="build/{model}/{method}/search/chosen.json",
        candidates=GRAPH.search.networks,
    output:
        files=expand("build/{{model}}/{{method}}/rounds/1/{file}", file=FILES_OF_ROUND),
    log:
        "logs/take_network/{model}/{method}.log",
