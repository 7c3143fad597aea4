"""Find out in a forward pass which layer feeds which other layer with its channels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

# Functions whose output channel depends on the same channel of each input only. All other tensors
# among their arguments are parameters.
_BY_CHANNEL = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu"),
        *("hardtanh", "hardtanh_", "clamp", "clamp_", "sigmoid", "sigmoid_", "tanh", "tanh_"),
        *("gelu", "silu", "hardswish", "hardsigmoid", "mish", "softplus", "softsign", "logsigmoid"),
        *("dropout", "dropout_", "dropout2d", "clone", "contiguous", "detach", "batch_norm"),
        *("max_pool2d", "_max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
    }
)

# Among these, functions of maps only, (N, C, H, W).
_FOR_MAPS = frozenset(name for name in _BY_CHANNEL if "pool" in name)

# The same for functions of two tensors, if both come from the same layer, or one is a number.
_ELEMENTWISE = frozenset({"mul", "mul_", "__mul__", "__rmul__", "add", "add_", "__add__", "sub"})

# Additions of two maps.
_ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})


@dataclass(eq=False)
class _Channels:
    """The output channels of a layer, and who reads them.

    `other_reads` is the number of functions that mix them or return them with other channels. Of
    these, `additions` add them to another map, as they leave the layer. `output` is the tensor that
    the layer returned, after a batch normalization that follows it; None after a function has
    changed it in place.
    """

    layer: nn.Module
    output: Tensor | None
    readers: list[nn.Module] = field(default_factory=list)
    other_reads: int = 0
    additions: int = 0


class Feeding(TorchFunctionMode):
    """Context that follows the output channels of layers to the layers that read them.

    `called` must be called after each call of a layer.
    """

    def __init__(self) -> None:
        super().__init__()
        # By identity of the tensor. Tensors are kept alive, so that no other one gets the same.
        self._channels: dict[int, tuple[Tensor, _Channels]] = {}

    def called(self, layer: nn.Module, inputs: Tensor, outputs: Any) -> None:
        """Record that a layer read a tensor and returned another one."""
        if (channels := self._of(inputs)) is not None:
            channels.readers.append(layer)
            channels.other_reads -= 1  # The function that computes the layer.
        if isinstance(outputs, Tensor):
            self._channels[id(outputs)] = (outputs, _Channels(layer, outputs))

    def feeders(self, outputs: Any) -> dict[nn.Module, nn.Module]:
        """Return for each layer the layer whose channels it alone reads, if there is one.

        `outputs` are the outputs of the network.
        """
        for tensor in _tensors(outputs):
            if (channels := self._of(tensor)) is not None:
                channels.other_reads += 1
        return {
            channels.readers[0]: channels.layer
            for _, channels in self._channels.values()
            if len(channels.readers) == 1 and not channels.other_reads
        }

    def added(self) -> list[nn.Module]:
        """Return the layers whose output is only added to another map. Call `feeders` before."""
        return [
            channels.layer
            for tensor, channels in self._channels.values()
            if tensor is channels.output
            and not channels.readers
            and channels.other_reads == channels.additions == 1
        ]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if not _tensors(outputs):
            return outputs  # A size or another attribute.
        inputs = _tensors((args, kwargs))
        read = {entry for tensor in inputs if (entry := self._of(tensor)) is not None}
        if len(read) == 1 and isinstance(outputs, Tensor) and self._is_by_channel(func, inputs):
            (channels,) = read
            if getattr(func, "__name__", "") == "batch_norm" and inputs[0] is channels.output:
                channels.output = outputs  # It becomes a part of the layer.
            elif outputs is channels.output:
                channels.output = None
            self._channels[id(outputs)] = (outputs, channels)
            return outputs
        for channels in read:
            channels.other_reads += 1
        if getattr(func, "__name__", "") in _ADDITIONS:
            self._added(args, outputs)
        return outputs

    def _added(self, terms: Sequence[Any], outputs: Any) -> None:
        """Record an addition for the first term that is the output of a layer.

        One term must stay, because it gives the sum its shape.
        """
        tensors = [term for term in terms if isinstance(term, Tensor)]
        if any(term.shape != outputs.shape for term in tensors):
            return
        for term in tensors:
            channels = self._of(term)
            if channels and channels.output is term:
                channels.additions += 1
                return

    def _is_by_channel(self, func: Callable[..., Any], inputs: Sequence[Tensor]) -> bool:
        """Return whether each output channel depends on the same channel of the inputs only."""
        name = getattr(func, "__name__", "")
        others = [tensor for tensor in inputs if self._of(tensor) is None]
        if name in _ELEMENTWISE:
            return all(tensor.numel() == 1 for tensor in others)
        channels = self._of(inputs[0])
        if channels is None or (name in _FOR_MAPS and isinstance(channels.layer, nn.Linear)):
            return False
        return name in _BY_CHANNEL

    def _of(self, tensor: Tensor) -> _Channels | None:
        entry = self._channels.get(id(tensor))
        return entry[1] if entry else None


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
