"""Write down the digests of the code of every step, for DVC to compare."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, say


@click.command(cls=Step)
@click.option("--networks", type=Json(), required=True, help="Digest of each network's own code.")
@click.option("--output", type=Path, required=True, help="Output: digests by step, JSON.")
def code(networks: dict[str, Any], output: Path) -> None:
    """Write the digests of the code of every step and of every network."""
    from lowrank.graph.code_digests import write_digests

    write_digests(output, networks)
    say(f"{output}: the code of every step")


if __name__ == "__main__":
    code()
