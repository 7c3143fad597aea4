"""Register networks by name and create them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from lowrank.errors import unknown_name

# Channel means and standard deviations of the CIFAR-10 training images, scaled to [0, 1].
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)


#: Types of inputs that a network takes as they are.
ARRAY_TYPES = ("float32", "int8", "int16", "int32", "int64", "uint8", "bool")


@dataclass(frozen=True)
class InputForm:
    """An input that a network takes as it is: its name, the shape of a sample, and its type.

    The shape has no batch axis. The type has the name that NumPy gives it, such as `int64`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = "".join(f", {size}" for size in self.shape) or ","
        return f"'{self.name}' (N{sizes}) of {self.dtype}"


@dataclass(frozen=True)
class NetworkSpec:
    """Input that the weights of a network expect; it is stored with the weights.

    `input_shape` is (channels, height, width). `mean` and `std` have one value per channel, in the
    order of `channel_order`, for pixels scaled to [0, 1]. `resize` is the length in pixels of the
    shorter side of an image before the center is cropped to `input_shape`; None means that images
    already have `input_shape`. `layout` is that of the ONNX file's input; in PyTorch, images are
    always (N, C, H, W).

    A network that takes no images has `forms`: its inputs, which it takes as they are. Then
    `input_shape` is the shape of the first one, `mean` and `std` are empty, and the fields for
    images have no meaning.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = _CIFAR10_MEAN
    std: tuple[float, ...] = _CIFAR10_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    layout: Literal["nchw", "nhwc"] = "nchw"
    forms: tuple[InputForm, ...] = ()

    @classmethod
    def of_forms(cls, name: str, forms: tuple[InputForm, ...]) -> "NetworkSpec":
        """Create the specification of a network that takes no images."""
        return cls(name, forms[0].shape, 0, mean=(), std=(), forms=forms)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document for the header of a state file."""
        document = asdict(self) | {
            name: list(getattr(self, name)) for name in ("input_shape", "mean", "std")
        }
        del document["forms"]
        # Left out at their default, which most networks have.
        if self.layout == "nchw":
            del document["layout"]
        if self.forms:
            # A list, because the order of the inputs is that of the file.
            document["inputs"] = [
                {"name": form.name, "shape": list(form.shape), "type": form.dtype}
                for form in self.forms
            ]
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "NetworkSpec":
        """Create a specification from a document that `to_json` returned."""
        lists = {name: tuple(document[name]) for name in ("input_shape", "mean", "std")}
        fields = {name: value for name, value in document.items() if name != "inputs"} | lists
        forms = tuple(
            InputForm(form["name"], tuple(form["shape"]), form["type"])
            for form in document.get("inputs", ())
        )
        return cls(**fields, forms=forms)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Sizes of each input of the ONNX file without the batch axis, by name.

        An empty name stands for the only input.
        """
        if self.forms:
            return {form.name: form.shape for form in self.forms}
        channels, *size = self.input_shape
        return {"": (*size, channels) if self.layout == "nhwc" else self.input_shape}


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
