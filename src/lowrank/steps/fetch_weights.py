"""Download trained weights of a torchvision classifier."""

from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, say
from lowrank.steps.options import network_option, output_path


@click.command(cls=Step)
@network_option
@output_path("output", "The weights, .pth or .safetensors.")
def fetch_weights(
    network: NetworkSource,
    output: Path,
) -> None:
    """Download trained weights of a torchvision classifier."""
    from lowrank.errors import UserError
    from lowrank.zoo.torchvision_models import fetch_torchvision_weights

    if not network.network or not network.torchvision_weights:
        raise UserError(
            f"{output}: it is not known which weights to download. Set `network` to a network of "
            "torchvision and `torchvision_weights` to its weights under `checkpoint` in "
            "params.yaml, or put the file there."
        )
    fetch_torchvision_weights(network.network, network.torchvision_weights, output)
    say(f"{network.torchvision_weights} of {network.network} are in {output}")


if __name__ == "__main__":
    fetch_weights()
