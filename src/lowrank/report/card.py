"""Write the files for delivery: ONNX files with metadata, and a model card next to each.

A card and the metadata of its file hold the same facts. The files that were measured are not
changed. The delivered files are copies with metadata, made after all measurements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lowrank.core.delivery import replace_own_files
from lowrank.core.metric import Metric
from lowrank.devices import MeasureSettings
from lowrank.devices.runtime import get_runtime
from lowrank.files import write_text, written_whole
from lowrank.report.card_input import input_facts, input_lines, metadata_of
from lowrank.temporary import temporary_folder

# Prefix of the keys in a file's metadata.
PREFIX = "lowrank."

# Precision of the main int8 file. For other kinds of hardware, a suffix follows.
INT8 = "int8"
# Prefix of the precision of the original in int8.
CONTROL = "control_"


def deliver(
    folder: Path,
    models: Mapping[str, Path],
    result: Mapping[str, Any],
    described: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric],
) -> None:
    """Write `<name>.onnx` and `<name>.md` for each precision, and `params.yaml`.

    All files are written to a temporary folder before the first one is moved to its place.

    Parameters
    ----------
    folder
        Where to write. Earlier files of lowrank are replaced. The user's own files are kept.
    models
        The ONNX file by precision: `float32`, `int8`, and `int8_<file>` for the int8 files for
        other hardware than that of the main device. The prefix `control_` marks int8 files of the
        original.
    result
        The result that the step `summarize` writes.
    described
        The `name` of the variant, `network`, `input` (the spec of the network), `data`, `method`
        and `configuration`; `takes_arrays` for a dataset of arrays; `fixed_batch`, the batch size
        of a twin of each file, without a card of its own.
    layers
        The records of `layers.json`.
    metrics
        The metrics of the task, the main one first.

    Raises
    ------
    UserError
        If the folder holds a file of the user with a name that is needed.
    """
    import onnx

    from lowrank.onnx_networks.fixed_batch import write_fixed_batch

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Tools that quantize a file drop its metadata.
    kept = metadata_of(onnx.load(models["float32"], load_external_data=False))
    with temporary_folder(folder.parent) as temporary:
        new_folder = temporary / folder.name
        new_folder.mkdir()
        for precision, path in models.items():
            facts = facts_of(precision, result, described, layers, metrics)
            name = described["name"] + ("" if precision == "float32" else f"_{precision}")
            model = onnx.load(path)
            onnx.helper.set_model_props(model, kept | metadata_of(model) | metadata(facts))
            with written_whole(new_folder / f"{name}.onnx") as partial:
                onnx.save_model(model, partial)
            if size := described.get("fixed_batch"):
                twin = new_folder / f"{name}_batch{size}.onnx"
                write_fixed_batch(new_folder / f"{name}.onnx", twin, size)
            write_text(new_folder / f"{name}.md", markdown(name, facts, metrics))
        write_text(new_folder / "params.yaml", _yaml(described["configuration"]) + "\n")
        replace_own_files(folder, new_folder.iterdir())


def facts_of(
    precision: str,
    result: Mapping[str, Any],
    described: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric],
) -> dict[str, Any]:
    """Return the facts about one of the files as a JSON document. Parameters as in `deliver`."""
    is_original = precision.startswith(CONTROL)
    measured = _measured(
        precision.removeprefix(CONTROL), result["control"] if is_original else result
    )
    if is_original:
        # int8 changes neither of these counts, and no layer is replaced.
        result = {**result} | {
            key: {"original": count, "compressed": count, "ratio": 1.0}
            for key in ("parameters", "macs")
            for count in [result[key]["original"]]
        }
        described = {**described} | {"method": {"name": "the original in int8", "quantize": INT8}}
        layers = [{**layer} | {"form": "dense", "ranks": ""} for layer in layers]
    accuracy = {
        "original": result["accuracy"]["original"],
        "this_file": measured["accuracy"]["exported"],
    }
    main, *others = metrics
    for key in (metric.key for metric in others if metric.key in result["accuracy"]):
        accuracy[f"original_{key}"] = result["accuracy"][key]["original"]
        accuracy[f"this_file_{key}"] = measured["accuracy"][key]["exported"]
    devices = {
        device: {key: value for key, value in latency.items() if key != "others"}
        | {"measured_with": result["environment"][device]}
        for device, latency in measured["latency_ms"].items()
    }
    return {
        "network": described["network"],
        "input": input_facts(described),
        "data": described["data"],
        "precision": precision.removeprefix(CONTROL).partition("_")[0],
        "method": described["method"],
        "layers": [{key: layer[key] for key in ("layer", "form", "ranks")} for layer in layers],
        main.column("accuracy"): accuracy,
        **{key: measured[key] for key in ("within_tolerance",) if key in measured},
        **{key: result[key] for key in ("validation", "reported") if key in result},
        **({} if is_original else {"control": _control(result, main)}),
        **{key: result[key] for key in ("parameters", "macs")},
        "size_bytes": measured["size_bytes"],
        "latency_ms": devices,
        "energy_mj": measured.get("energy_mj", {}),
        "answer": _answer(result),
        **{key: result[key] for key in ("command", "commit", "version")},
        "configuration": described["configuration"],
    }


def _control(result: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """Return the figures of the original in int8, for comparison."""
    control = result["control"][INT8]
    return {
        metric.column(metric.key): control["accuracy"]["exported"],
        "size_bytes": control["size_bytes"]["compressed"],
        "latency_ms": {
            device: latency["compressed"]["p50"]
            for device, latency in control["latency_ms"].items()
            if "compressed" in latency
        },
    }


def _answer(result: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the best network for the target of the method and the reason; None without target."""
    answer = result.get("search") or result.get("target")
    return {key: answer[key] for key in ("best", "reason")} if answer else None


def _measured(precision: str, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the measurements of a file, under the same keys as in the result.

    If there are several int8 files, each one has the latencies of the devices that run it.
    """
    if not precision.startswith(INT8):
        return result
    int8 = result[INT8]
    names = {file_name.partition(".")[0]: file_name for file_name in int8.get("files", {})}
    if not names:
        return int8
    file = names.get(precision.removeprefix(INT8).removeprefix("_"), next(iter(names.values())))
    own, size = int8["files"][file], int8["size_bytes"]
    latency = {
        device: values
        for device, values in int8["latency_ms"].items()
        if int8["devices"][device] == file
    }
    bytes_ = own["size_bytes"]
    return {
        **int8,
        "within_tolerance": own["within_tolerance"],
        "accuracy": {**int8["accuracy"], **own["accuracy"]},
        "size_bytes": {
            "original": size["original"],
            "compressed": bytes_,
            "ratio": round(size["original"] / bytes_, 4),
        },
        "latency_ms": latency,
        "energy_mj": {k: v for k, v in int8.get("energy_mj", {}).items() if k in latency},
    }


def metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts as the metadata of an ONNX file. Values that are not text become JSON."""
    return {
        PREFIX + key: value if isinstance(value, str) else json.dumps(value)
        for key, value in facts.items()
        if value is not None
    }


def markdown(name: str, facts: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    """Return the facts as the model card of a file, a Markdown page."""
    is_factored = any(layer["form"] != "dense" for layer in facts["layers"])
    change = (
        "made smaller and faster by low-rank decomposition"
        if is_factored
        else "with all layers unchanged"
    )
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`{name}.onnx`: the network `{facts['input']['name']}`, trained on `{facts['data']}`, "
            f"{change}, in {facts['precision']}. The metadata of the file contain the same facts.",
            "",
            *_target_answer(facts["answer"]),
            *_costs(facts, metrics),
            "",
            *_tolerance_warning(facts, metrics[0]),
            *_choices(facts),
            "## Input and output",
            "",
            *input_lines(facts["network"], facts["input"]),
            "",
            "## Method",
            "",
            "```yaml",
            _yaml(facts["method"]),
            "```",
            "",
            "| layer | form | ranks |",
            "|---|---|---|",
            *(
                f"| {layer['layer']} | {layer['form']} | {layer['ranks'].replace(' x ', ', ')} |"
                for layer in facts["layers"]
            ),
            "",
            "## How to reproduce it",
            "",
            f"    {facts['command']}",
            "",
            f"with lowrank {facts['version']}"
            + (f", commit {facts['commit']}." if facts["commit"] else "."),
            *_uncommitted_warning(facts["commit"]),
            "",
            "## Configuration",
            "",
            "All parameters that affect the result, including overrides. The file `params.yaml` in "
            "this folder has the same content. Parameters that are not listed have the defaults of "
            "that version.",
            "",
            "```yaml",
            _yaml(facts["configuration"]),
            "```",
            "",
        ]
    )


def _yaml(document: Mapping[str, Any]) -> str:
    # Convert through JSON, because the engines use their own types for mappings and tuples.
    plain = json.loads(json.dumps(document))
    return yaml.safe_dump(plain, sort_keys=False, width=100).rstrip()


def _uncommitted_warning(commit: str | None) -> list[str]:
    if not (commit or "").endswith("-dirty"):
        return []
    return [
        "",
        "Tracked files had uncommitted changes. The command includes the changes of params.yaml. "
        "It does not include changes of code.",
    ]


def _target_answer(answer: Mapping[str, str] | None) -> list[str]:
    if answer is None:
        return []
    best = (
        "the original in int8, which is delivered next to the compressed network"
        if answer["best"] == "control"
        else "the compressed network"
    )
    text = f"The answer to the target of the method is {best}. Reason: {answer['reason']}."
    return [text, ""]


def _costs(facts: Mapping[str, Any], metrics: Sequence[Metric]) -> list[str]:
    """Return the table of costs: the original, the original in int8 if measured, and this file."""
    main, *others = metrics
    accuracy, control = facts[main.column("accuracy")], facts.get("control")

    def row(label: str, original: str, int8: str, this_file: str, comparison: str = "") -> str:
        cells = [label, original, *([int8] if control else []), this_file, comparison]
        return "| " + " | ".join(cells) + " |"

    def formatted(value: Any, template: str) -> str:
        return "" if value is None else template.format(value)

    lines = [
        row("", "original", "original in int8", "this file"),
        "|" + "---|" * (5 if control else 4),
        row(
            main.reported_axis(images=facts.get("reported", {}).get("images")),
            main.number(accuracy["original"]),
            main.number(control[main.column(main.key)]) if control else "",
            main.number(accuracy["this_file"]),
        ),
    ]
    for metric in others:
        if f"original_{metric.key}" in accuracy:
            values = (accuracy[f"{file}_{metric.key}"] for file in ("original", "this_file"))
            original, this_file = map(metric.number, values)
            lines.append(row(metric.label, original, "", this_file))
    for key, label, better in (
        ("parameters", "parameters", "fewer"),
        ("macs", "multiply-accumulates for one image", "fewer"),
        ("size_bytes", "size of the ONNX file, bytes", "smaller"),
    ):
        quantity = facts[key]
        int8 = (control or {}).get(key, quantity["original"])
        counts = quantity["original"], int8, quantity["compressed"]
        before, of_control, after = map("{:,}".format, counts)
        lines.append(row(label, before, of_control, after, f"{quantity['ratio']:.2f}x {better}"))
    for device, latency in facts["latency_ms"].items():
        if "not_measured" in latency:
            reason = f"not measured: {latency['not_measured']}"
            lines.append(row(f"latency on {device}", "", "", "", reason))
            continue
        int8 = control and control["latency_ms"].get(device)
        medians = [f"{latency[network]['p50']:.3f}" for network in ("original", "compressed")]
        label, of_control = f"latency on {device}, ms, median", formatted(int8, "{:.3f}")
        lines.append(row(label, medians[0], of_control, medians[1], _speedups(latency)))
        energy = facts["energy_mj"].get(device, {})
        if energy.get("compressed") is not None:
            label = f"energy of one run on {device}, mJ"
            energies = [f"{energy[network]:.2f}" for network in ("original", "compressed")]
            lines.append(row(label, energies[0], "", energies[1]))
    return lines


def _tolerance_warning(facts: Mapping[str, Any], metric: Metric) -> list[str]:
    if facts.get("within_tolerance", True):
        return []
    text = (
        f"**Warning:** on the validation images, the {metric.noun} of this file drops by more than "
        "`quantize.tolerance` compared with float32. The search for nodes to keep in float found "
        "no better choice."
    )
    return [text, ""]


def _choices(facts: Mapping[str, Any]) -> list[str]:
    """Return the paragraph about the images on which choices were made, and a warning if any."""
    if "validation" not in facts:
        return []
    validation = facts["validation"]
    origin = {
        "train": "images held out from the training split",
        "test": "test images that are not used for the reported accuracy",
        "folder": "images of a separate folder",
    }[validation["from"]]
    warning = [f"**Warning:** {validation['warning']}", ""] if "warning" in validation else []
    return [f"Choices were made on {validation['images']} {origin}.", "", *warning]


def _runtime_of(environment: Mapping[str, Any]) -> str:
    """Return the name and version of the runtime of a measurement."""
    # Earlier results and devices of other packages may not name it.
    name = environment.get("runtime", "onnxruntime")
    label = get_runtime(MeasureSettings(runtime=name)).label
    return f"{label} {environment.get('runtime_version')}"


def _speedups(latency: Mapping[str, Any]) -> str:
    """Return the speedups over both originals with their intervals, and the environment."""
    environment = latency["measured_with"]
    threads = environment.get("threads")

    def ratio(name: str) -> str:
        low, high = latency[f"{name}_low"], latency[f"{name}_high"]
        return f"{latency[name]:.2f}x faster ({low:.2f} to {high:.2f})"

    over = "speedup_over_control"
    return (
        ratio("speedup")
        + (f", {ratio(over)} than the original in int8" if over in latency else "")
        + f": {environment.get('cpu')}, {threads} thread{'s' if threads != 1 else ''}, "
        + ", ".join(filter(None, (environment.get("provider"), _runtime_of(environment))))
    )
