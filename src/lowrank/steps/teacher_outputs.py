"""Run the original network over the training images, for compressed networks to learn from."""

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
@click.option(
    "--output", type=Path, required=True, help="Output: logits and feature maps, safetensors."
)
def teacher_outputs(
    network: str, state: Path, dataset: Path, splits: str, settings: dict[str, Any], output: Path
) -> None:
    """Run the original network over the training images as they are."""
    use_threads(settings["threads"])
    reuse_memory()
    import torch

    from lowrank.config.network_source import NetworkSource
    from lowrank.config.stages import TeacherOutputsSettings
    from lowrank.data.datasets import open_dataset, require_match
    from lowrank.surgery.states import read_state
    from lowrank.training.distillation import write_outputs
    from lowrank.training.hardware import autocast, pick_device, pick_precision
    from lowrank.training.maps import layers_to_watch

    chosen = TeacherOutputsSettings.model_validate(settings)
    torch.set_num_threads(chosen.threads)
    data, original = open_dataset(dataset, splits), read_state(state, NetworkSource.parse(network))
    require_match(data, original.spec)
    layers = layers_to_watch(
        original.network,
        original.spec,
        count=chosen.maps,
        images=len(data.train) * (2 if chosen.mirrored else 1),
        largest_bytes=chosen.maps_mebibytes * 2**20,
    )
    device = pick_device(chosen.device)
    with autocast(device, pick_precision(chosen.precision, device)):
        write_outputs(
            output,
            original.network.to(device),
            data.train,
            original.spec,
            layers=layers,
            mirrored=chosen.mirrored,
        )
    stored = f"logits and the inputs of {', '.join(layers)}" if layers else "logits"
    mirrored = ", plain and mirrored" if chosen.mirrored else ""
    say(f"{stored} for {len(data.train)} training images{mirrored}")


if __name__ == "__main__":
    teacher_outputs()
