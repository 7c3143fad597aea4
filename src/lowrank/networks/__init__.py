"""PyTorch: architectures, reading checkpoints, finding layers, putting factors in."""

from lowrank.networks import resnet, vgg  # noqa: F401  (registers the networks)
from lowrank.networks.registry import NetworkSpec, create_network, network_names, network_spec

__all__ = ["NetworkSpec", "create_network", "network_names", "network_spec"]
