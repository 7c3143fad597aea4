"""Watching what a forward pass does with the layers of a network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

# Channels, height and width.
Map = tuple[int, int, int]


class StandIn(nn.Module):
    """Stands in a layer's place during a forward pass, as its factors would.

    Parameters
    ----------
    layer
        The layer that is called in the end.
    called
        Told of each call, after it: the stand-in and the layer's input.

    Attributes
    ----------
    asked_for
        What the network read of the layer (`weight`, `stride`) apart from calling it: factors in
        its place would have no such thing.
    calls
        How often it was called.
    """

    def __init__(self, layer: nn.Module, called: Callable[["StandIn", Tensor], None]) -> None:
        super().__init__()
        self.layer = layer
        self.asked_for: set[str] = set()
        self.calls = 0
        self._called = called

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.layer(*args, **kwargs)
        self.calls += 1
        self._called(self, args[0] if args else kwargs["input"])
        return outputs

    def __getattr__(self, name: str) -> Any:
        # Reached for what the stand-in itself has not.
        if name == "layer":
            return super().__getattr__(name)
        found = getattr(self.layer, name)
        if not name.startswith("_"):
            self.asked_for.add(name)
        return found


@contextmanager
def standing_in(network: nn.Module, stand_ins: Iterable[StandIn]) -> Iterator[None]:
    """Put stand-ins in the places of their layers, and the layers back at the end."""
    by_layer = {stand_in.layer: stand_in for stand_in in stand_ins}
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


class FlattenedMaps(TorchFunctionMode):
    """Notes, while it is active, which vectors are maps that were flattened."""

    def __init__(self) -> None:
        super().__init__()
        # By place in memory and shape: what passes a tensor on unchanged keeps both. The tensors
        # are kept, so that no other gets their place.
        self._maps: dict[tuple[int, tuple[int, ...]], Map] = {}
        self._kept: list[Tensor] = []

    def shape_before(self, vectors: Tensor) -> Map | None:
        """The map that was flattened into these vectors, of shape (N, C H W); None if none was."""
        return self._maps.get(_place(vectors))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        tensors = [each for each in _pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if len(tensors) == 1 and isinstance(outputs, Tensor) and not is_lazy(tensors[0]):
            self._follow(tensors[0], outputs)
        return outputs

    def _follow(self, inputs: Tensor, outputs: Tensor) -> None:
        if inputs.ndim == 4 and outputs.shape == (len(inputs), inputs[0].numel()):
            before = tuple(inputs.shape[1:])
        elif inputs.shape == outputs.shape:
            # Dropout, an activation, another memory order: each value keeps its place.
            before = self.shape_before(inputs)
        else:
            return
        if before:
            self._maps[_place(outputs)] = before
            self._kept.append(outputs)


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
