"""Download trained weights of a torchvision classifier."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say


@click.command(cls=Step)
@click.option("--network", required=True, help="A JSON document with `torchvision_weights`.")
@click.option("--output", type=Path, required=True, help="Output: .pth or .safetensors.")
def fetch_weights(network: str, output: Path) -> None:
    """Download trained weights of a torchvision classifier."""
    from lowrank.config.network_source import NetworkSource
    from lowrank.errors import UserError
    from lowrank.zoo.torchvision_models import fetch_torchvision_weights

    source = NetworkSource.parse(network)
    if not source.network or not source.torchvision_weights:
        raise UserError(
            f"{output}: nothing says what to download. Name a network of torchvision's and its "
            "`torchvision_weights` under `checkpoint` in params.yaml, or put the file there."
        )
    fetch_torchvision_weights(source.network, source.torchvision_weights, output)
    say(f"{source.torchvision_weights} of {source.network} are in {output}")


if __name__ == "__main__":
    fetch_weights()
