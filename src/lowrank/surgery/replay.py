"""Forward passes over the same images that differ from some layer on."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# What is not computed again: nearly all that a pass takes. All else is, also in a network whose
# layers change their inputs in place.
_PRODUCTS = (nn.modules.conv._ConvNd, nn.Linear)


class Replay:
    """Runs a network once, and again with a layer replaced, without the products before that layer.

    A context, in which the network's convolutions and linear layers answer through it. The network
    must be in evaluation mode and answer the same each time.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._layers = [module for module in network.modules() if isinstance(module, _PRODUCTS)]
        self._outputs: list[Tensor] = []
        self._recording = False
        # How many calls there were in this pass; None once it differs from the one recorded.
        self._calls: int | None = None

    def __enter__(self) -> "Replay":
        # Other libraries set it on a layer, too; else the class defines it.
        self._before = [(layer, vars(layer).get("forward")) for layer in self._layers]
        for layer in self._layers:
            layer.forward = self._answering(layer.forward)
        return self

    def __exit__(self, *raised: object) -> None:
        for layer, forward in self._before:
            del layer.forward
            if forward is not None:
                layer.forward = forward

    @property
    def recorded_bytes(self) -> int:
        """What the recorded pass takes in memory."""
        return sum(each.nbytes for each in self._outputs)

    def record(self, images: Tensor) -> Tensor:
        """The network's outputs for images (N, C, H, W); later passes start from these."""
        self._outputs.clear()
        self._calls, self._recording = 0, True
        try:
            return self._network(images)
        finally:
            self._recording = False

    def again(self, images: Tensor, replaced: str) -> Tensor:
        """The outputs for the images recorded last, with another module at that layer's name."""
        self._calls = 0

        def differs(*_: object) -> None:
            self._calls = None

        handle = self._network.get_submodule(replaced).register_forward_pre_hook(differs)
        try:
            return self._network(images)
        finally:
            handle.remove()

    def _answering(self, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if self._calls is None:
                return compute(*args, **kwargs)
            self._calls += 1
            if self._recording:
                self._outputs.append(compute(*args, **kwargs))
            # A copy: an activation may change it in place.
            return self._outputs[self._calls - 1].clone()

        return forward
