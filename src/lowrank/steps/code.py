"""Write the digests of the code of all steps, which DVC compares."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, output_path, parameter


@click.command(cls=Step)
@parameter("networks", "Digest of each network's own code, JSON.", Json())
@output_path("output", "Digests by step, JSON.")
def code(
    networks: dict[str, Any],
    output: Path,
) -> None:
    """Write the digests of the code of all steps and networks."""
    from lowrank.graph.code_digests import write_digests

    write_digests(output, networks)
    say(f"{output}: digests of the code of all steps")


if __name__ == "__main__":
    code()
