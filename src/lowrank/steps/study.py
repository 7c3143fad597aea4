"""Compare the variants of a study: records, a table and a picture."""

from pathlib import Path

import click

from lowrank.config.studies import StudySettings
from lowrank.files import read_json, write_json, write_text
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, kept_path, output_path, parameter, tasks_option, wildcard


@click.command(cls=Step)
@wildcard("study", "Name of the study under `studies` in params.yaml.")
@parameter("settings", "studies.<name>, JSON.", Json(StudySettings))
@tasks_option
@kept_path("results", "results", "Folder of the variants' results.", is_stored=True)
@output_path("records", "A record for each variant, JSON.")
@output_path("table", "The records as a table, Markdown.")
@output_path("picture", "The picture of the study, SVG.")
def study(
    study: str,
    settings: StudySettings,
    tasks: dict[str, str],
    results: Path,
    records: Path,
    table: Path,
    picture: Path,
) -> None:
    """Compare the variants of a study."""
    from lowrank.report.provenance import origin_of
    from lowrank.report.study_picture import study_picture
    from lowrank.report.study_table import markdown, record
    from lowrank.report.style import stamped
    from lowrank.tasks import metrics_of

    documents = {
        (model, variant): read_json(results / f"{model}_{study}_{variant}.json")
        for model in settings.models
        for variant in settings.variants
    }
    rows = [record(*names, document) for names, document in documents.items()]
    metrics = metrics_of(settings.models, tasks)
    write_json(records, rows)
    write_text(table, markdown(settings.title, rows, metrics))
    with stamped(
        origin_of(documents.values(), f"snakemake --cores all results/studies/{study}.svg")
    ):
        study_picture(picture, rows, metrics, title=settings.title, x=settings.x)
    say(f"{len(rows)} variants: {table}, {picture}")


if __name__ == "__main__":
    study()
