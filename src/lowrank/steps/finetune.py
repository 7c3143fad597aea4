"""Insert the factors of a round into the network, measure it, train it and measure it again."""

from pathlib import Path

import click

from lowrank.config.finetune import RoundSettings
from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import (
    Step,
    ran_in_copies,
    reuse_memory,
    say,
    sole_builder_of,
    use_threads,
)
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    kept_path,
    network_option,
    output_path,
    parameter,
    reference_option,
    task_option,
    wildcard,
)


@click.command(cls=Step)
@network_option
@task_option
@reference_option
@input_path("previous", "The network before the round.")
@input_paths("factors", "Factors of the round's layers, safetensors.")
@wildcard("round", "Number of the round, from 1.", int, variable="round_number")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("settings", "`finetune` of params.yaml, JSON.", Json(RoundSettings))
@input_path("teacher", "For `distill`: the original network, or its outputs.", optional=True)
@parameter(
    "largest_drop",
    "Largest allowed drop by the factors, a share of the metric above chance; 1 for no limit.",
    float,
    default=1.0,
)
@wildcard("method", "Name of the method, for messages.", default="")
@kept_path(
    "resume",
    "build/resume/{wildcards.model}/{wildcards.method}/{wildcards.round}.pt",
    "State of training, to resume it.",
)
@output_path("state", "The network, safetensors.")
@output_path("metrics", "The task's metric, JSON.")
@output_path("curve", "The training curve, JSON.")
@output_path("timing", "Steps and seconds, JSON.")
@parameter("test", "Also measure the network on the test split.", bool, default=True)
def finetune(
    network: NetworkSource,
    task: str,
    reference: Path | None,
    previous: Path,
    factors: list[Path],
    round_number: int,
    dataset: Path,
    splits: Path | None,
    settings: RoundSettings,
    teacher: Path | None,
    largest_drop: float,
    method: str,
    resume: Path,
    state: Path,
    metrics: Path,
    curve: Path,
    timing: Path,
    test: bool,
) -> None:
    """Insert the factors of a round into the network and train it."""
    threads = use_threads(settings.threads)
    reuse_memory()
    from dataclasses import asdict

    from lowrank.files import sha256_of, write_json
    from lowrank.surgery.states import files_of_factors, write_state
    from lowrank.training.finetuning import (
        Round,
        read_teacher,
        require_teacher_for,
        use_deterministic_torch,
    )
    from lowrank.training.several_processes import joined
    from lowrank.training.state_file import fingerprint_of

    require_teacher_for(settings, teacher)
    factors = files_of_factors(factors)
    lock = resume.with_suffix(".lock")
    if ran_in_copies(settings, lock):
        return
    use_deterministic_torch(threads)
    inputs = [previous, *factors, dataset / "dataset.json", *filter(None, [teacher])]
    inputs += [splits / "splits.json"] if splits else []
    with joined(settings.device) as processes, sole_builder_of(lock):
        images = dataset, splits, reference
        training = Round.load(
            task, previous, network, images, settings, round_number, say, processes
        )
        settings = training.settings
        where = f"methods.{method}.ranks" if method else "ranks"
        training.insert(factors, largest_drop=largest_drop, where=where)
        accuracy, report = training.train(
            read_teacher(teacher, network, settings, training.data) if settings.trains else None,
            state_path=resume,
            fingerprint=fingerprint_of(settings, processes.count, task, *map(sha256_of, inputs)),
            test=test,
        )
        if not processes.is_first:
            return
        write_state(state, training.compressed)
        write_json(metrics, {"accuracy": accuracy})
        write_json(curve, [{"round": round_number, **asdict(point)} for point in report.curve])
        write_json(timing, {"steps": report.steps, "seconds": round(report.seconds, 1)})


if __name__ == "__main__":
    finetune()
