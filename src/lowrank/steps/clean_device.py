"""Remove from another machine what measurements sent there."""

import click

from lowrank.steps.common import Step, say


@click.command(cls=Step)
@click.argument("name")
def clean_device(name: str) -> None:
    """Remove from the device NAME of params.yaml what measurements sent there."""
    from lowrank.config.reading import load_params
    from lowrank.devices import DeviceError, SshDevice
    from lowrank.errors import UserError, unknown_name

    known = {
        device: settings
        for device, settings in load_params().benchmark.items()
        if settings.kind == "ssh"
    }
    if name not in known:
        raise unknown_name("device of `kind: ssh`", name, known, where="params.yaml: `benchmark`")
    settings = known[name].model_dump(exclude_none=True)
    try:
        found = SshDevice(name, settings).clean()
    except DeviceError as error:
        raise UserError(f"benchmark.{name}: {error}") from error
    where = f"{settings['host']}: {found['folder']}"
    if found["stay"]:
        say(f"{where}: {found['removed']} files removed; not ours, and kept: {found['stay']}")
    elif found["removed"]:
        say(f"{where}: removed, {found['removed']} files")
    else:
        say(f"{where}: nothing was sent there")


if __name__ == "__main__":
    clean_device()
