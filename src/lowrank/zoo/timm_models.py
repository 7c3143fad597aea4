"""Networks of timm by name, with the preprocessing that their weights expect."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from lowrank.errors import UserError, unknown_name
from lowrank.zoo.registry import NetworkSpec

#: Prefix of the names of timm's networks, such as `timm/resnet18.a1_in1k`.
PREFIX = "timm/"


def timm_network(name: str, arguments: dict[str, Any]) -> tuple[NetworkSpec, nn.Module]:
    """Build a network of timm with fresh weights, and return it with its specification.

    Parameters
    ----------
    name
        Name in timm, with the tag of the weights: `resnet18.a1_in1k`. The tag determines the
        preprocessing. Without it, that of timm's default weights is used.
    arguments
        Arguments for `timm.create_model`.

    Raises
    ------
    UserError
        If timm is not installed, the name is unknown, or the network cannot be built.
    """
    try:
        import timm
        import timm.data
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError(
            f"network '{PREFIX}{name}': the package `timm` is not installed. Install it with "
            "`pip install timm`, then run the same command again."
        ) from error
    architecture = name.partition(".")[0]
    if architecture not in (known := timm.list_models()):
        raise unknown_name("timm network", architecture, known)
    try:
        network = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"network '{PREFIX}{name}': cannot be built with the arguments {arguments} ({error}). "
            "Correct the tag after the dot, or `arguments` in params.yaml."
        ) from error
    config = timm.data.resolve_model_data_config(network)
    channels, height, width = config["input_size"]
    # The shorter side of an image gets this length before its center is cropped.
    resize = math.floor(min(height, width) / config["crop_pct"])
    spec = NetworkSpec(
        name=PREFIX + name,
        input_shape=(channels, height, width),
        num_classes=0,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize=resize,
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )
    return spec, network
