"""PyTorch: architectures, reading checkpoints, finding layers, putting factors in."""

from lowrank.networks import alexnet, googlenet, resnet, squeezenet, vgg  # noqa: F401  (register)
from lowrank.networks.registry import NetworkSpec, create_network, network_names, network_spec

__all__ = ["NetworkSpec", "create_network", "network_names", "network_spec"]
