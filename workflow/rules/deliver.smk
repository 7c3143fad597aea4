# Files for delivery: the ONNX files, their measurements on devices, and the result.


rule export_onnx:
    input:
        state=GRAPH.last_state,
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
        reference=GRAPH.reference,
    output:
        model="build/{model}/{method}/model.onnx",
        report="build/{model}/{method}/export.json",
    log:
        "logs/export_onnx/{model}/{method}.log",
    threads: PARAMS.export_onnx.threads
    resources:
        mem_mb=GRAPH.resources.memory("evaluating"),
        runtime=GRAPH.resources.minutes("evaluating", PARAMS.export_onnx.threads),
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("export_onnx"),
        threads=PARAMS.export_onnx.threads,
        images=PARAMS.export_onnx.images,
        accuracy=True,
    shell:
        command("export_onnx")


use rule export_onnx as export_original with:
    input:
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
        reference=[],
    output:
        model="build/{model}/original/model.onnx",
        report="build/{model}/original/export.json",
    log:
        "logs/export_original/{model}.log",
    # The original's accuracy is the checkpoint's: that this file computes the same is checked.
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("export_onnx"),
        threads=PARAMS.export_onnx.threads,
        images=PARAMS.export_onnx.images,
        accuracy=False,


# The processor of a device determines the types of int8 files. The description of this machine is
# made again if its processor or its ONNX Runtime has changed.
rule describe_device:
    output:
        output="build/devices/{device}.json",
    log:
        "logs/describe_device/{device}.log",
    resources:
        mem_mb=1000,
        runtime=10,
        constraint=GRAPH.resources.of_device("constraint"),
        slurm_partition=GRAPH.resources.of_device("slurm_partition"),
        slurm_extra=GRAPH.resources.of_device("slurm_extra"),
    params:
        code=GRAPH.code("describe_device"),
        settings=lambda wildcards: PARAMS.benchmark[wildcards.device].connection_json(),
        signature=GRAPH.deliver.device_signature,
    shell:
        command("describe_device")


# For methods with `quantize`. DVC requires the folder for every method. It contains only a report if
# nothing is quantized.
rule quantize:
    input:
        model="build/{model}/{method}/model.onnx",
        state=GRAPH.last_state,
        dataset=GRAPH.dataset,
        devices=GRAPH.deliver.descriptions,
        splits="build/{model}/original/splits",
        # The control, if the method does not change the original.
        ready=GRAPH.deliver.ready_int8,
        reference=GRAPH.reference,
    output:
        folder=directory("build/{model}/{method}/int8"),
    log:
        "logs/quantize/{model}/{method}.log",
    threads: GRAPH.resources.quantizing_threads(workflow.cores)
    resources:
        mem_mb=GRAPH.resources.memory("evaluating"),
        runtime=GRAPH.resources.minutes("analyzing", PARAMS.quantize.threads),
        constraint=GRAPH.resources.of_timed_devices("constraint"),
        slurm_partition=GRAPH.resources.of_timed_devices("slurm_partition"),
        slurm_extra=GRAPH.resources.of_timed_devices("slurm_extra"),
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("quantize"),
        kind=GRAPH.quantize,
        settings=PARAMS.quantize.model_dump_json(),
        connections=GRAPH.deliver.connections_json,
    shell:
        command("quantize")


# The control of every result: the original in int8, without compression.
use rule quantize as quantize_original with:
    input:
        model="build/{model}/original/model.onnx",
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
        devices=GRAPH.deliver.descriptions,
        splits="build/{model}/original/splits",
        ready=[],
        reference=GRAPH.reference,
    output:
        folder=directory("build/{model}/original/int8"),
    log:
        "logs/quantize_original/{model}.log",
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("quantize"),
        kind="int8",
        settings=PARAMS.quantize.model_dump_json(),
        connections=GRAPH.deliver.connections_json,


rule benchmark:
    input:
        original="build/{model}/original/model.onnx",
        compressed="build/{model}/{method}/model.onnx",
        quantized=GRAPH.deliver.quantized,
        control="build/{model}/original/int8",
        # Some images, for which outputs on the device are compared with the expected outputs.
        dataset=GRAPH.dataset,
        state="build/{model}/original/model.safetensors",
        processor="build/devices/{device}.json",
    output:
        output="build/{model}/{method}/benchmark/{device}.json",
    log:
        "logs/benchmark/{model}/{method}/{device}.log",
    threads: GRAPH.resources.measuring_threads(workflow.cores)
    resources:
        mem_mb=GRAPH.resources.memory("measuring"),
        runtime=120,
        constraint=GRAPH.resources.of_device("constraint"),
        slurm_partition=GRAPH.resources.of_device("slurm_partition"),
        slurm_extra=GRAPH.resources.of_device("slurm_extra"),
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("benchmark"),
        settings=lambda wildcards: PARAMS.benchmark[wildcards.device].to_json(),
        batch=PARAMS.export_onnx.batch,
    shell:
        command("benchmark")


# Lists of files come from functions, because `consider-ancient` in profiles/dvc ignores plain lists.
rule summarize:
    input:
        original="build/{model}/original/metrics.json",
        original_export="build/{model}/original/export.json",
        export=GRAPH.deliver.export,
        state=GRAPH.last_state,
        plans=GRAPH.deliver.plans,
        round_metrics=GRAPH.deliver.round_metrics,
        round_curves=GRAPH.deliver.round_curves,
        round_timings=GRAPH.deliver.round_timings,
        model=GRAPH.deliver.model,
        quantized=GRAPH.deliver.quantized,
        control="build/{model}/original/int8",
        search=GRAPH.search.search,
        benchmarks=GRAPH.deliver.benchmarks,
        table="data/networks/{model}.json",
        # Local, because it is made in this folder when the graph is read.
        first_run=local(GRAPH.first_run()),
    output:
        result="results/{model}_{method}.json",
        metrics="results/metrics/{model}_{method}.json",
        layers="results/plots/{model}_{method}/layers.json",
        times="results/plots/{model}_{method}/times.json",
        curve="results/plots/{model}_{method}/curve.json",
        # `updated` does not delete the folder before the job. The job replaces only lowrank's files.
        delivered=updated(directory("models/{model}_{method}")),
    log:
        "logs/summarize/{model}/{method}.log",
    wildcard_constraints:
        method=GRAPH.names_pattern("methods"),
    params:
        task=GRAPH.task,
        code=GRAPH.code("summarize"),
        described=GRAPH.deliver.described_json,
    shell:
        command("summarize")


# A result that no rule makes. Report the wrong name instead of Snakemake's "no rule to produce".
rule unknown_result:
    input:
        GRAPH.refuse,
    output:
        "results/{variant}.json",
    wildcard_constraints:
        variant=GRAPH.unknown_variant,
