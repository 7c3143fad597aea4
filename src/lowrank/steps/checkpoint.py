"""Bring trained weights from any source into one form, and measure them."""

from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, reuse_memory, say, use_threads
from lowrank.steps.options import input_path, network_option, output_path, parameter


@click.command(cls=Step)
@network_option
@input_path("weights", "A .safetensors, PyTorch (.pth, .pt, .ckpt, .bin) or .caffemodel file.")
@parameter("state_key", "Which weights of a PyTorch file with several.", default="")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("threads", "CPU threads of the linear algebra.", int)
@output_path("state", "The network, safetensors.")
@output_path("metrics", "Its accuracy, JSON.")
@output_path("replaceable", "Which layers must stay, and why, JSON.")
def checkpoint(
    network: NetworkSource,
    weights: Path,
    state_key: str,
    dataset: Path,
    splits: Path | None,
    threads: int,
    state: Path,
    metrics: Path,
    replaceable: Path,
) -> None:
    """Bring trained weights into one form, and measure them."""
    use_threads(threads)
    reuse_memory()
    import torch

    from lowrank.data.datasets import open_dataset
    from lowrank.data.splits import gap_warning
    from lowrank.files import write_json
    from lowrank.surgery.equality import IMAGES, layers_that_must_stay
    from lowrank.surgery.finding import find_layers
    from lowrank.surgery.states import State, write_state
    from lowrank.tasks.classification import accuracy_percent, inputs_of
    from lowrank.zoo.creation import create
    from lowrank.zoo.weight_files import load_trained, read_weights

    torch.set_num_threads(threads)
    # A file may hold what weights are computed from (`weight_g`, `weight_v`), or the weights.
    spec, model = create(network, folded=False)
    found = read_weights(weights, model, key=state_key or None, say=say)
    load_trained(model, found, source=str(weights), say=say)
    data = open_dataset(dataset, splits)
    accuracy = accuracy_percent(model, data, spec)
    say(f"validation {accuracy['validation']:.2f} %, test {accuracy['test']:.2f} %")
    counts = {"validation": len(data.validation), "test": len(data.test)}
    warning = gap_warning(accuracy, **counts, validation_from=data.validation_from)
    if warning:
        say(f"warning: {warning}")
    images, _ = next(inputs_of(model, data.validation.sample(IMAGES), spec))
    table = find_layers(model, spec.input_shape, spec.name)
    stays = layers_that_must_stay(model, table, images, say=say)
    factorable = sum(not layer.not_factored for layer in table.layers)
    say(
        f"factors that lose nothing leave the outputs for {len(images)} images as they are in "
        f"{factorable - len(stays)} of {factorable} layers"
    )
    write_json(replaceable, {"images": len(images), "stays_dense": stays})
    write_state(state, State(spec, model, {}, network))
    chosen = {"from": data.validation_from, "images": counts["validation"]}
    write_json(
        metrics,
        {
            "accuracy": accuracy,
            "validation": chosen | ({"warning": warning} if warning else {}),
            "reported": {"from": "test", "images": counts["test"]},
        },
    )


if __name__ == "__main__":
    checkpoint()
