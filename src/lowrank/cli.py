"""The console command: `lowrank <step> ...`, each step importing no more than it needs."""

import importlib
from typing import Any

import click

from lowrank.graph.step_names import STEPS


class _Steps(click.Group):
    """Loads a step's module when the step is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(STEPS)

    def get_command(self, context: click.Context, name: str) -> Any:
        if name not in STEPS:
            return None
        return getattr(importlib.import_module(f"lowrank.steps.{name}"), name)


@click.group(cls=_Steps)
@click.version_option(package_name="lowrank")
def main() -> None:
    """Make trained convolutional networks small and fast by low-rank decomposition.

    The workflow runs these steps in order; each also runs alone.
    """


if __name__ == "__main__":
    main()
