"""Records of a study, and its table in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank.core.metric import Metric


def record(model: str, variant: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a variant: scalars, with the task's metric under `..._percent`.

    Parameters
    ----------
    model, variant
        Their names.
    result
        The result that the step `summarize` writes.
    """
    device, latency = next(iter(result["latency_ms"].items()))
    accuracy = result["accuracy"]
    return {
        "model": model,
        "variant": variant,
        "original_percent": accuracy["original"],
        "decomposed_validation_percent": accuracy["validation"]["decomposed"],
        "finetuned_validation_percent": accuracy["validation"]["finetuned"],
        "test_percent": accuracy["exported"],
        "macs_ratio": result["macs"]["ratio"],
        "parameters_ratio": result["parameters"]["ratio"],
        "device": device,
        "speedup": round(latency["speedup"], 3),
        "rounds": result["rounds"],
        "steps": result["finetune"]["steps"],
        "seconds": result["finetune"]["seconds"],
    }


_COLUMNS = {
    "model": ("network", "{}"),
    "variant": ("variant", "{}"),
    "decomposed_validation_percent": ("before fine-tuning, validation {unit}", "{:.2f}"),
    "finetuned_validation_percent": ("after, validation {unit}", "{:.2f}"),
    "test_percent": ("after, test {unit}", "{:.2f}"),
    "macs_ratio": ("fewer MACs", "{:.2f}x"),
    "parameters_ratio": ("fewer parameters", "{:.2f}x"),
    "speedup": ("faster", "{:.2f}x"),
    "rounds": ("rounds", "{}"),
    "steps": ("steps", "{}"),
    "seconds": ("training, s", "{:.0f}"),
}


def markdown(title: str, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> str:
    """Return a Markdown table with a line for each variant.

    Parameters
    ----------
    title
        The title of the study.
    rows
        The records of the variants.
    metrics
        Main metric of the task of each model.
    """
    originals = {row["model"]: row["original_percent"] for row in rows}
    listed = ", ".join(
        f"{model} {metrics[model].text(value)}" for model, value in originals.items()
    )
    any_own = any(metrics[model].is_own for model in originals)
    units = " or ".join(dict.fromkeys(metrics[row["model"]].unit for row in rows))
    headings = [heading.format(unit=units).strip() for heading, _ in _COLUMNS.values()]
    lines = [
        f"# {title}",
        "",
        f"Originals{'' if any_own else ' on the test images'}: {listed}.",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(_COLUMNS),
    ]
    for row in rows:
        cells = [template.format(row[key]) for key, (_, template) in _COLUMNS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
