"""The console command `lowrank <step> ...`. Each step imports only what it needs."""

import importlib
from typing import Any

import click

from lowrank.graph.step_names import STEPS


class _Steps(click.Group):
    """A group of commands that imports the module of a step when the step is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(STEPS)

    def get_command(self, context: click.Context, name: str) -> Any:
        if name not in STEPS:
            return None
        return getattr(importlib.import_module(f"lowrank.steps.{name}"), name)


@click.group(cls=_Steps)
@click.version_option(package_name="lowrank")
def main() -> None:
    """Make trained convolutional networks smaller and faster by low-rank decomposition.

    The workflow runs these steps in order. Each step can also be run on its own.
    """


if __name__ == "__main__":
    main()
