# A round: ranks for its layers, factors for each, then fine-tuning. The next round starts from
# the network of the last.


rule select_ranks:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        replaceable="build/{model}/original/replaceable.json",
        # To measure what each layer is worth, and to try what was chosen.
        dataset=GRAPH.compress.measured_on,
        splits=GRAPH.compress.measured_splits,
        moments=GRAPH.compress.measured_moments,
        latencies=GRAPH.compress.latencies,
        aim=GRAPH.compress.aim,
        known=GRAPH.compress.known_plans,
        first=GRAPH.compress.first_plan,
    output:
        "build/{model}/{method}/{at}/ranks.json",
    log:
        "logs/select_ranks/{model}/{method}/{at}.log",
    wildcard_constraints:
        method=GRAPH.not_searching,
    threads: PARAMS.select_ranks.threads
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("select_ranks", "calibrate"),
        layers=GRAPH.layers_json,
        all_layers=GRAPH.compress.all_layers_json,
        alternatives=GRAPH.compress.alternatives_json,
        settings=GRAPH.ranks_json,
        quantize=GRAPH.compress.measured_quantize,
        stages_left=GRAPH.compress.stages_left,
        predict=GRAPH.compress.predict,
        threads=PARAMS.select_ranks.threads,
        # The moments are gone when these change, and so cannot tell.
        calibration=GRAPH.compress.measured_calibration_json,
    shell:
        "lowrank select_ranks --log {log} --label 'select_ranks {wildcards.model}'"
        " --state {input.state} --table {input.table} --replaceable {input.replaceable}"
        " --layers {params.layers:q} --settings {params.settings:q} --stages-left {params.stages_left}"
        " --all-layers {params.all_layers:q} --alternatives {params.alternatives:q}"
        " --network {params.network:q}"
        " --dataset '{input.dataset}' --splits '{input.splits}' --moments '{input.moments}'"
        " --latencies '{input.latencies}' --quantize '{params.quantize}' --aim '{input.aim}' --known '{input.known}'"
        " --first '{input.first}' --method {wildcards.method} {params.predict}"
        " --threads {params.threads} --plan {output}"


# For a target of latencies: layers are measured, a first choice made of them, its network measured
# in one piece, and ranks chosen again with what that showed. What was measured is remembered for
# every model and method.
use rule select_ranks as draft_ranks with:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        replaceable="build/{model}/original/replaceable.json",
        dataset=GRAPH.compress.measured_on,
        splits=GRAPH.compress.measured_splits,
        moments=GRAPH.compress.measured_moments,
        latencies=GRAPH.compress.latencies_of_layers,
        aim=GRAPH.compress.aim,
        known=GRAPH.compress.earlier_plans,
        first=[],
    output:
        "build/{model}/{method}/{at}/draft.json",
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
        "build/{model}/{method}/{at}/latencies/{device}.json",
    log:
        "logs/profile_draft/{model}/{method}/{at}/{device}.log",
    threads: workflow.cores
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("profile_draft"),
        quantize=GRAPH.quantize,
        quantize_settings=PARAMS.quantize.model_dump_json(),
        device=lambda wildcards: PARAMS.benchmark[wildcards.device].to_json(),
    shell:
        "lowrank profile_draft --log {log} --label 'profile_draft {wildcards.model}'"
        " --network {params.network:q} --original {input.original} --state {input.state} --table {input.table}"
        " --draft {input.draft} --latencies {input.latencies} --quantize '{params.quantize}'"
        " --quantize-settings {params.quantize_settings:q}"
        " --processor {input.processor}"
        " --device {wildcards.device} --device-settings {params.device:q} --output {output}"


rule profile_layers:
    input:
        original="build/{model}/original/model.onnx",
        state="build/{model}/original/model.safetensors",
        table="data/networks/{model}.json",
        processor="build/devices/{device}.json",
    output:
        "build/{model}/{method}/latencies/{device}.json",
    log:
        "logs/profile_layers/{model}/{method}/{device}.log",
    # All cores, so that no other job of this run disturbs the clock.
    threads: workflow.cores
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("profile_layers"),
        layers=GRAPH.compress.all_layers_json,
        alternatives=GRAPH.compress.alternatives_json,
        settings=GRAPH.ranks_json,
        quantize=GRAPH.quantize,
        quantize_settings=PARAMS.quantize.model_dump_json(),
        device=lambda wildcards: PARAMS.benchmark[wildcards.device].to_json(),
    shell:
        "lowrank profile_layers --log {log} --label 'profile_layers {wildcards.model}'"
        " --network {params.network:q} --original {input.original} --state {input.state} --table {input.table}"
        " --layers {params.layers:q} --alternatives {params.alternatives:q}"
        " --settings {params.settings:q} --quantize '{params.quantize}'"
        " --quantize-settings {params.quantize_settings:q}"
        " --processor {input.processor}"
        " --device {wildcards.device} --device-settings {params.device:q}"
        " --cache build/latencies/{wildcards.device}.json --output {output}"


# For `norm: activation`. Large, quickly made again, and needed by one round alone.
rule calibrate:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
    output:
        temp("build/moments/{model}/{method}/{at}.safetensors"),
    log:
        "logs/calibrate/{model}/{method}/{at}.log",
    threads: PARAMS.calibrate.threads
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("calibrate"),
        layers=GRAPH.compress.calibrated_json,
        images=GRAPH.compress.images,
        threads=PARAMS.calibrate.threads,
    shell:
        "lowrank calibrate --log {log} --label 'calibrate {wildcards.model}'"
        " --network {params.network:q}"
        " --state {input.state} --table {input.table} --layers {params.layers:q}"
        " --dataset {input.dataset} --splits {input.splits}"
        " --images {params.images} --threads {params.threads}"
        " --moments {output}"


rule decompose:
    input:
        state=GRAPH.compress.state_before,
        table="data/networks/{model}.json",
        plan="build/{model}/{method}/{at}/ranks.json",
        moments=GRAPH.compress.moments_beside,
        # For `sequential`.
        original=GRAPH.compress.original_beside,
        before=GRAPH.compress.factors_before,
        dataset=GRAPH.compress.images_beside,
        splits=GRAPH.compress.splits_beside,
    output:
        "build/{model}/{method}/{at}/factors/{layer}.safetensors",
    log:
        "logs/decompose/{model}/{method}/{at}/{layer}.log",
    threads: GRAPH.compress.threads_of_decompose
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("decompose", "calibrate"),
        threads=GRAPH.compress.threads_of_decompose,
        images=GRAPH.compress.number_of_images_beside,
        calibration=GRAPH.compress.calibration_json,
    shell:
        "lowrank decompose --log {log} --label 'decompose {wildcards.model} {wildcards.layer}'"
        " --state {input.state} --table {input.table} --plan {input.plan}"
        " --layer={wildcards.layer} --moments '{input.moments}' --original '{input.original}'"
        " --before '{input.before}' --network {params.network:q}"
        " --dataset '{input.dataset}' --splits '{input.splits}' --images {params.images}"
        " --threads {params.threads} --factors {output}"


# Once for a model, where one of its methods has `distill` for plain images.
rule teacher_outputs:
    input:
        state="build/{model}/original/model.safetensors",
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
    output:
        "build/{model}/original/outputs.safetensors",
    log:
        "logs/teacher_outputs/{model}.log",
    threads: PARAMS.teacher_outputs.threads
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("teacher_outputs"),
        settings=PARAMS.teacher_outputs.model_dump_json(),
    shell:
        "lowrank teacher_outputs --log {log} --label 'teacher_outputs {wildcards.model}'"
        " --network {params.network:q} --state {input.state}"
        " --dataset {input.dataset} --splits {input.splits}"
        " --settings {params.settings:q}"
        " --output {output}"


rule finetune:
    input:
        previous=GRAPH.compress.state_before,
        factors=GRAPH.compress.factors,
        dataset=GRAPH.dataset,
        splits="build/{model}/original/splits",
        teacher=GRAPH.compress.teacher,
    output:
        state="build/{model}/{method}/rounds/{round}/model.safetensors",
        metrics="build/{model}/{method}/rounds/{round}/metrics.json",
        curve="build/{model}/{method}/rounds/{round}/curve.json",
        timing="build/{model}/{method}/rounds/{round}/timing.json",
    log:
        "logs/finetune/{model}/{method}/{round}.log",
    wildcard_constraints:
        method=GRAPH.not_searching,
    threads: lambda wildcards: GRAPH.compress.finetune(wildcards).threads
    params:
        network=GRAPH.network_json,
        code=GRAPH.code("finetune"),
        layers=GRAPH.layers_json,
        settings=lambda wildcards: GRAPH.compress.finetune(wildcards).model_dump_json(),
        factors=GRAPH.compress.factors_folder,
        # Where `select_ranks` may have left that to this step.
        largest_drop=GRAPH.compress.largest_drop,
        # The test split is only ever reported, so the rounds before the last leave it alone.
        test=lambda wildcards: "--test" if GRAPH.compress.is_last(wildcards) else "--no-test",
    shell:
        "lowrank finetune --log {log}"
        " --label 'finetune {wildcards.model} {wildcards.method} {wildcards.round}'"
        " --network {params.network:q}"
        " --previous {input.previous} --factors {params.factors} --layers {params.layers:q}"
        " --round {wildcards.round}"
        " --dataset {input.dataset} --splits {input.splits} --settings {params.settings:q}"
        " --teacher '{input.teacher}' --largest-drop {params.largest_drop}"
        " --method {wildcards.method}"
        " --resume build/resume/{wildcards.model}/{wildcards.method}/{wildcards.round}.pt"
        " --state {output.state} --metrics {output.metrics} --curve {output.curve}"
        " --timing {output.timing} {params.test}"
