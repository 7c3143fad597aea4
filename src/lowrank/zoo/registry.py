"""Networks by name: one decorator beside a definition, one entry point to create it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from lowrank.errors import unknown_name

# Channel means and standard deviations of CIFAR-10's training images, scaled to [0, 1].
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class NetworkSpec:
    """What a network's weights expect of their input, and so travels with them.

    `input_shape` is (channels, height, width). `mean` and `std` are per channel, in the order that
    `channel_order` says, for pixels scaled to [0, 1]. `resize` is the length in pixels of an
    image's shorter side before its middle is cut out at `input_shape`; None: images come at
    `input_shape`.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] = _CIFAR10_MEAN
    std: tuple[float, ...] = _CIFAR10_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def to_json(self) -> dict[str, Any]:
        """The document that stands in the header of a state file."""
        return asdict(self) | {
            name: list(getattr(self, name)) for name in ("input_shape", "mean", "std")
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "NetworkSpec":
        """The inverse of `to_json`."""
        lists = {name: tuple(document[name]) for name in ("input_shape", "mean", "std")}
        return cls(**(document | lists))


_REGISTRY: dict[str, tuple[NetworkSpec, Callable[..., nn.Module]]] = {}


def register(spec: NetworkSpec) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorate a function that builds the network named in `spec`; every argument has a default."""

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _REGISTRY[spec.name] = (spec, build)
        return build

    return add


def network_names() -> list[str]:
    """The names of the networks that are registered here."""
    return sorted(_REGISTRY)


def network_spec(name: str) -> NetworkSpec:
    """The input and classes of a registered network. Raises UserError for an unknown name."""
    return registered(name)[0]


def create_network(name: str) -> nn.Module:
    """Build a registered network with fresh weights. Raises UserError for an unknown name."""
    return registered(name)[1]()


def registered(name: str) -> tuple[NetworkSpec, Callable[..., nn.Module]]:
    """A network's specification and its function. Raises UserError for an unknown name."""
    try:
        return _REGISTRY[name]
    except KeyError:
        raise unknown_name("network", name, _REGISTRY) from None
