"""Network architectures and the sources of their weights."""

from lowrank.zoo import alexnet, googlenet, resnet, squeezenet, vgg  # noqa: F401  (registers them)
from lowrank.zoo.registry import NetworkSpec, create_network, network_names, network_spec

__all__ = ["NetworkSpec", "create_network", "network_names", "network_spec"]
