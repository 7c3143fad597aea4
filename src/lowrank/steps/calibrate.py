"""Run the network before a round over training images, and keep the moments of layers' inputs."""

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
@parameter("images", "How many of its training images.", int)
@parameter("threads", "CPU threads of the linear algebra.", int)
@output_path("moments", "Moments, safetensors.")
def calibrate(
    network: NetworkSource,
    state: Path,
    table: Path,
    layers: dict[str, str],
    dataset: Path,
    splits: Path | None,
    images: int,
    threads: int,
    moments: Path,
) -> None:
    """Keep the moments of layers' inputs on training images."""
    use_threads(threads)
    import torch

    from lowrank.core.layers import LayerTable
    from lowrank.core.progress import counted
    from lowrank.data.batches import EvaluationBatches
    from lowrank.data.datasets import open_dataset, require_match
    from lowrank.files import read_json
    from lowrank.surgery.input_moments import input_moments
    from lowrank.surgery.states import read_state
    from lowrank.surgery.stored_moments import write_moments

    torch.set_num_threads(threads)
    data, before = open_dataset(dataset, splits), read_state(state, network)
    require_match(data, before.spec)
    known = LayerTable.from_json(read_json(table))
    sample = data.train.sample(images)
    batches = EvaluationBatches(sample, before.spec)
    found = input_moments(
        before.network,
        [known[name] for name in layers],
        counted((batches[number][0] for number in range(len(batches))), len(sample)),
    )
    for name, each in found.items():
        if each.samples < (size := each.covariance.shape[-1]):
            say(
                f"warning: {name}: {each.samples} samples for a covariance of {size} entries; what "
                "they do not show is decomposed by the weights. Raise `factorize.images`."
            )
    write_moments(moments, found)
    say(f"moments of {len(found)} layers on {len(sample)} training images")


if __name__ == "__main__":
    calibrate()
