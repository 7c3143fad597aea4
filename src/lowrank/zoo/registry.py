"""Register networks by name and create them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from lowrank.errors import unknown_name

# Channel means and standard deviations of the CIFAR-10 training images, scaled to [0, 1].
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class NetworkSpec:
    """Input that the weights of a network expect; it is stored with the weights.

    `input_shape` is (channels, height, width). `mean` and `std` have one value per channel, in the
    order of `channel_order`, for pixels scaled to [0, 1]. `resize` is the length in pixels of the
    shorter side of an image before the center is cropped to `input_shape`; None means that images
    already have `input_shape`. `layout` is that of the ONNX file's input; in PyTorch, images are
    always (N, C, H, W).
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] = _CIFAR10_MEAN
    std: tuple[float, ...] = _CIFAR10_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    layout: Literal["nchw", "nhwc"] = "nchw"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document for the header of a state file."""
        document = asdict(self) | {
            name: list(getattr(self, name)) for name in ("input_shape", "mean", "std")
        }
        # Left out at their default: they are the same for all networks that are no ONNX files.
        return {
            name: value for name, value in document.items() if name != "layout" or value != "nchw"
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "NetworkSpec":
        """Create a specification from a document that `to_json` returned."""
        lists = {name: tuple(document[name]) for name in ("input_shape", "mean", "std")}
        return cls(**(document | lists))


_REGISTRY: dict[str, tuple[NetworkSpec, Callable[..., nn.Module]]] = {}


def register(spec: NetworkSpec) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the decorated function as the builder of the network that `spec` names.

    Every argument of the function must have a default.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _REGISTRY[spec.name] = (spec, build)
        return build

    return add


def network_names() -> list[str]:
    """Return the names of all registered networks."""
    return sorted(_REGISTRY)


def network_spec(name: str) -> NetworkSpec:
    """Return the specification of a registered network. Raises UserError for an unknown name."""
    return registered(name)[0]


def create_network(name: str) -> nn.Module:
    """Build a registered network with fresh weights. Raises UserError for an unknown name."""
    return registered(name)[1]()


def registered(name: str) -> tuple[NetworkSpec, Callable[..., nn.Module]]:
    """Return the specification and the builder of a network.

    Raises UserError for an unknown name.
    """
    try:
        return _REGISTRY[name]
    except KeyError:
        raise unknown_name("network", name, _REGISTRY) from None
