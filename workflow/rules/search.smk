# The search for a target of `accuracy_drop`: each trial halves the range of costs. A trial is a method
# named `<method>_trial<number>`. The ordinary rules build it, at the share that `next_trial` chooses.


rule next_trial:
    input:
        trials=GRAPH.search.earlier_trials,
    output:
        output="build/{model}/{method}/search/{number}.json",
    log:
        "logs/next_trial/{model}/{method}/{number}.log",
    wildcard_constraints:
        method=GRAPH.searching,
    params:
        code=GRAPH.code("next_trial"),
        settings=GRAPH.ranks_json,
    shell:
        command("next_trial")


rule judge_trial:
    input:
        original="build/{model}/original/model.onnx",
        trial=GRAPH.search.delivered,
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
        aim="build/{model}/{method}/search/{number}.json",
    output:
        output="build/{model}/{method}/search/{number}_found.json",
    log:
        "logs/judge_trial/{model}/{method}/{number}.log",
    wildcard_constraints:
        method=GRAPH.searching,
    threads: PARAMS.export_onnx.threads
    params:
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
        output="build/{model}/{method}/search/control_found.json",
    log:
        "logs/judge_control/{model}/{method}.log",


# The network of the best trial becomes the network of the method.
rule settle:
    input:
        trials=GRAPH.search.all_trials,
        plans=GRAPH.search.trial_plans,
        states=GRAPH.search.trial_states,
        accuracies=GRAPH.search.trial_metrics,
        curves=GRAPH.search.trial_curves,
        timings=GRAPH.search.trial_timings,
        control=GRAPH.search.control_found,
    output:
        plan="build/{model}/{method}/first/ranks.json",
        state="build/{model}/{method}/rounds/1/model.safetensors",
        metrics="build/{model}/{method}/rounds/1/metrics.json",
        curve="build/{model}/{method}/rounds/1/curve.json",
        timing="build/{model}/{method}/rounds/1/timing.json",
        report="build/{model}/{method}/search.json",
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
