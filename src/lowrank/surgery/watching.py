"""Observe how a forward pass uses the layers of a network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

# Channels, height and width.
Map = tuple[int, int, int]


class Proxy(nn.Module):
    """Module that replaces a layer during a forward pass, like factors would.

    Parameters
    ----------
    layer
        Layer that computes the outputs.
    after_call
        Called after each call with the proxy, the input and the output of the layer.

    Attributes
    ----------
    attributes_read
        Attributes of the layer that the network read (`weight`, `stride`). Factors would not have
        them.
    calls
        Number of calls.
    """

    def __init__(self, layer: nn.Module, after_call: "AfterCall") -> None:
        super().__init__()
        self.layer = layer
        self.attributes_read: set[str] = set()
        self.calls = 0
        self._after_call = after_call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.layer(*args, **kwargs)
        self.calls += 1
        self._after_call(self, args[0] if args else kwargs["input"], outputs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for attributes that the proxy itself does not have.
        if name == "layer":
            return super().__getattr__(name)
        value = getattr(self.layer, name)
        if not name.startswith("_"):
            self.attributes_read.add(name)
        return value


# Function that gets a proxy, and the input and the output of its layer.
AfterCall = Callable[[Proxy, Tensor, Any], None]


@contextmanager
def proxies_in_place(network: nn.Module, proxies: Iterable[Proxy]) -> Iterator[None]:
    """Replace layers by their proxies, and restore the layers at the end."""
    by_layer = {proxy.layer: proxy for proxy in proxies}
    places = [
        (module, name, child)
        for module in network.modules()
        for name, child in module._modules.items()
        if child in by_layer
    ]
    for module, name, child in places:
        module._modules[name] = by_layer[child]
    try:
        yield
    finally:
        for module, name, child in places:
            module._modules[name] = child


@contextmanager
def calls_watched(
    modules: Iterable[nn.Module], argument: str, after_call: Callable[[nn.Module, Tensor], None]
) -> Iterator[None]:
    """Call a function after each forward() of some modules, and leave the modules in place.

    Use this for modules that the network asks for their class, or that compute something else with
    hooks. `after_call` gets the module and its first argument, which has the name `argument`.
    """
    watched = list(modules)
    own = {module: vars(module).get("forward") for module in watched}

    def watch(module: nn.Module) -> None:
        forward = module.forward

        def forward_then_call(*args: Any, **kwargs: Any) -> Any:
            outputs = forward(*args, **kwargs)
            after_call(module, args[0] if args else kwargs[argument])
            return outputs

        vars(module)["forward"] = forward_then_call

    for module in watched:
        watch(module)
    try:
        yield
    finally:
        for module in watched:
            del vars(module)["forward"]
            if own[module] is not None:
                vars(module)["forward"] = own[module]


class FlattenedMaps(TorchFunctionMode):
    """Context that records which vectors are flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        # Keys are the memory address and the shape, because operations that return their input
        # keep both. The tensors are kept alive, so that no other tensor gets their address.
        self._maps: dict[tuple[int, tuple[int, ...]], Map] = {}
        self._tensors: list[Tensor] = []

    def shape_before_flattening(self, vectors: Tensor) -> Map | None:
        """Return the shape of the map that was flattened into vectors (N, C H W), or None."""
        return self._maps.get(_address(vectors))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(tensors) == 1 and isinstance(outputs, Tensor) and not is_lazy(tensors[0]):
            self._follow(tensors[0], outputs)
        return outputs

    def _follow(self, inputs: Tensor, outputs: Tensor) -> None:
        if inputs.ndim == 4 and outputs.shape == (len(inputs), inputs[0].numel()):
            _, channels, height, width = inputs.shape
            map_shape: Map | None = (channels, height, width)
        elif inputs.shape == outputs.shape:
            # Dropout, activations and other memory formats keep the position of each value.
            map_shape = self.shape_before_flattening(inputs)
        else:
            return
        if map_shape:
            self._maps[_address(outputs)] = map_shape
            self._tensors.append(outputs)


def _address(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
