"""Repeat forward passes over the same images with a replaced layer, without repeated work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Layers whose outputs are reused. They take nearly all the time of a pass.
_REUSED_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)

# Also reused, because they read large maps and return small ones. They never change their input.
_REUSED_POOLING = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


@dataclass
class _Call:
    """A call in the recorded pass: its output, if it is one tensor, and the index after it."""

    output: Tensor | None = None
    end: int = 0


class Replay:
    """Context that records a forward pass and repeats it with a replaced layer.

    In repeated passes, convolutions, linear layers, pooling and whole parts of the network before
    the replaced layer return their recorded outputs. Parts are the modules that contain layers.
    Everything else before it is computed again, so networks with in-place operations work too. The
    network must be in evaluation mode and deterministic.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._modules = [
            module
            for module in network.modules()
            if module is not network
            and any(isinstance(part, _REUSED_LAYERS + _REUSED_POOLING) for part in module.modules())
        ]
        self._recorded: list[_Call] = []
        self._recording = False
        # Number of recorded calls that this pass has made or left out, or None after the replaced
        # layer was reached.
        self._position: int | None = None
        # The modules that contain the replaced layer.
        self._around: set[nn.Module] = set()

    def __enter__(self) -> "Replay":
        # Other libraries may have set `forward` on an instance; otherwise the class defines it.
        self._forwards = [(module, vars(module).get("forward")) for module in self._modules]
        for module in self._modules:
            module.forward = self._recorded_or_computed(module)
        return self

    def __exit__(self, *raised: object) -> None:
        for module, forward in self._forwards:
            del module.forward
            if forward is not None:
                module.forward = forward

    @property
    def recorded_bytes(self) -> int:
        """Memory of the recorded outputs in bytes."""
        return sum(call.output.nbytes for call in self._recorded if call.output is not None)

    def record(self, images: Any) -> Any:
        """Run the network on images (N, C, H, W) or other inputs, and record the pass."""
        self._recorded.clear()
        self._position, self._recording = 0, True
        try:
            return self._network(images)
        finally:
            self._recording = False

    def again(self, images: Any, replaced: str) -> Any:
        """Return the outputs for the recorded images after the layer `replaced` was replaced."""
        self._position = 0
        parents = replaced.split(".")[:-1]
        self._around = {
            self._network.get_submodule(".".join(parents[:depth]))
            for depth in range(1, len(parents) + 1)
        }

        def stop_reusing(*_: object) -> None:
            self._position = None

        handle = self._network.get_submodule(replaced).register_forward_pre_hook(stop_reusing)
        try:
            return self._network(images)
        finally:
            handle.remove()

    def _recorded_or_computed(self, module: nn.Module) -> Callable[..., Any]:
        compute = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._position is None:
                return compute(*args, **kwargs)
            if self._recording:
                return self._record_call(compute, args, kwargs)
            call = self._recorded[self._position]
            if call.output is None or module in self._around:
                self._position += 1
                return compute(*args, **kwargs)
            self._position = call.end
            # Return a copy, because an activation may change it in place.
            return call.output.clone()

        return forward

    def _record_call(self, compute: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        call = _Call()
        self._recorded.append(call)
        # PyTorch refuses to change inference tensors here, and does not count their versions.
        tensors = [
            one
            for one in tree_leaves((args, kwargs))
            if isinstance(one, Tensor) and not one.is_inference()
        ]
        versions = [tensor._version for tensor in tensors]
        output = compute(*args, **kwargs)
        call.end = len(self._recorded)
        # A part that changes its input in place must run again, because others may read the input.
        changes_input = versions != [tensor._version for tensor in tensors]
        if isinstance(output, Tensor) and not changes_input:
            call.output = output.clone()
        return output
