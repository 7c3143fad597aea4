"""Bring trained weights from any source into one form, and measure them."""

from pathlib import Path

import click

from lowrank.steps.common import Step, reuse_memory, say, use_threads


@click.command(cls=Step)
@click.option("--network", required=True, help="A name, or a JSON document.")
@click.option(
    "--weights",
    type=Path,
    required=True,
    help="A .safetensors, PyTorch (.pth, .pt, .ckpt, .bin) or .caffemodel file.",
)
@click.option("--state-key", default="", help="Which weights of a PyTorch file with several.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--threads", type=int, required=True)
@click.option("--state", type=Path, required=True, help="Output: the network, safetensors.")
@click.option("--metrics", type=Path, required=True, help="Output: its accuracy, JSON.")
@click.option(
    "--replaceable", type=Path, required=True, help="Output: which layers must stay, and why, JSON."
)
def checkpoint(
    network: str,
    weights: Path,
    state_key: str,
    dataset: Path,
    splits: str,
    threads: int,
    state: Path,
    metrics: Path,
    replaceable: Path,
) -> None:
    """Bring trained weights into one form, and measure them."""
    use_threads(threads)
    reuse_memory()
    import torch

    from lowrank.config.network_source import NetworkSource
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
    source = NetworkSource.parse(network)
    # A file may hold what weights are computed from (`weight_g`, `weight_v`), or the weights.
    spec, model = create(source, folded=False)
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
    write_state(state, State(spec, model, {}, source))
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
