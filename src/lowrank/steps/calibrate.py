"""Measure the moments of layers' inputs on calibration images, with the network before a round."""

from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import Json, input_path, network_option, output_path, parameter


@click.command(cls=Step)
@network_option
@input_path("state", "The network before the round.")
@input_path("table", "Its layer table, JSON.")
@parameter("layers", "The round's layers, JSON.", Json())
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("images", "Number of calibration images.", int)
@parameter("threads", "CPU threads of the linear algebra.", int)
@parameter("device", "`calibrate.device` of params.yaml.", default="cpu")
@output_path("moments", "Moments of the layers' inputs, safetensors.")
def calibrate(
    network: NetworkSource,
    state: Path,
    table: Path,
    layers: dict[str, str],
    dataset: Path,
    splits: Path | None,
    images: int,
    threads: int,
    device: str,
    moments: Path,
) -> None:
    """Measure the moments of layers' inputs on calibration images."""
    use_threads(threads)
    import torch

    from lowrank.core.layers import LayerTable
    from lowrank.core.progress import counted
    from lowrank.data.batches import EvaluationBatches
    from lowrank.data.datasets import open_dataset, require_images_match
    from lowrank.files import read_json
    from lowrank.surgery.input_moments import input_moments
    from lowrank.surgery.states import read_state
    from lowrank.surgery.stored_moments import write_moments
    from lowrank.tasks.outputs import mapped
    from lowrank.training.hardware import pick_device

    torch.set_num_threads(threads)
    data, before = open_dataset(dataset, splits), read_state(state, network)
    require_images_match(data, before.spec)
    layer_table = LayerTable.from_json(read_json(table))
    sample = data.calibration.sample(images)
    batches = EvaluationBatches(sample, before.spec)
    processor = pick_device(device)
    inputs = (
        mapped(lambda tensor: tensor.to(processor), batches[number][0])
        for number in range(len(batches))
    )
    moments_by_layer = input_moments(
        before.network.to(processor),
        [layer_table[name] for name in layers],
        counted(inputs, len(sample)),
    )
    for name, layer_moments in moments_by_layer.items():
        if layer_moments.samples < (size := layer_moments.covariance.shape[-1]):
            say(
                f"warning: {name}: only {layer_moments.samples} samples for a covariance of {size} "
                "entries. Directions without samples are decomposed by the weights alone. Increase "
                "`factorize.images`."
            )
    write_moments(moments, moments_by_layer)
    say(f"moments of {len(moments_by_layer)} layers on {len(sample)} images")


if __name__ == "__main__":
    calibrate()
