"""Write the layer table of a network, which describes it to the graph without PyTorch."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say


@click.command(cls=Step)
@click.argument("network")
@click.option(
    "--name",
    help="Name of the table. Default: the name of the network, or of the factory's function.",
)
@click.option("--output", type=Path, help="Default: data/networks/<name>.json.")
def inspect(network: str, name: str | None, output: Path | None) -> None:
    """Write the layer table of NETWORK: a name, or a JSON document like {"factory": ...}."""
    from lowrank.config.network_source import NetworkSource
    from lowrank.files import sha256_of, write_json
    from lowrank.graph.code_digests import digest_of_module
    from lowrank.surgery.finding import layer_table

    source = NetworkSource.parse(network)
    name = name or source.short_name
    table = layer_table(source, name)
    output = output or Path("data/networks") / f"{name}.json"
    # The source and the code are stored, so that the workflow detects when the table is stale.
    code = {}
    if source.factory:
        code = {"code": digest_of_module(source.factory.partition(":")[0])}
    elif source.onnx:
        code = {"code": sha256_of(source.onnx)}
    write_json(output, table.to_json() | {"source": source.to_json()} | code)
    macs = sum(layer.dense_macs for layer in table.layers)
    say(f"{output}: {len(table.layers)} layers, {macs / 1e6:.1f} M multiply-accumulates")


if __name__ == "__main__":
    inspect()
