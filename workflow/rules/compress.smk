# A round: choose the ranks of its layers, decompose each layer, then fine-tune. The next round starts
# from the network of the previous one.


rule select_ranks:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        replaceable="build/{model}/original/replaceable.json",
        # For measuring the loss of each layer, and for evaluating the chosen ranks.
        dataset=GRAPH.compress.measured_dataset,
        splits=GRAPH.compress.measured_splits,
        moments=GRAPH.compress.measured_moments,
        latencies=GRAPH.compress.latencies,
        aim=GRAPH.compress.aim,
        known=GRAPH.compress.known_plans,
        first=GRAPH.compress.first_plan,
        reference=GRAPH.reference,
    output:
        plan="build/{model}/{method}/{at}/ranks.json",
    log:
        "logs/select_ranks/{model}/{method}/{at}.log",
    wildcard_constraints:
        method=GRAPH.not_searching,
    threads: PARAMS.select_ranks.threads
    resources:
        mem_mb=GRAPH.resources.memory("analyzing"),
        runtime=GRAPH.resources.minutes("analyzing", PARAMS.select_ranks.threads),
        gpu=GRAPH.resources.measuring_gpu(lambda wildcards: PARAMS.select_ranks.device),
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("select_ranks", "calibrate"),
        layers=GRAPH.layers_json,
        all_layers=GRAPH.compress.all_layers_json,
        alternatives=GRAPH.compress.alternatives_json,
        settings=GRAPH.ranks_json,
        quantize=GRAPH.compress.measured_quantize,
        stages_left=GRAPH.compress.stages_left,
        predict=GRAPH.compress.predict,
        threads=PARAMS.select_ranks.threads,
        device=PARAMS.select_ranks.device,
        # The moments are temporary, so a change of these settings must be a parameter.
        calibration=GRAPH.compress.measured_calibration_json,
    shell:
        command("select_ranks")


# For a target of latency: measure layers, make a first choice of ranks, measure its network in one
# piece, and choose the ranks again with the corrected latencies. Measured latencies of layers are
# stored and used for all models and methods.
use rule select_ranks as draft_ranks with:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        replaceable="build/{model}/original/replaceable.json",
        dataset=GRAPH.compress.measured_dataset,
        splits=GRAPH.compress.measured_splits,
        moments=GRAPH.compress.measured_moments,
        latencies=GRAPH.compress.latencies_of_layers,
        aim=GRAPH.compress.aim,
        known=GRAPH.compress.earlier_plans,
        first=[],
        reference=GRAPH.reference,
    output:
        plan="build/{model}/{method}/{at}/draft.json",
    log:
        "logs/draft_ranks/{model}/{method}/{at}.log",


rule profile_draft:
    input:
        original="build/{model}/original/model.onnx",
        state="build/{model}/original/model.safetensors",
        table="data/networks/{model}.json",
        draft="build/{model}/{method}/{at}/draft.json",
        latencies=GRAPH.compress.latencies_of_device,
        processor="build/devices/{device}.json",
    output:
        output="build/{model}/{method}/{at}/latencies/{device}.json",
    log:
        "logs/profile_draft/{model}/{method}/{at}/{device}.log",
    threads: GRAPH.resources.measuring_threads(workflow.cores)
    resources:
        mem_mb=GRAPH.resources.memory("measuring"),
        runtime=60,
        constraint=GRAPH.resources.of_device("constraint"),
        slurm_partition=GRAPH.resources.of_device("slurm_partition"),
        slurm_extra=GRAPH.resources.of_device("slurm_extra"),
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("profile_draft"),
        quantize=GRAPH.quantize,
        quantize_settings=PARAMS.quantize.model_dump_json(),
        device_settings=lambda wildcards: PARAMS.benchmark[wildcards.device].to_json(),
        batch=PARAMS.export_onnx.batch,
    shell:
        command("profile_draft")


rule profile_layers:
    input:
        original="build/{model}/original/model.onnx",
        state="build/{model}/original/model.safetensors",
        table="data/networks/{model}.json",
        processor="build/devices/{device}.json",
    output:
        output="build/{model}/{method}/latencies/{device}.json",
    log:
        "logs/profile_layers/{model}/{method}/{device}.log",
    threads: GRAPH.resources.measuring_threads(workflow.cores)
    resources:
        mem_mb=GRAPH.resources.memory("measuring"),
        runtime=120,
        constraint=GRAPH.resources.of_device("constraint"),
        slurm_partition=GRAPH.resources.of_device("slurm_partition"),
        slurm_extra=GRAPH.resources.of_device("slurm_extra"),
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("profile_layers"),
        layers=GRAPH.compress.all_layers_json,
        alternatives=GRAPH.compress.alternatives_json,
        settings=GRAPH.ranks_json,
        quantize=GRAPH.quantize,
        quantize_settings=PARAMS.quantize.model_dump_json(),
        device_settings=lambda wildcards: PARAMS.benchmark[wildcards.device].to_json(),
        batch=PARAMS.export_onnx.batch,
    shell:
        command("profile_layers")


# For `norm: activation`. The file is temporary: it is large, quick to make, and used by one round.
rule calibrate:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
    output:
        moments=temp("build/moments/{model}/{method}/{at}.safetensors"),
    log:
        "logs/calibrate/{model}/{method}/{at}.log",
    threads: PARAMS.calibrate.threads
    resources:
        mem_mb=GRAPH.resources.memory("analyzing"),
        runtime=GRAPH.resources.minutes("analyzing", PARAMS.calibrate.threads),
        gpu=GRAPH.resources.measuring_gpu(lambda wildcards: PARAMS.calibrate.device),
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("calibrate"),
        layers=GRAPH.compress.calibrated_json,
        images=GRAPH.compress.images,
        threads=PARAMS.calibrate.threads,
        device=PARAMS.calibrate.device,
    shell:
        command("calibrate")


rule decompose:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        plan="build/{model}/{method}/{at}/ranks.json",
        moments=GRAPH.compress.layer_moments,
        # Only for `sequential`.
        original=GRAPH.compress.sequential_original,
        before=GRAPH.compress.factors_before,
        dataset=GRAPH.compress.sequential_dataset,
        splits=GRAPH.compress.sequential_splits,
    output:
        factors="build/{model}/{method}/{at}/factors/{layer}.safetensors",
    log:
        "logs/decompose/{model}/{method}/{at}/{layer}.log",
    threads: GRAPH.compress.threads_of_decompose
    resources:
        mem_mb=GRAPH.resources.decomposing_memory,
        # Lets a profile limit the layers that are decomposed at the same time.
        parallel_layers=1,
        runtime=GRAPH.resources.decomposing_minutes,
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("decompose", "calibrate"),
        threads=GRAPH.compress.threads_of_decompose,
        images=GRAPH.compress.sequential_images,
        calibration=GRAPH.compress.calibration_json,
    shell:
        command("decompose")


# For `decompose.jobs: round`.
rule decompose_round:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        plan="build/{model}/{method}/{at}/ranks.json",
        moments=GRAPH.compress.layer_moments,
        # Only for `sequential`.
        original=GRAPH.compress.sequential_original,
        dataset=GRAPH.compress.sequential_dataset,
        splits=GRAPH.compress.sequential_splits,
    output:
        factors=directory("build/{model}/{method}/{at}/factors"),
    log:
        "logs/decompose_round/{model}/{method}/{at}.log",
    threads: GRAPH.compress.threads_of_round
    resources:
        mem_mb=GRAPH.resources.round_memory,
        runtime=GRAPH.resources.round_minutes,
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("decompose_round", "calibrate"),
        threads=GRAPH.compress.threads_of_decompose,
        layers_at_once=PARAMS.decompose.layers_at_once,
        images=GRAPH.compress.sequential_images,
        calibration=GRAPH.compress.calibration_json,
    shell:
        command("decompose_round")


# Runs once for each model, if one of its methods has `distill` with plain images.
rule teacher_outputs:
    input:
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
    output:
        output="build/{model}/original/outputs.safetensors",
    log:
        "logs/teacher_outputs/{model}.log",
    threads: PARAMS.teacher_outputs.threads
    resources:
        mem_mb=GRAPH.resources.memory("evaluating"),
        runtime=GRAPH.resources.minutes("analyzing", PARAMS.teacher_outputs.threads),
        gpu=GRAPH.resources.measuring_gpu(lambda wildcards: PARAMS.teacher_outputs.device),
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("teacher_outputs"),
        settings=PARAMS.teacher_outputs.model_dump_json(),
    shell:
        command("teacher_outputs")


rule finetune:
    input:
        previous=GRAPH.compress.state_before,
        factors=GRAPH.compress.factors,
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
        teacher=GRAPH.compress.teacher,
        reference=GRAPH.reference,
    output:
        state="build/{model}/{method}/rounds/{round}/model.safetensors",
        metrics="build/{model}/{method}/rounds/{round}/metrics.json",
        curve="build/{model}/{method}/rounds/{round}/curve.json",
        timing="build/{model}/{method}/rounds/{round}/timing.json",
    log:
        "logs/finetune/{model}/{method}/{round}.log",
    wildcard_constraints:
        method=GRAPH.not_searching,
    # Training continues from its saved state.
    retries: TRAINING_RETRIES
    threads: lambda wildcards: GRAPH.compress.finetune(wildcards).threads
    resources:
        mem_mb=GRAPH.resources.training_memory(GRAPH.compress.finetune),
        runtime=GRAPH.resources.training_minutes(GRAPH.compress.finetune),
        gpu=GRAPH.resources.training_gpu(GRAPH.compress.finetune),
    params:
        network=GRAPH.network_json,
        task=GRAPH.task,
        code=GRAPH.code("finetune"),
        settings=lambda wildcards: GRAPH.compress.finetune(wildcards).model_dump_json(),
        # Below 1 if `select_ranks` has not evaluated the ranks, so this step must check the drop.
        largest_drop=GRAPH.compress.largest_drop,
        # The test split is only used for reports, so only the last round uses it.
        test=GRAPH.compress.is_last,
    shell:
        command("finetune")
