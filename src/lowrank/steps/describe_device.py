"""Ask a device what its processor can do."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, output_path, parameter, wildcard


@click.command(cls=Step)
@wildcard("device", "Its name under `benchmark` in params.yaml.")
@parameter("settings", "benchmark.<device>, JSON.", Json())
@output_path("output", "The description, JSON.")
def describe_device(
    device: str,
    settings: dict[str, Any],
    output: Path,
) -> None:
    """Ask a device what its processor can do."""
    from lowrank.devices import DeviceError, create_device, main_settings
    from lowrank.devices.processor import Processor, integer_types
    from lowrank.errors import UserError
    from lowrank.files import write_json

    try:
        asked = main_settings(settings)
        found = create_device(device, asked).describe(asked)
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    types = integer_types(Processor.from_json(found))
    say(
        f"{device}: {found['cpu']} ({found['architecture']}), "
        f"{'with' if found['vnni'] or found['dot_product'] else 'without'} 8-bit dot products, "
        f"ONNX Runtime {found['runtime_version']}; int8 networks for it have {types.activations} "
        f"activations{' and weights of 7 bits' if types.reduce_range else ''}"
    )
    write_json(output, found)


if __name__ == "__main__":
    describe_device()
