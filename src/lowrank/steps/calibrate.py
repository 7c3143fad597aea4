"""Run the network before a round over training images, and keep the moments of layers' inputs."""

from pathlib import Path

import click

from lowrank.steps.common import Json, Step, say, use_threads


@click.command(cls=Step)
@click.option("--network", required=True, help="As params.yaml describes it: a name, or JSON.")
@click.option("--state", type=Path, required=True, help="The network before the round.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--layers", type=Json(), required=True, help="The round's layers, JSON.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--images", type=int, required=True, help="How many of its training images.")
@click.option("--threads", type=int, required=True)
@click.option("--moments", type=Path, required=True, help="Output: moments, safetensors.")
def calibrate(
    network: str,
    state: Path,
    table: Path,
    layers: dict[str, str],
    dataset: Path,
    splits: str,
    images: int,
    threads: int,
    moments: Path,
) -> None:
    """Keep the moments of layers' inputs on training images."""
    use_threads(threads)
    import torch

    from lowrank.config.network_source import NetworkSource
    from lowrank.core.layers import LayerTable
    from lowrank.core.progress import counted
    from lowrank.data.batches import EvaluationBatches
    from lowrank.data.datasets import open_dataset, require_match
    from lowrank.files import read_json
    from lowrank.surgery.input_moments import input_moments
    from lowrank.surgery.states import read_state
    from lowrank.surgery.stored_moments import write_moments

    torch.set_num_threads(threads)
    data, before = open_dataset(dataset, splits), read_state(state, NetworkSource.parse(network))
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
