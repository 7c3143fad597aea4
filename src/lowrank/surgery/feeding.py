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


@dataclass(eq=False)
class _Channels:
    """The output channels of a layer, and who reads them.

    `other_reads` is the number of functions that mix them or return them with other channels.
    """

    layer: nn.Module
    readers: list[nn.Module] = field(default_factory=list)
    other_reads: int = 0


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
            self._channels[id(outputs)] = (outputs, _Channels(layer))

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
            self._channels[id(outputs)] = (outputs, next(iter(read)))
            return outputs
        for channels in read:
            channels.other_reads += 1
        return outputs

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
