"""Write down the digests of the code of every step, for DVC to compare."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, output_path, parameter


@click.command(cls=Step)
@parameter("networks", "Digest of each network's own code.", Json())
@output_path("output", "Digests by step, JSON.")
def code(
    networks: dict[str, Any],
    output: Path,
) -> None:
    """Write the digests of the code of every step and of every network."""
    from lowrank.graph.code_digests import write_digests

    write_digests(output, networks)
    say(f"{output}: the code of every step")


if __name__ == "__main__":
    code()
