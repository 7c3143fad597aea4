"""Convert trained weights from any source into one format, and measure the network."""

from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, reuse_memory, say, use_threads
from lowrank.steps.options import (
    input_path,
    network_option,
    output_path,
    parameter,
    task_option,
)


@click.command(cls=Step)
@network_option
@task_option
@input_path(
    "weights", "A .safetensors, PyTorch (.pth, .pt, .ckpt, .bin), .caffemodel or .onnx file."
)
@parameter("state_key", "Key of the weights in a PyTorch file with several.", default="")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("threads", "CPU threads of the linear algebra.", int)
@parameter("device", "`device` of the entry in `checkpoint` of params.yaml.", default="cpu")
@output_path("state", "The network, safetensors.")
@output_path("metrics", "The task's metric of the network, JSON.")
@output_path("replaceable", "Layers that must not be replaced, with reasons, JSON.")
def checkpoint(
    network: NetworkSource,
    task: str,
    weights: Path,
    state_key: str,
    dataset: Path,
    splits: Path | None,
    threads: int,
    device: str,
    state: Path,
    metrics: Path,
    replaceable: Path,
) -> None:
    """Convert trained weights into one format, and measure the network."""
    use_threads(threads)
    reuse_memory()
    import torch

    from lowrank.core.tensors import length
    from lowrank.data.datasets import open_dataset
    from lowrank.evaluation.network import inputs_of, require_labels
    from lowrank.evaluation.original import measure_original
    from lowrank.evaluation.reference import compared_with_itself
    from lowrank.files import write_json
    from lowrank.surgery.equality import IMAGES, layers_that_must_stay
    from lowrank.surgery.finding import find_layers
    from lowrank.surgery.states import State, write_state
    from lowrank.tasks import get_task
    from lowrank.training.hardware import pick_device
    from lowrank.zoo.creation import create
    from lowrank.zoo.weight_files import load_trained, read_weights

    torch.set_num_threads(threads)
    data, measured_task = open_dataset(dataset, splits), get_task(task)
    require_labels(measured_task, data.validation)
    require_labels(measured_task, data.test)
    # A file contains either the weights, or the tensors from which they are computed (`weight_g`,
    # `weight_v`).
    spec, model = create(network, folded=False)
    if not network.onnx:
        tensors = read_weights(weights, model, key=state_key or None, say=say)
        load_trained(model, tensors, source=str(weights), say=say)
    elif model.obstacle:
        say(f"warning: {weights} can be compressed, but not trained: {model.obstacle}")
    data = compared_with_itself(data, measured_task, model)
    document = measure_original(measured_task, model.to(pick_device(device)), data, spec, say=say)
    # Layers are compared on the processor that decomposes them.
    model.cpu()
    inputs, _ = next(inputs_of(model, data.validation.sample(IMAGES), spec))
    table = find_layers(model, spec.input_shape, spec.name, spec.forms)
    dense_reasons = layers_that_must_stay(model, table, inputs, say=say)
    images = length(inputs)
    factorable = sum(not layer.not_factored for layer in table.layers)
    say(
        f"{factorable - len(dense_reasons)} of {factorable} layers can be replaced: exact factors "
        f"do not change the outputs for {images} images"
    )
    write_json(replaceable, {"images": images, "stays_dense": dense_reasons})
    write_state(state, State(spec, model, {}, network))
    write_json(metrics, document)


if __name__ == "__main__":
    checkpoint()
