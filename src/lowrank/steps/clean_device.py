"""Remove the files that measurements sent to another machine."""

from typing import Any

import click

from lowrank.steps.common import Step, say


@click.command(cls=Step)
@click.argument("name")
def clean_device(name: str) -> None:
    """Remove the files that measurements sent to the device NAME of params.yaml."""
    from lowrank.config.device_kinds import DEVICE_KINDS, create_device
    from lowrank.config.reading import load_params
    from lowrank.devices import DeviceError
    from lowrank.errors import UserError, unknown_name

    devices = {
        device: settings
        for device, settings in load_params().benchmark.items()
        if DEVICE_KINDS.get(settings.kind).sends_files
    }
    if name not in devices:
        raise unknown_name(
            "device that keeps files", name, devices, where="params.yaml: `benchmark`"
        )
    try:
        device: Any = create_device(name, devices[name].model_dump())  # `sends_files`: has `clean`
        report = device.clean()
    except DeviceError as error:
        raise UserError(f"benchmark.{name}: {error}") from error
    folder = report["folder"]
    if report["stay"]:
        say(
            f"{folder}: {report['removed']} files removed; kept, because lowrank did not create "
            f"them: {report['stay']}"
        )
    elif report["removed"]:
        say(f"{folder}: removed, {report['removed']} files")
    else:
        say(f"{folder}: no files of lowrank found")


if __name__ == "__main__":
    clean_device()
