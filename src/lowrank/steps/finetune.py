"""Put a round's factors into the network, measure it, train it, measure it again."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, reuse_memory, say, sole_builder_of, use_threads


@click.command(cls=Step)
@click.option("--network", required=True, help="As params.yaml describes it: a name, or JSON.")
@click.option("--previous", type=Path, required=True, help="The network before the round.")
@click.option("--factors", type=Path, required=True, help="Folder of the round's factors.")
@click.option("--layers", type=Json(), required=True, help="The round's layers, a JSON list.")
@click.option("--round", "round_", type=int, required=True, help="From 1.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--settings", type=Json(), required=True, help="`finetune` of params.yaml, JSON.")
@click.option("--teacher", default="", help="The original, or its outputs, for `distill`.")
@click.option(
    "--largest-drop",
    type=float,
    default=1.0,
    help="Share of the accuracy above chance that factors may cost, where ranks were not tried.",
)
@click.option("--method", default="", help="Its name, for messages.")
@click.option("--resume", type=Path, required=True, help="Where to keep the state of training.")
@click.option("--state", type=Path, required=True, help="Output: the network, safetensors.")
@click.option("--metrics", type=Path, required=True, help="Output: accuracy, JSON.")
@click.option("--curve", type=Path, required=True, help="Output: the training curve, JSON.")
@click.option("--timing", type=Path, required=True, help="Output: steps and seconds, JSON.")
@click.option("--test/--no-test", default=True, help="Measure on the test split, too.")
def finetune(
    network: str,
    previous: Path,
    factors: Path,
    layers: list[str],
    round_: int,
    dataset: Path,
    splits: str,
    settings: dict[str, Any],
    teacher: str,
    largest_drop: float,
    method: str,
    resume: Path,
    state: Path,
    metrics: Path,
    curve: Path,
    timing: Path,
    test: bool,
) -> None:
    """Put a round's factors into the network and train it."""
    use_threads(settings["threads"])
    reuse_memory()
    from dataclasses import asdict

    import torch

    from lowrank.config.finetune import RoundSettings
    from lowrank.config.network_source import NetworkSource
    from lowrank.core.plans import Factored
    from lowrank.core.stored import read_header, read_tensors
    from lowrank.data.datasets import open_dataset
    from lowrank.errors import UserError
    from lowrank.files import sha256_of, write_json
    from lowrank.ranks.milder import ruined
    from lowrank.surgery.prediction import sentence
    from lowrank.surgery.states import put_factors, read_state, write_state
    from lowrank.tasks.classification import accuracy_percent
    from lowrank.training.distillation import AugmentedTeacher, PlainTeacher, read_outputs
    from lowrank.training.hardware import pick_device
    from lowrank.training.loop import fingerprint_of, train
    from lowrank.training.maps import layers_to_watch
    from lowrank.training.trying import Trying

    recipe = RoundSettings.model_validate(settings)
    if bool(teacher) != bool(recipe.distill.weight and recipe.trains):
        raise UserError(
            f"`distill.weight` is {recipe.distill.weight:g} and --teacher is '{teacher}', for a "
            f"round with{'' if recipe.trains else 'out'} steps: give the original where, and only "
            "where, the weight is above 0 and there are steps."
        )
    # Rounds that shared a seed would all see the same images in the same order.
    recipe = recipe.model_copy(update={"seed": recipe.seed + round_ - 1})
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode also fills all new memory, for code that reads what it never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False
    data = open_dataset(dataset, splits)
    source = NetworkSource.parse(network)
    compressed = read_state(previous, source)
    trying = Trying(data.validation, compressed.spec) if largest_drop < 1 else None
    before = trying.accuracy(compressed.network) if trying else 0.0
    files = [factors / f"{layer}.safetensors" for layer in layers]
    for layer, file in zip(layers, files, strict=True):
        header = read_header(file)
        if "dense_because" in header:
            continue
        factored = compressed.factored[layer] = Factored.from_json(header)
        put_factors(
            compressed.network, layer, factored.sequence, read_tensors(file), source=str(file)
        )
    if trying:
        expected = trying.expected(before, trying.accuracy(compressed.network))
        say(sentence(expected))
        if expected.exceeds(largest_drop):
            where = f"methods.{method}.ranks" if method else "ranks"
            raise UserError(ruined(expected, largest_drop, where, "Choose milder settings"))
    learnt_from = None
    if teacher and recipe.distill.images == "plain":
        learnt_from = PlainTeacher(
            read_outputs(teacher, data.train), recipe.distill, len(data.train)
        )
    elif teacher:
        original = read_state(teacher, source)
        layers = layers_to_watch(original.network, original.spec)
        learnt_from = AugmentedTeacher(original.network, recipe.distill, layers)
    module, spec = compressed.network, compressed.spec
    module.to(pick_device(recipe.device))
    inputs = [previous, *files, dataset / "dataset.json", *filter(None, [teacher])]
    inputs += [Path(splits) / "splits.json"] if splits else []
    measured = ("validation", "test") if test else ("validation",)
    with sole_builder_of(resume.with_suffix(".lock")):
        decomposed = accuracy_percent(module, data, spec, measured)
        say(_line("decomposed", decomposed))
        report = train(
            module,
            spec,
            data,
            recipe,
            teacher=learnt_from,
            state_path=resume,
            fingerprint=fingerprint_of(recipe, *map(sha256_of, inputs)),
            say=say,
        )
        finetuned = accuracy_percent(module, data, spec, measured)
        say(_line("fine-tuned", finetuned))
        write_state(state, compressed)
        write_json(metrics, {"accuracy": {"decomposed": decomposed, "finetuned": finetuned}})
        write_json(curve, [{"round": round_, **asdict(point)} for point in report.curve])
        write_json(timing, {"steps": report.steps, "seconds": round(report.seconds, 1)})


def _line(what: str, accuracy: dict[str, float]) -> str:
    measured = (f"{name.replace('_', ' ')} {value:.2f} %" for name, value in accuracy.items())
    return f"{what}: {', '.join(measured)}"


if __name__ == "__main__":
    finetune()
