"""Compare the variants of a study: records, a table and a picture."""

from pathlib import Path
from typing import Any

import click

from lowrank.config.studies import StudySettings
from lowrank.files import read_json, write_json, write_text
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, kept_path, output_path, parameter, wildcard


@click.command(cls=Step)
@wildcard("study", "Name of the study under `studies` in params.yaml.")
@parameter("settings", "studies.<name>, JSON.", Json(StudySettings))
@kept_path("results", "results", "Folder of the variants' results.")
@output_path("records", "A record for each variant, JSON.")
@output_path("table", "The records as a table, Markdown.")
@output_path("picture", "The picture of the study, SVG.")
def study(
    study: str,
    settings: StudySettings,
    results: Path,
    records: Path,
    table: Path,
    picture: Path,
) -> None:
    """Compare the variants of a study."""
    from lowrank.report.provenance import origin_of
    from lowrank.report.study_picture import study_picture
    from lowrank.report.style import stamped

    documents = {
        (model, variant): read_json(results / f"{model}_{study}_{variant}.json")
        for model in settings.models
        for variant in settings.variants
    }
    rows = [_record(*names, document) for names, document in documents.items()]
    write_json(records, rows)
    write_text(table, _markdown(settings.title, rows))
    with stamped(
        origin_of(documents.values(), f"snakemake --cores all results/studies/{study}.svg")
    ):
        study_picture(picture, rows, title=settings.title, x=settings.x)
    say(f"{len(rows)} variants: {table}, {picture}")


def _record(model: str, variant: str, result: dict[str, Any]) -> dict[str, Any]:
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
    "decomposed_validation_percent": ("before fine-tuning, validation %", "{:.2f}"),
    "finetuned_validation_percent": ("after, validation %", "{:.2f}"),
    "test_percent": ("after, test %", "{:.2f}"),
    "macs_ratio": ("fewer MACs", "{:.2f}x"),
    "parameters_ratio": ("fewer parameters", "{:.2f}x"),
    "speedup": ("faster", "{:.2f}x"),
    "rounds": ("rounds", "{}"),
    "steps": ("steps", "{}"),
    "seconds": ("training, s", "{:.0f}"),
}


def _markdown(title: str, rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a line for each variant."""
    originals = {row["model"]: row["original_percent"] for row in rows}
    listed = ", ".join(f"{model} {percent:.2f} %" for model, percent in originals.items())
    lines = [
        f"# {title}",
        "",
        f"Originals on the test images: {listed}.",
        "",
        "| " + " | ".join(heading for heading, _ in _COLUMNS.values()) + " |",
        "|" + "---|" * len(_COLUMNS),
    ]
    for row in rows:
        cells = [template.format(row[key]) for key, (_, template) in _COLUMNS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    study()
