"""Repeat forward passes over the same images with a replaced layer, without repeated work."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# Layers whose outputs are reused. They take nearly all the time of a pass. Everything else is
# computed again, so networks with in-place operations work too.
_REUSED_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class Replay:
    """Context that records a forward pass and repeats it with a replaced layer.

    In repeated passes, convolutions and linear layers before the replaced layer return their
    recorded outputs. The network must be in evaluation mode and deterministic.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._layers = [
            module for module in network.modules() if isinstance(module, _REUSED_LAYERS)
        ]
        self._outputs: list[Tensor] = []
        self._recording = False
        # Number of calls in this pass, or None after the replaced layer was reached.
        self._calls: int | None = None

    def __enter__(self) -> "Replay":
        # Other libraries may have set `forward` on an instance; otherwise the class defines it.
        self._forwards = [(layer, vars(layer).get("forward")) for layer in self._layers]
        for layer in self._layers:
            layer.forward = self._recorded_or_computed(layer.forward)  # type: ignore[method-assign]
        return self

    def __exit__(self, *raised: object) -> None:
        for layer, forward in self._forwards:
            del layer.forward
            if forward is not None:
                layer.forward = forward  # type: ignore[method-assign]

    @property
    def recorded_bytes(self) -> int:
        """Memory of the recorded outputs in bytes."""
        return sum(tensor.nbytes for tensor in self._outputs)

    def record(self, images: Any) -> Any:
        """Run the network on images (N, C, H, W) or other inputs, and record the pass."""
        self._outputs.clear()
        self._calls, self._recording = 0, True
        try:
            return self._network(images)
        finally:
            self._recording = False

    def again(self, images: Any, replaced: str) -> Any:
        """Return the outputs for the recorded images after the layer `replaced` was replaced."""
        self._calls = 0

        def stop_reusing(*_: object) -> None:
            self._calls = None

        handle = self._network.get_submodule(replaced).register_forward_pre_hook(stop_reusing)
        try:
            return self._network(images)
        finally:
            handle.remove()

    def _recorded_or_computed(self, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if self._calls is None:
                return compute(*args, **kwargs)
            self._calls += 1
            if self._recording:
                self._outputs.append(compute(*args, **kwargs))
            # Return a copy, because an activation may change it in place.
            return self._outputs[self._calls - 1].clone()

        return forward
