"""Forward passes that stop at one layer after another, so that it can be replaced in between.

A layer that compensates for the errors of earlier layers needs its inputs in the network as it is
after those were replaced. Starting each time from the images would take one forward pass for each
layer. Here, each batch passes each network once: its pass waits in a thread of its own at the
layer that is replaced next. One thread runs at a time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank.core.layers import Layer
from lowrank.core.tensors import length, pieces
from lowrank.errors import UserError
from lowrank.factorize import Moments, Shift
from lowrank.surgery.input_moments import ShiftSums, input_of_call, samples_of
from lowrank.zoo.forward import evaluation_mode

# Memory limit for the maps of all waiting passes. Behind the first layers of a large network, where
# maps are large, fewer images pass. Later layers get more images.
_WAITING_BYTES = 1_500_000_000

# Largest number of images in a pass.
_MOST_IMAGES = 32

# Distributes the passes that start first over all images.
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class SuspendedPasses:
    """Context with the passes of two networks over the same images.

    Parameters
    ----------
    original
        Original network.
    network
        The same network. Its layers may be replaced while the passes wait.
    layers
        Layers of the layer table at which the passes stop.
    batches
        Images as the networks expect them, (N, C, H, W), or other inputs.
    waiting_bytes
        Memory limit for the maps of all waiting passes. At least one pass is started.

    Attributes
    ----------
    order
        Names of the layers in the order in which the network first calls them. Layers that it does
        not call come last.

    Raises
    ------
    UserError
        If there are no images.
    """

    def __init__(
        self,
        original: nn.Module,
        network: nn.Module,
        layers: Iterable[Layer],
        batches: Sequence[Any],
        waiting_bytes: int = _WAITING_BYTES,
    ) -> None:
        self._networks = (original, network)
        self._layers = {layer.name: layer for layer in layers}
        self._batches, self._limit = batches, waiting_bytes
        self._started: list[tuple[_Pass, _Pass]] = []
        self._done: set[str] = set()

    def __enter__(self) -> SuspendedPasses:
        self._stack = ExitStack()
        for network in self._networks:
            self._stack.enter_context(evaluation_mode(network))
            self._stack.enter_context(_stops(network, self._layers))
        try:
            self._live_bytes = self._bytes_by_layer()
        except BaseException:
            self._stack.close()
            raise
        self.order = list(dict.fromkeys([*self._live_bytes, *self._layers]))
        size = self._limit // max([1, *self._live_bytes.values()])
        size = min(max(size, 1), _MOST_IMAGES)
        parts = [piece for batch in self._batches for piece in pieces(batch, size)]
        order = sorted(range(len(parts)), key=lambda index: index * _GOLDEN_RATIO % 1)
        self._parts = [parts[index] for index in order]
        return self

    def __exit__(self, *raised: object) -> None:
        for passes in self._started:
            for waiting in passes:
                waiting.abandon()
        self._stack.close()

    def shifted_moments(self, name: str) -> tuple[Moments, Shift]:
        """Return the input moments of a layer, and their shift relative to the original network.

        The layers must be asked for in the order of `order`. Only the first call of a layer in a
        pass counts. Raises UserError for a layer that no pass calls.
        """
        allowed = self._limit // self._largest_from(name)
        images = 0
        sums = ShiftSums(self._layers[name])
        for index, part in enumerate(self._parts):
            if index == len(self._started):
                if index and images + length(part) > allowed:
                    break
                original, network = self._networks
                self._started.append((_Pass(original, part), _Pass(network, part)))
            images += length(part)
            before, now = (one_pass.input_at(name, self._done) for one_pass in self._started[index])
            if before is not None and now is not None:
                sums.add(*(samples_of(self._layers[name], inputs) for inputs in (before, now)))
        self._done.add(name)
        return sums.shifted_moments()

    def _largest_from(self, name: str) -> int:
        """Return the largest memory for one image at a layer and the later ones.

        A started pass goes through all of them.
        """
        later = self.order[self.order.index(name) :]
        return max([1, *(self._live_bytes.get(layer, 0) for layer in later)])

    def _bytes_by_layer(self) -> dict[str, int]:
        """Return the memory of both networks' maps for one image at each layer, in call order."""
        if not self._batches:
            raise UserError("sequential: layers are compared on images, but there are none.")
        measured, live = {}, _LiveBytes()
        one_pass = _Pass(self._networks[1], next(pieces(self._batches[0], 1)), context=live)
        while one_pass.advance():
            measured[one_pass.name] = 2 * live.total()
        return measured


class _Abandoned(BaseException):
    """Ends a pass that nobody waits for any more; no `except Exception` of a network stops it."""


class _Pass:
    """A forward pass in a thread that runs only while `advance` waits for it.

    Attributes
    ----------
    name, inputs
        The layer at which the pass waits, and its input. The name is empty after the end.
    """

    def __init__(self, network: nn.Module, images: Any, context: Any = None) -> None:
        self.name, self.inputs = "", torch.empty(0)
        self._network, self._images, self._context = network, images, context
        self._error: BaseException | None = None
        self._is_abandoned = False
        self._reached: set[str] = set()
        self._resumed, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_over = False

    def advance(self) -> bool:
        """Run to the next layer; return whether there was one. Raises what the network raises."""
        if self._is_over:
            return False
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._resumed.release()
        self._paused.acquire()
        if self._is_over:
            self._thread.join()
        if self._error:
            raise self._error
        return not self._is_over

    def input_at(self, name: str, done: Iterable[str]) -> Tensor | None:
        """Run to a layer and return its input; None if this pass does not call the layer.

        `done` are the layers that may lie before it.
        """
        while self.name != name:
            if (self.name and self.name not in done) or not self.advance():
                return None
        return self.inputs

    def stop(self, name: str, inputs: Tensor) -> None:
        """Wait at a layer. The thread of the pass calls this."""
        if name in self._reached:
            return
        self._reached.add(name)
        self.name, self.inputs = name, inputs
        self._paused.release()
        self._resumed.acquire()
        # The map itself is held by the network for as long as it needs it.
        self.inputs = torch.empty(0)
        if self._is_abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End the pass."""
        if self._thread.ident is not None and not self._is_over:
            self._is_abandoned = True
            self._resumed.release()
            self._thread.join()

    def _run(self) -> None:
        _running.current = self
        try:
            with torch.no_grad(), ExitStack() as stack:
                if self._context:
                    stack.enter_context(self._context)
                self._network(self._images)
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error
        self._is_over, self.name, self._images = True, "", None
        self._paused.release()


# `current` is the pass of the thread.
_running = threading.local()


@contextmanager
def _stops(network: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let passes stop at some layers, also if the layer is replaced while a pass waits at it."""
    # Other libraries may have set `forward` on an instance; otherwise the class defines it.
    layers = [(network.get_submodule(name), name) for name in names]
    before = [(layer, vars(layer).get("forward")) for layer, _ in layers]
    for layer, name in layers:
        layer.forward = _stopping(network, layer, name)
    try:
        yield
    finally:
        for layer, forward in before:
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _stopping(network: nn.Module, layer: nn.Module, name: str) -> Callable[..., Any]:
    compute = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if one_pass := getattr(_running, "current", None):
            one_pass.stop(name, input_of_call(args, kwargs))
        module = network.get_submodule(name)
        return compute(*args, **kwargs) if module is layer else module(*args, **kwargs)

    return forward


class _LiveBytes(TorchDispatchMode):
    """Counts the memory of the tensors that operations have returned and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        several = outputs if isinstance(outputs, tuple | list) else [outputs]
        self._tensors += [weakref.ref(one) for one in several if isinstance(one, Tensor)]
        return outputs

    def total(self) -> int:
        """Return the bytes; tensors that share memory count once."""
        tensors = [tensor for one in self._tensors if (tensor := one()) is not None]
        self._tensors = [weakref.ref(tensor) for tensor in tensors]
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
