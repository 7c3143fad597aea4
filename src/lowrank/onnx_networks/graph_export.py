"""Write a compressed or trained network back into the graph of its ONNX file."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor, nn

from lowrank.core.layers import PlainLayer
from lowrank.onnx_networks.channel_removal import remove_unread_channels
from lowrank.onnx_networks.constant_map import ConstantMap
from lowrank.onnx_networks.constants import Constants
from lowrank.onnx_networks.graph_factors import put_factors
from lowrank.onnx_networks.graph_layers import Site, weight_and_bias
from lowrank.onnx_networks.graph_module import GraphModule
from lowrank.onnx_networks.model_file import nodes_of
from lowrank.onnx_networks.selection import Selection


def model_of(network: GraphModule) -> onnx.ModelProto:
    """Return the user's graph with the factors and the trained weights of a network.

    Nodes and stored tensors that belong to no changed layer stay as they are.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network.origin.model)
    constants = Constants(network.origin.model.graph)
    for site in network.origin.sites:
        try:
            module = network.get_submodule(site.layer.name)
        except AttributeError:
            continue  # A node that is no module keeps its weight.
        if isinstance(module, nn.Sequential):
            sequence, tensors = _factors(module, site)
            put_factors(model, site, sequence, tensors)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            _put_weights(model, site, module, constants)
    remove_unread_channels(model)
    return model


def _factors(module: nn.Sequential, site: Site) -> tuple[list[PlainLayer], dict[str, np.ndarray]]:
    """Return the plain layers of factors and their tensors, as `put_factors` takes them."""
    sequence = []
    for index, part in enumerate(module):
        if isinstance(part, nn.Conv2d):
            plain = PlainLayer(
                part.in_channels,
                part.out_channels,
                _pair(part.kernel_size),
                _pair(part.stride),
                _pair(part.padding),
                _pair(part.dilation),
                part.groups,
                part.bias is not None,
            )
        elif isinstance(part, nn.Linear):
            # The first factor of a layer on a flattened map may cover the whole map.
            covers = index == 0 and part.in_features == site.layer.in_channels * np.prod(
                site.layer.kernel
            )
            kernel = site.layer.kernel if covers else (1, 1)
            channels = part.in_features // int(np.prod(kernel))
            plain = PlainLayer(channels, part.out_features, kernel, bias=part.bias is not None)
        elif isinstance(part, Selection):
            outputs, inputs = part.weight.shape[:2]
            plain = PlainLayer(inputs, outputs, selects=True)
        elif isinstance(part, ConstantMap):
            plain = part.layer
        else:
            raise TypeError(f"{site.layer.name}: expected plain layers, found {part}")
        sequence.append(plain)
    tensors = {name: _array(tensor) for name, tensor in module.state_dict().items()}
    return sequence, tensors


def _put_weights(
    model: onnx.ModelProto, site: Site, module: nn.Conv2d | nn.Linear, constants: Constants
) -> None:
    """Write the weight and bias of a dense layer where training has changed them."""
    weight, bias = weight_and_bias(site, constants)
    new_weight = _array(module.weight)
    if not np.array_equal(new_weight, weight):
        stored = new_weight / np.float32(site.scales[0])
        if site.stored_by_input:
            stored = stored.T
        _replace_tensor(model, site.weight, stored)
    if site.bias is None or bias is None or module.bias is None:
        return
    new_bias = _array(module.bias)
    if not np.array_equal(new_bias, bias):
        _replace_tensor(model, site.bias, new_bias / np.float32(site.scales[1]), site)


def _replace_tensor(
    model: onnx.ModelProto, name: str, array: np.ndarray, site: Site | None = None
) -> None:
    """Replace the value of a stored tensor.

    With `site`, the tensor is a bias, which other nodes may read too: then the node of the layer
    gets a tensor of its own.
    """
    graph = model.graph
    readers = [node for node, _ in nodes_of(graph) if name in node.input]
    tensor, holder = _stored(graph, name)
    before = numpy_helper.to_array(tensor)
    is_shared = site is not None and (len(readers) > 1 or before.size != array.size)
    if not is_shared:
        changed = numpy_helper.from_array(
            np.ascontiguousarray(array.reshape(before.shape), before.dtype), tensor.name
        )
        tensor.CopyFrom(changed)
        if holder is not None:  # The value of a Constant node has no name of its own.
            tensor.ClearField("name")
        return
    own = f"{site.layer.name}.bias" if site else name
    taken = {output for node in graph.node for output in node.output}
    taken |= {entry.name for entry in (*graph.initializer, *graph.input)}
    while own in taken:
        own += "_"
    graph.initializer.append(
        numpy_helper.from_array(np.ascontiguousarray(array, before.dtype), own)
    )
    place = site.add if site and site.add else site.output if site else ""
    reader = next(node for node in graph.node if place in node.output)
    reader.input[list(reader.input).index(name)] = own


def _stored(graph: onnx.GraphProto, name: str) -> tuple[onnx.TensorProto, onnx.NodeProto | None]:
    """Return a stored tensor, and the Constant node that holds it, if any."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return tensor, None
    node = next(node for node in graph.node if name in node.output)
    if node.op_type == "Identity":
        return _stored(graph, node.input[0])
    return next(entry.t for entry in node.attribute if entry.name == "value"), node


def _pair(value: object) -> tuple[int, int]:
    if not isinstance(value, tuple):
        raise TypeError(f"expected two sizes, found {value!r}")
    first, second = value
    return first, second


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()
