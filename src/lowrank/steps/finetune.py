"""Insert the factors of a round into the network, measure it, train it and measure it again."""

from pathlib import Path

import click

from lowrank.config.finetune import RoundSettings
from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, reuse_memory, say, sole_builder_of, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    kept_path,
    network_option,
    output_path,
    parameter,
    wildcard,
)


@click.command(cls=Step)
@network_option
@input_path("previous", "The network before the round.")
@input_paths("factors", "Factors of the round's layers, safetensors.")
@wildcard("round", "Number of the round, from 1.", int, variable="round_number")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("settings", "`finetune` of params.yaml, JSON.", Json(RoundSettings))
@input_path("teacher", "For `distill`: the original network, or its outputs.", optional=True)
@parameter(
    "largest_drop",
    "Largest allowed drop by the factors, a share of the accuracy above chance; 1 for no limit.",
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
@output_path("metrics", "Accuracy, JSON.")
@output_path("curve", "The training curve, JSON.")
@output_path("timing", "Steps and seconds, JSON.")
@parameter("test", "Also measure the accuracy on the test split.", bool, default=True)
def finetune(
    network: NetworkSource,
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
    use_threads(settings.threads)
    reuse_memory()
    from dataclasses import asdict

    import torch

    from lowrank.core.plans import Factored
    from lowrank.core.stored import read_header, read_tensors
    from lowrank.data.datasets import open_dataset
    from lowrank.errors import UserError
    from lowrank.files import sha256_of, write_json
    from lowrank.ranks.milder import ruined
    from lowrank.surgery.states import put_factors, read_state, write_state
    from lowrank.tasks.classification import accuracy_percent
    from lowrank.tasks.trying import Trying
    from lowrank.training.distillation import AugmentedTeacher, PlainTeacher, read_outputs
    from lowrank.training.hardware import pick_device
    from lowrank.training.loop import fingerprint_of, train
    from lowrank.training.maps import layers_to_watch

    if bool(teacher) != bool(settings.distill.weight and settings.trains):
        raise UserError(
            f"`distill.weight` is {settings.distill.weight:g} and --teacher is "
            f"'{teacher or ''}', for a round with{'' if settings.trains else 'out'} steps. Give "
            "--teacher if and only if the weight is above 0 and the round has steps."
        )
    # Each round has its own seed, so that it does not see the images in the same order.
    settings = settings.model_copy(update={"seed": settings.seed + round_number - 1})
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default, deterministic mode also fills new memory, which only helps code with errors.
    torch.utils.deterministic.fill_uninitialized_memory = False
    data = open_dataset(dataset, splits)
    compressed = read_state(previous, network)
    trying = Trying(data.validation, compressed.spec) if largest_drop < 1 else None
    before = trying.accuracy(compressed.network) if trying else 0.0
    for file in factors:
        layer, header = file.name.removesuffix(".safetensors"), read_header(file)
        if "dense_because" in header:
            continue
        factored = compressed.factored[layer] = Factored.from_json(header)
        put_factors(
            compressed.network, layer, factored.sequence, read_tensors(file), source=str(file)
        )
    if trying:
        expected = trying.expected(before, trying.accuracy(compressed.network))
        say(expected.sentence())
        if expected.exceeds(largest_drop):
            where = f"methods.{method}.ranks" if method else "ranks"
            raise UserError(ruined(expected, largest_drop, where, "Choose milder settings"))
    teacher_model = None
    if teacher and settings.distill.images == "plain":
        teacher_model = PlainTeacher(
            read_outputs(teacher, data.train), settings.distill, len(data.train)
        )
    elif teacher:
        original = read_state(teacher, network)
        layers = layers_to_watch(original.network, original.spec)
        teacher_model = AugmentedTeacher(original.network, settings.distill, layers)
    module, spec = compressed.network, compressed.spec
    module.to(pick_device(settings.device))
    inputs = [previous, *factors, dataset / "dataset.json", *filter(None, [teacher])]
    inputs += [splits / "splits.json"] if splits else []
    split_names = ("validation", "test") if test else ("validation",)
    with sole_builder_of(resume.with_suffix(".lock")):
        decomposed = accuracy_percent(module, data, spec, split_names)
        say(_describe("decomposed", decomposed))
        report = train(
            module,
            spec,
            data,
            settings,
            teacher=teacher_model,
            state_path=resume,
            fingerprint=fingerprint_of(settings, *map(sha256_of, inputs)),
            say=say,
        )
        finetuned = accuracy_percent(module, data, spec, split_names)
        say(_describe("fine-tuned", finetuned))
        write_state(state, compressed)
        write_json(metrics, {"accuracy": {"decomposed": decomposed, "finetuned": finetuned}})
        write_json(curve, [{"round": round_number, **asdict(point)} for point in report.curve])
        write_json(timing, {"steps": report.steps, "seconds": round(report.seconds, 1)})


def _describe(label: str, accuracy: dict[str, float]) -> str:
    figures = (f"{name.replace('_', ' ')} {value:.2f} %" for name, value in accuracy.items())
    return f"{label}: {', '.join(figures)}"


if __name__ == "__main__":
    finetune()
