"""Run the original network over the training images, for compressed ones to learn from."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, reuse_memory, say, use_threads


@click.command(cls=Step)
@click.option("--network", required=True, help="As params.yaml describes it: a name, or JSON.")
@click.option("--state", type=Path, required=True, help="The original network, safetensors.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option(
    "--settings", type=Json(), required=True, help="`teacher_outputs` of params.yaml, JSON."
)
@click.option("--output", type=Path, required=True, help="Output: the logits, safetensors.")
def teacher_outputs(
    network: str, state: Path, dataset: Path, splits: str, settings: dict[str, Any], output: Path
) -> None:
    """Run the original network over the training images as they are."""
    use_threads(settings["threads"])
    reuse_memory()
    import torch

    from lowrank.network_source import NetworkSource
    from lowrank.networks.states import read_state
    from lowrank.params import TeacherOutputsSettings
    from lowrank.training.datasets import open_dataset, require_match
    from lowrank.training.distillation import write_outputs
    from lowrank.training.hardware import autocast, pick_device, pick_precision

    chosen = TeacherOutputsSettings.model_validate(settings)
    torch.set_num_threads(chosen.threads)
    data, original = open_dataset(dataset, splits), read_state(state, NetworkSource.parse(network))
    require_match(data, original.spec)
    device = pick_device(chosen.device)
    with autocast(device, pick_precision(chosen.precision, device)):
        write_outputs(output, original.network.to(device), data.train, original.spec)
    say(f"outputs for {len(data.train)} training images")


if __name__ == "__main__":
    teacher_outputs()
