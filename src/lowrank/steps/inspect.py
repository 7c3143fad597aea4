"""Write the layer table of a network: what the graph knows of it without importing PyTorch."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say


@click.command(cls=Step)
@click.argument("network")
@click.option("--output", type=Path, help="Default: data/networks/<network>.json.")
def inspect(network: str, output: Path | None) -> None:
    """Write the layer table of a network."""
    from lowrank.files import write_json
    from lowrank.networks.layers import layer_table

    table = layer_table(network)
    output = output or Path("data/networks") / f"{network}.json"
    write_json(output, table.to_json())
    macs = sum(layer.dense_macs for layer in table.layers)
    say(f"{output}: {len(table.layers)} layers, {macs / 1e6:.1f} M multiply-accumulates")


if __name__ == "__main__":
    inspect()
