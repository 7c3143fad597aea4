"""Compute the outputs of the original network, from which compressed networks learn."""

from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.stages import TeacherOutputsSettings
from lowrank.steps.common import Step, reuse_memory, say, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    network_option,
    output_path,
    parameter,
    task_option,
)


@click.command(cls=Step)
@network_option
@task_option
@input_path("state", "The original network, safetensors.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("settings", "`teacher_outputs` of params.yaml, JSON.", Json(TeacherOutputsSettings))
@output_path("output", "Logits and feature maps, safetensors.")
def teacher_outputs(
    network: NetworkSource,
    task: str,
    state: Path,
    dataset: Path,
    splits: Path | None,
    settings: TeacherOutputsSettings,
    output: Path,
) -> None:
    """Compute the outputs of the original network for the training images, without augmentation."""
    use_threads(settings.threads)
    reuse_memory()
    import torch

    from lowrank.data.datasets import open_dataset
    from lowrank.evaluation.network import require_match
    from lowrank.surgery.states import read_state
    from lowrank.tasks import get_task
    from lowrank.training.distillation import write_outputs
    from lowrank.training.hardware import autocast, pick_device, pick_precision
    from lowrank.training.maps import layers_to_watch

    torch.set_num_threads(settings.threads)
    data, original = open_dataset(dataset, splits), read_state(state, network)
    require_match(get_task(task), data, original.spec)
    layers = layers_to_watch(
        original.network,
        original.spec,
        count=settings.maps,
        images=len(data.train) * (2 if settings.mirrored else 1),
        largest_bytes=settings.maps_mebibytes * 2**20,
    )
    device = pick_device(settings.device)
    with autocast(device, pick_precision(settings.precision, device)):
        write_outputs(
            output,
            original.network.to(device),
            data.train,
            original.spec,
            layers=layers,
            mirrored=settings.mirrored,
        )
    stored = f"logits and the inputs of {', '.join(layers)}" if layers else "logits"
    mirrored = ", plain and mirrored" if settings.mirrored else ""
    say(f"stored {stored} for {len(data.train)} training images{mirrored}")


if __name__ == "__main__":
    teacher_outputs()
