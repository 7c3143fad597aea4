"""An ONNX network as a PyTorch module whose layers are modules that factors can replace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.core.tensors import filled_up, for_inputs, length, mapped, pieces
from lowrank.onnx_networks.constants import Constants
from lowrank.onnx_networks.graph_conversion import Operation, converted
from lowrank.onnx_networks.graph_layers import Site, weight_and_bias
from lowrank.onnx_networks.graph_steps import Segment, Values, in_runtime, prepared
from lowrank.onnx_networks.model_run import ModelRun, noise
from lowrank.tasks.outputs import joined

# Largest relative error of the outputs of a converted network.
_LARGEST_ERROR = 1e-3

# Difference of outputs that counts as rounding. Small probabilities differ relatively more.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class _LayerCall:
    """The call of a layer: where its input and its output are in the graph.

    `pads` is padding that the module does not do itself: (left, right, top, bottom).
    """

    name: str
    input: str
    output: str
    is_one_axis: bool
    pads: tuple[int, int, int, int]

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that the layer needs."""
        return (self.input,)


@dataclass(frozen=True)
class Origin:
    """The graph of a user's file, and its layers. Copies of a network share it."""

    model: onnx.ModelProto
    sites: tuple[Site, ...]

    def __deepcopy__(self, memo: object) -> Origin:
        return self


class GraphModule(nn.Module):
    """The network of an ONNX file in PyTorch.

    Convolutions and products with a stored weight are modules with the names of the layers. All
    other nodes run as operations of PyTorch, with the stored tensors of the file, which training
    does not change. If an operator cannot be converted, the nodes between the layers run in ONNX
    Runtime instead, and the network cannot be trained; `obstacle` then names the operators.

    Parameters
    ----------
    model
        The network.
    sites
        Its layers, from `find_sites`.
    shapes
        Shape of each input for one sample, by name.
    layout
        Layout of its input of images, `nchw` or `nhwc`. The module expects (N, C, H, W) in any
        case. `nchw` for other inputs, which the module takes as they are.
    label
        Name of the network for messages.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        sites: Sequence[Site],
        shapes: Mapping[str, Sequence[int]],
        layout: str,
        label: str,
    ) -> None:
        super().__init__()
        #: The file that the network comes from, which factors are written back into.
        self.origin = Origin(model, tuple(sites))
        graph = prepared(model, shapes, label)
        self._layout, self._inputs, self._batch = layout, graph.inputs, graph.batch
        self._output_names = [output.name for output in model.graph.output]
        constants = Constants(model.graph)
        layers = {site.output: site for site in sites if _is_module(site)}
        for site in layers.values():
            _add_module(self, site.layer.name, _module_of(site, constants))
        added = {site.add for site in layers.values() if site.add is not None}
        steps, missing = converted(graph, layers.keys(), added)
        #: Why the network cannot be trained; empty if it can.
        self.obstacle = (
            f"operators that cannot be converted: {', '.join(missing)}" if missing else ""
        )
        if not missing:
            self._use(steps, layers, graph.tensors)
            error = self._error(model, shapes, label)
            if error == math.inf:
                self.obstacle = "an operation fails in PyTorch, or gives other shapes or no numbers"
            elif error > _LARGEST_ERROR:
                self.obstacle = f"its conversion changes the outputs by {error:.1%}"
        if self.obstacle:
            inputs = {output: site.source for output, site in layers.items()}
            self._use(in_runtime(graph, inputs, added), layers, graph.tensors)

    def _use(
        self,
        steps: Sequence[str | Operation | Segment],
        layers: Mapping[str, Site],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Run these steps in forward(); a text stands for a layer, by the output of its node."""
        self._steps: list[_LayerCall | Operation | Segment] = [
            _call_of(layers[step]) if isinstance(step, str) else step for step in steps
        ]
        read = {name for step in self._steps for name in step.reads} | {*self._output_names}
        self._constants: Values = {n: tensor for n, tensor in tensors.items() if n in read}
        self._last_use = self._last_uses()

    def _error(
        self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], label: str
    ) -> float:
        """Return the relative error of the outputs against ONNX Runtime, for one noise sample."""
        feed = noise(model, shapes)
        expected = ModelRun(model, label)(feed)
        inputs = mapped(torch.from_numpy, feed)
        if self._layout == "nhwc":
            inputs = mapped(lambda tensor: tensor.permute(0, 3, 1, 2), inputs)
        try:
            with torch.no_grad():
                outputs = self(inputs)
        except Exception:  # An operation that does not fit raises nearly any type.
            return math.inf
        named = outputs if isinstance(outputs, dict) else {self._output_names[0]: outputs}
        return max(_relative(named[name], array) for name, array in expected.items())

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Return the output (N, ...), or several outputs by name.

        `inputs` is the input (N, ...), which is (N, C, H, W) for images, or several inputs by name.
        """
        count, size = length(inputs), self._batch
        if size is None or count == size:
            return self._run(inputs)
        parts = [self._run(filled_up(part, size)) for part in pieces(inputs, size)]
        whole: Tensor | dict[str, Tensor] = mapped(lambda tensor: tensor[:count], joined(parts))
        return whole

    def _run(self, inputs: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        if self._layout == "nhwc":
            inputs = mapped(lambda tensor: tensor.permute(0, 2, 3, 1), inputs)
        inputs = mapped(torch.Tensor.contiguous, inputs)
        values: Values = {**self._constants, **for_inputs(self._inputs, inputs)}
        for number, step in enumerate(self._steps):
            if isinstance(step, _LayerCall):
                values[step.output] = self._layer_output(step, values[step.input])
            else:
                step(values)
            for name in self._last_use[number]:
                del values[name]
        if len(self._output_names) == 1:
            output: Tensor = values[self._output_names[0]]
            return output
        return {name: values[name] for name in self._output_names}

    def _layer_output(self, call: _LayerCall, inputs: Tensor) -> Tensor:
        dtype = inputs.dtype
        if dtype in (torch.float16, torch.float64):
            inputs = inputs.float()
        if call.is_one_axis:
            inputs = inputs[..., None]
        if any(call.pads):
            inputs = functional.pad(inputs, call.pads)
        outputs: Tensor = self.get_submodule(call.name)(inputs)
        if call.is_one_axis:
            outputs = outputs[..., 0]
        return outputs.to(dtype) if dtype in (torch.float16, torch.float64) else outputs

    def _last_uses(self) -> list[list[str]]:
        """Return the tensors that no step after each one needs, to free their memory."""
        last: dict[str, int] = {}
        for number, step in enumerate(self._steps):
            for name in step.reads:
                last[name] = number
        kept = {*self._output_names, *self._constants}
        uses: list[list[str]] = [[] for _ in self._steps]
        for name, number in last.items():
            if name not in kept:
                uses[number].append(name)
        return uses

    def _apply(self, fn: Any, recurse: bool = True) -> GraphModule:
        """Move stored tensors with the module. They keep their type, which the file determines."""
        super()._apply(fn, recurse)

        def moved(tensor: Tensor) -> Tensor:
            result: Tensor = fn(tensor)
            return result.to(tensor.dtype)

        self._constants = {name: moved(tensor) for name, tensor in self._constants.items()}
        for step in self._steps:
            if isinstance(step, Operation):
                step.module._apply(moved, recurse)
        return self


def _is_module(site: Site) -> bool:
    """Return whether a layer becomes a module; otherwise it is a node like others."""
    reason = site.layer.not_factored
    is_depthwise = reason is not None and reason.startswith("depthwise")
    return reason is None or (is_depthwise and site.operator == "Conv")


def _module_of(site: Site, constants: Constants) -> nn.Module:
    layer = site.layer
    weight, bias = weight_and_bias(site, constants)
    module: nn.Conv2d | nn.Linear
    if site.operator == "Conv":
        module = nn.utils.skip_init(
            nn.Conv2d,
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias is not None,
        )
    else:
        outputs, inputs = weight.shape
        module = nn.utils.skip_init(nn.Linear, inputs, outputs, bias is not None)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight))
        if bias is not None and module.bias is not None:
            module.bias.copy_(torch.from_numpy(bias))
    return module


def _call_of(site: Site) -> _LayerCall:
    if site.operator != "Conv":
        return _LayerCall(
            site.layer.name, site.source, site.add or site.output, False, (0, 0, 0, 0)
        )
    # What the module does not pad itself: padding on one side only.
    pads = [*site.pads, (0, 0)][:2]
    (top, bottom), (left, right) = (
        (before - own, after - own)
        for (before, after), own in zip(pads, site.layer.padding, strict=True)
    )
    return _LayerCall(
        site.layer.name,
        site.source,
        site.output,
        len(site.pads) == 1,
        (left, right, top, bottom),
    )


def _add_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name, with the modules in between."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(network, part):
            network.add_module(part, nn.Module())
        network = getattr(network, part)
    network.add_module(last, module)


def _relative(output: Tensor, expected: np.ndarray) -> float:
    if tuple(output.shape) != expected.shape:
        return math.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(output.numpy(), expected) else math.inf
    difference = output.numpy() - expected
    if np.abs(difference).max(initial=0.0) <= _ROUNDING:
        return 0.0
    scale, error = float(np.linalg.norm(expected)), float(np.linalg.norm(difference))
    error = error / scale if scale else error
    # Comparisons with NaN are false.
    return error if math.isfinite(error) else math.inf
