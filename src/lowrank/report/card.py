"""What a user takes away: ONNX files that say what they are, and a card beside each.

The cards and the files' metadata hold the same facts. The files that were measured are left as they
are: these are copies of them with the metadata added, made when all is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lowrank.core.delivery import replace_own_files
from lowrank.files import write_text, written_whole
from lowrank.temporary import temporary_folder

# Before the name of each entry of a file's metadata.
PREFIX = "lowrank."

# Of the precision of the main file in int8; for other kinds of hardware, what follows.
INT8 = "int8"
# Before that of the original in int8.
CONTROL = "control_"


def deliver(
    folder: Path,
    models: Mapping[str, Path],
    result: Mapping[str, Any],
    described: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
) -> None:
    """Write `<name>.onnx` and `<name>.md` for each precision, and `params.yaml`.

    All are written before the first one is put in its place.

    Parameters
    ----------
    folder
        What lowrank wrote there before is replaced; files of the user's stay.
    models
        The ONNX file by precision: `float32`, `int8`, and `int8_<file>` for the int8 files of
        other kinds of hardware than the main device's; after `control_` those of the original.
    result
        As the step `summarize` writes it.
    described
        `name` of the variant, `network`, `input` (a network's spec), `data`, `method`,
        `configuration`.
    layers
        The records of `layers.json`.
    """
    import onnx

    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as beside:
        made = beside / folder.name
        made.mkdir()
        for precision, path in models.items():
            facts = facts_of(precision, result, described, layers)
            name = described["name"] + ("" if precision == "float32" else f"_{precision}")
            model = onnx.load(path)
            onnx.helper.set_model_props(model, metadata(facts))
            with written_whole(made / f"{name}.onnx") as partial:
                onnx.save_model(model, partial)
            write_text(made / f"{name}.md", markdown(name, facts))
        write_text(made / "params.yaml", _yaml(described["configuration"]) + "\n")
        replace_own_files(folder, made.iterdir())


def facts_of(
    precision: str,
    result: Mapping[str, Any],
    described: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What is known of one of the files, as a JSON document. Arguments as for `deliver`."""
    original = precision.startswith(CONTROL)
    measured = _measured(precision.removeprefix(CONTROL), result["control"] if original else result)
    if original:
        # int8 changes neither; and every layer stays as it is.
        counts = {key: result[key]["original"] for key in ("parameters", "macs")}
        result = result | {
            key: {"original": count, "compressed": count, "ratio": 1.0}
            for key, count in counts.items()
        }
        described = described | {"method": {"name": "the original in int8", "quantize": INT8}}
        layers = [each | {"form": "dense", "ranks": ""} for each in layers]
    accuracy = {
        "original": result["accuracy"]["original"],
        "this_file": measured["accuracy"]["exported"],
    }
    if "top5" in result["accuracy"]:
        accuracy["original_top5"] = result["accuracy"]["top5"]["original"]
        accuracy["this_file_top5"] = measured["accuracy"]["top5"]["exported"]
    devices = {
        device: {key: each for key, each in latency.items() if key != "others"}
        | {"measured_with": result["environment"][device]}
        for device, latency in measured["latency_ms"].items()
    }
    return {
        **{key: described[key] for key in ("network", "input", "data")},
        "precision": precision.removeprefix(CONTROL).partition("_")[0],
        "method": described["method"],
        "layers": [{key: each[key] for key in ("layer", "form", "ranks")} for each in layers],
        "accuracy_percent": accuracy,
        **{key: measured[key] for key in ("within_tolerance",) if key in measured},
        **{key: result[key] for key in ("validation", "reported") if key in result},
        **({} if original else {"control": _control(result)}),
        **{key: result[key] for key in ("parameters", "macs")},
        "size_bytes": measured["size_bytes"],
        "latency_ms": devices,
        "energy_mj": measured.get("energy_mj", {}),
        "answer": _answer(result),
        **{key: result[key] for key in ("command", "commit", "version")},
        "configuration": described["configuration"],
    }


def _control(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the original in int8 is, for comparison."""
    control = result["control"][INT8]
    return {
        "top1_percent": control["accuracy"]["exported"],
        "size_bytes": control["size_bytes"]["compressed"],
        "latency_ms": {
            device: each["compressed"]["p50"]
            for device, each in control["latency_ms"].items()
            if "compressed" in each
        },
    }


def _answer(result: Mapping[str, Any]) -> dict[str, str] | None:
    """Return which network answers the target of a method and why; None without such a target."""
    found = result.get("search") or result.get("target")
    return {key: found[key] for key in ("best", "reason")} if found else None


def _measured(precision: str, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured of a file, under the keys of the whole result.

    Of several int8 files each has the latencies of the devices that run it.
    """
    if not precision.startswith(INT8):
        return result
    int8 = result[INT8]
    names = {each.partition(".")[0]: each for each in int8.get("files", {})}
    if not names:
        return int8
    file = names.get(precision.removeprefix(INT8).removeprefix("_"), next(iter(names.values())))
    own, size = int8["files"][file], int8["size_bytes"]
    latency = {
        device: each
        for device, each in int8["latency_ms"].items()
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
    """The facts as the metadata of an ONNX file: JSON texts, and plain ones where they are text."""
    return {
        PREFIX + key: each if isinstance(each, str) else json.dumps(each)
        for key, each in facts.items()
        if each is not None
    }


def markdown(name: str, facts: Mapping[str, Any]) -> str:
    """The facts as a page for people."""
    factored = any(each["form"] != "dense" for each in facts["layers"])
    made = (
        "made smaller and faster by low-rank decomposition"
        if factored
        else "all layers as they were"
    )
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`{name}.onnx`: the network `{facts['input']['name']}`, trained on `{facts['data']}`, "
            f"{made}, in {facts['precision']}. The file's metadata hold all of this, too.",
            "",
            *_of_target(facts["answer"]),
            *_costs(facts),
            "",
            *_of_tolerance(facts),
            *_choices(facts),
            "## Input and output",
            "",
            *_input(facts["input"]),
            "",
            "## Method",
            "",
            "```yaml",
            _yaml(facts["method"]),
            "```",
            "",
            "| layer | what it became | ranks |",
            "|---|---|---|",
            *(
                f"| {each['layer']} | {each['form']} | {each['ranks'].replace(' x ', ', ')} |"
                for each in facts["layers"]
            ),
            "",
            "## How it was made",
            "",
            f"    {facts['command']}",
            "",
            f"by lowrank {facts['version']}"
            + (f", commit {facts['commit']}." if facts["commit"] else "."),
            *_uncommitted(facts["commit"]),
            "",
            "## Configuration",
            "",
            "What decides the result, overrides included; `params.yaml` beside this file holds the "
            "same. What it does not mention has the default of that version.",
            "",
            "```yaml",
            _yaml(facts["configuration"]),
            "```",
            "",
        ]
    )


def _yaml(document: Mapping[str, Any]) -> str:
    # Through JSON, for the engines have mappings and tuples of their own.
    plain = json.loads(json.dumps(document))
    return yaml.safe_dump(plain, sort_keys=False, width=100).rstrip()


def _uncommitted(commit: str | None) -> list[str]:
    if not (commit or "").endswith("-dirty"):
        return []
    return [
        "",
        "Tracked files had uncommitted changes. The command repeats those of params.yaml; changes "
        "of code are lost unless they were kept.",
    ]


def _of_target(answer: Mapping[str, str] | None) -> list[str]:
    if answer is None:
        return []
    which = (
        "the original in int8, which is delivered beside the compressed network"
        if answer["best"] == "control"
        else "the compressed network"
    )
    return [f"The answer to the target of the method is {which}: {answer['reason']}.", ""]


def _costs(facts: Mapping[str, Any]) -> list[str]:
    """Return the table of costs: the original, the original in int8 where known, and this file."""
    accuracy, control = facts["accuracy_percent"], facts.get("control")
    images = f"{facts['reported']['images']} " if "reported" in facts else "the "

    def row(label: str, original: str, int8: str, this: str, comparison: str = "") -> str:
        cells = [label, original, *([int8] if control else []), this, comparison]
        return "| " + " | ".join(cells) + " |"

    def of_control(value: Any, form: str) -> str:
        return "" if value is None else form.format(value)

    lines = [
        row("", "original", "original in int8", "this file"),
        "|" + "---|" * (5 if control else 4),
        row(
            f"top-1 on {images}test images, %",
            f"{accuracy['original']:.2f}",
            of_control(control and control["top1_percent"], "{:.2f}"),
            f"{accuracy['this_file']:.2f}",
        ),
    ]
    if "original_top5" in accuracy:
        top5 = [f"{accuracy[key]:.2f}" for key in ("original_top5", "this_file_top5")]
        lines.append(row("top-5, %", top5[0], "", top5[1]))
    for key, label, better in (
        ("parameters", "parameters", "fewer"),
        ("macs", "multiply-accumulates of one image", "fewer"),
        ("size_bytes", "bytes of the ONNX file", "smaller"),
    ):
        each = facts[key]
        int8 = (control or {}).get(key, each["original"])
        counts = [f"{count:,}" for count in (each["original"], int8, each["compressed"])]
        lines.append(row(label, *counts, f"{each['ratio']:.2f}x {better}"))
    for device, each in facts["latency_ms"].items():
        if "not_measured" in each:
            because = f"not measured: {each['not_measured']}"
            lines.append(row(f"latency on {device}", "", "", "", because))
            continue
        int8 = control and control["latency_ms"].get(device)
        medians = [f"{each[which]['p50']:.3f}" for which in ("original", "compressed")]
        label = f"latency on {device}, ms, median"
        lines.append(row(label, medians[0], of_control(int8, "{:.3f}"), medians[1], _faster(each)))
        energy = facts["energy_mj"].get(device, {})
        if energy.get("compressed") is not None:
            label = f"energy of one run on {device}, mJ"
            used = [f"{energy[which]:.2f}" for which in ("original", "compressed")]
            lines.append(row(label, used[0], "", used[1]))
    return lines


def _of_tolerance(facts: Mapping[str, Any]) -> list[str]:
    if facts.get("within_tolerance", True):
        return []
    return [
        "**Warning:** on the validation images this file loses more against float than "
        "`quantize.tolerance` allows, whichever nodes the search left in float.",
        "",
    ]


def _choices(facts: Mapping[str, Any]) -> list[str]:
    """Which images choices were made on, and what is wrong with them."""
    if "validation" not in facts:
        return []
    chosen = facts["validation"]
    origin = {
        "train": "images held out of the training split",
        "test": "other test images, which are not reported",
        "folder": "images of a folder of their own",
    }[chosen["from"]]
    warning = [f"**Warning:** {chosen['warning']}", ""] if "warning" in chosen else []
    return [f"Choices were made on {chosen['images']} {origin}.", "", *warning]


def _faster(latency: Mapping[str, Any]) -> str:
    """Return the speed-ups over both originals with their intervals, and the conditions."""
    with_ = latency["measured_with"]
    threads = with_.get("threads")

    def ratio(name: str) -> str:
        low, high = latency[f"{name}_low"], latency[f"{name}_high"]
        return f"{latency[name]:.2f}x faster ({low:.2f} to {high:.2f})"

    over = "speedup_over_control"
    return (
        ratio("speedup")
        + (f", {ratio(over)} than the original in int8" if over in latency else "")
        + f": {with_.get('cpu')}, {threads} thread{'s' if threads != 1 else ''}, "
        f"{with_.get('provider')}, ONNX Runtime {with_.get('runtime_version')}"
    )


def _input(spec: Mapping[str, Any]) -> list[str]:
    channels, height, width = spec["input_shape"]

    def listed(values: Sequence[float]) -> str:
        return ", ".join(map(str, values))

    resized = (
        f"the shorter side resized to {spec['resize']} ({spec['interpolation']}), the middle cut "
        "out, "
        if spec["resize"]
        else ""
    )
    return [
        f"- `images`, float32, (N, {channels}, {height}, {width}): {spec['channel_order']}, "
        f"{resized}pixels scaled to [0, 1], less ({listed(spec['mean'])}), divided by "
        f"({listed(spec['std'])}).",
        f"- `logits`, float32, (N, {spec['num_classes']}): a score for each class.",
    ]
