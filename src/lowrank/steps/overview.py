"""Compare all variants: a table, and pictures of their metric against cost."""

import csv
import io
from pathlib import Path
from typing import Any

import click

from lowrank.core.metric import Metric
from lowrank.errors import UserError
from lowrank.files import read_json, write_text
from lowrank.report.table import overview as overview_of
from lowrank.report.table import place_of, records_of
from lowrank.report.table_page import by_metric, html, markdown
from lowrank.steps.common import Step, say
from lowrank.steps.options import kept_path, output_path, parameter, tasks_option
from lowrank.tasks import metrics_of


@click.command(cls=Step)
@kept_path("results", "results", "Folder of the variants' results.", is_stored=True)
@parameter("variants", "`model:method` of each variant, separated by spaces.")
@tasks_option
@output_path("table", "A line for each network and device, CSV.")
@output_path("page", "The table as a page, Markdown.")
@output_path("web_page", "The table as a page, HTML.")
@output_path("latency", "Accuracy by latency, SVG.")
@output_path("macs", "Accuracy by MACs, SVG.")
@output_path("energy", "Energy of one run, SVG.")
def overview(
    results: Path,
    variants: str,
    tasks: dict[str, str],
    table: Path,
    page: Path,
    web_page: Path,
    latency: Path,
    macs: Path,
    energy: Path,
) -> None:
    """Compare all variants."""
    from lowrank.report.pareto import accuracy_picture, energy_picture
    from lowrank.report.provenance import origin_of
    from lowrank.report.style import stamped

    names = [variant.split(":") for variant in variants.split()]
    metrics = metrics_of((model for model, _ in names), tasks)
    documents = [
        (model, method, _result(results / f"{model}_{method}.json", model, method, metrics[model]))
        for model, method in names
    ]
    records = overview_of(documents, metrics)
    rows = by_metric(records, metrics)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(table, lines.getvalue())
    write_text(page, markdown(records, metrics))
    write_text(web_page, html(records, metrics))
    result_documents = [document for *_, document in documents]
    with stamped(origin_of(result_documents, "snakemake --cores all results/summary.csv")):
        accuracy_picture(
            latency,
            records,
            metrics,
            cost="relative_latency",
            label="latency relative to the original in float32",
            front="on_front_by_latency",
        )
        first_place = {record["network"]: place_of(record) for record in reversed(records)}
        accuracy_picture(
            macs,
            # MACs are the same on every device, so one device is enough.
            [record for record in records if place_of(record) == first_place[record["network"]]],
            metrics,
            cost="macs",
            label="multiply-accumulates for one image, millions",
            unit=1e6,
            front="on_front_by_macs",
        )
        energy_picture(energy, records, _reasons(result_documents))
    say(f"{len(names)} variants: {page}")


def _result(path: Path, model: str, method: str, metric: Metric) -> dict[str, Any]:
    result = read_json(path)
    try:
        records_of(model, method, result, metric)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a result of this version of lowrank ({error!r}). Delete it, or build it "
            f"again: `snakemake --cores all --forcerun summarize -- {path}`."
        ) from error
    return result


def _reasons(documents: list[dict[str, Any]]) -> list[str]:
    """Return the reasons why devices did not measure energy."""
    return [
        f"{device}: {values['not_measured']}"
        for document in documents
        for device, values in document.get("energy_mj", {}).items()
        if "not_measured" in values
    ]


if __name__ == "__main__":
    overview()
