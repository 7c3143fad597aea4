"""Networks by name: one decorator beside a definition, one entry point to create it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lowrank.errors import unknown_name

# Channel means and standard deviations of CIFAR-10's training images, scaled to [0, 1].
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class NetworkSpec:
    """What a network's weights expect of their input, and so travels with them.

    `input_shape` is (channels, height, width); `mean` and `std` are per channel, for pixels
    scaled to [0, 1].
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] = _CIFAR10_MEAN
    std: tuple[float, ...] = _CIFAR10_STD


_REGISTRY: dict[str, tuple[NetworkSpec, Callable[[], nn.Module]]] = {}


def register(spec: NetworkSpec) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Decorate a function without arguments that builds the network named in `spec`."""

    def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        _REGISTRY[spec.name] = (spec, build)
        return build

    return add


def network_names() -> list[str]:
    """The names that `create_network` knows."""
    return sorted(_REGISTRY)


def network_spec(name: str) -> NetworkSpec:
    """The input and classes of a registered network. Raises UserError for an unknown name."""
    return _lookup(name)[0]


def create_network(name: str) -> nn.Module:
    """Build a registered network with fresh weights. Raises UserError for an unknown name."""
    return _lookup(name)[1]()


def _lookup(name: str) -> tuple[NetworkSpec, Callable[[], nn.Module]]:
    try:
        return _REGISTRY[name]
    except KeyError:
        raise unknown_name("network", name, _REGISTRY) from None
