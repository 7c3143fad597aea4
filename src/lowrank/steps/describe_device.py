"""Write a description of a device's processor."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, output_path, parameter, wildcard


@click.command(cls=Step)
@wildcard("device", "Name of the device under `benchmark` in params.yaml.")
@parameter("settings", "benchmark.<device>, JSON.", Json())
@output_path("output", "The description, JSON.")
def describe_device(
    device: str,
    settings: dict[str, Any],
    output: Path,
) -> None:
    """Write a description of a device's processor."""
    from lowrank.config.device_kinds import create_device
    from lowrank.devices import DeviceError
    from lowrank.devices.processor import Processor, integer_types
    from lowrank.errors import UserError
    from lowrank.files import write_json

    try:
        description = create_device(device, settings).describe({})
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    types = integer_types(Processor.from_json(description))
    has_dot_products = description["vnni"] or description["dot_product"]
    say(
        f"{device}: {description['cpu']} ({description['architecture']}), "
        f"{'with' if has_dot_products else 'without'} 8-bit dot products, "
        f"{description['runtime']} {description['runtime_version']}; int8 networks for it have "
        f"{types.activations} activations{' and weights of 7 bits' if types.reduce_range else ''}"
    )
    write_json(output, description)


if __name__ == "__main__":
    describe_device()
