"""Architectures of networks, and where their weights come from."""

from lowrank.zoo import alexnet, googlenet, resnet, squeezenet, vgg  # noqa: F401  (register)
from lowrank.zoo.registry import NetworkSpec, create_network, network_names, network_spec

__all__ = ["NetworkSpec", "create_network", "network_names", "network_spec"]
