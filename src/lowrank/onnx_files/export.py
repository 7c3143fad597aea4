"""Export networks to ONNX files."""

import ast
import contextlib
import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import Message
from torch import nn
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from lowrank.errors import UserError
from lowrank.files import written_whole
from lowrank.onnx_networks.channel_removal import remove_unread_channels
from lowrank.onnx_networks.graph_export import model_of
from lowrank.onnx_networks.graph_module import GraphModule
from lowrank.onnx_networks.model_file import write_model
from lowrank.tasks.outputs import outputs_from
from lowrank.temporary import temporary_folder
from lowrank.zoo.forward import innermost, output_for_zeros, reason_of
from lowrank.zoo.plain import copied, fold, unwrapped
from lowrank.zoo.registry import InputForm, NetworkSpec

# Operator set that the exporter writes natively. ONNX Runtime 1.14 and later supports it.
OPSET = 18

# Size limit for weights in one file. An ONNX file is a protobuf message, which is limited to 2 GiB,
# and the graph needs some of that.
_LARGEST_BYTES = 2**31 - 2**25


def export_onnx(
    network: nn.Module,
    spec: NetworkSpec,
    path: str | os.PathLike,
    *,
    external_data: bool = False,
) -> None:
    """Write a network as one self-contained ONNX file with standard operators.

    The file computes the outputs of the network in evaluation mode, in float32. Batch
    normalizations are folded into the convolutions before them. Channels that no layer reads are
    removed. The input `images` has the shape
    (batch, channels, height, width), normalized according to `spec`, for any batch size. An input
    that is no image has the name `inputs`. The output `logits` has the shape (batch, classes).
    Nodes of convolutions and linear layers have the names of the layers. Several outputs have the
    names of `lowrank.tasks.outputs.outputs_from`. Equal weights give equal bytes. The network is
    not changed.

    A network from an ONNX file is written into the graph of that file, see
    `lowrank.onnx_networks.graph_export.model_of`.

    Parameters
    ----------
    network
        Network to export.
    spec
        Specification of its input.
    path
        File to write.
    external_data
        Write weights of 2 GiB or more, which do not fit into one ONNX file, to a second file next
        to it, with the same name and `.data` appended.

    Raises
    ------
    UserError
        If ONNX cannot express the network, or only for one batch size; if the weights do not fit
        into one file and `external_data` is not set; or if the file cannot be written.
    """
    path = Path(path)
    if isinstance(network, GraphModule):
        write_model(path, model_of(network))
        return
    program = _traced(network, spec, path)
    _require_any_batch_size(program, path, spec)
    weights = (weight.const_value for weight in program.model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    if size < _LARGEST_BYTES:
        model = _cleaned(program.model_proto)
        onnx.checker.check_model(model, full_check=True)
        with written_whole(path) as partial:
            partial.write_bytes(model.SerializeToString(deterministic=True))
    elif external_data:
        _write_two_files(program, path)
    else:
        raise UserError(
            f"{path}: the weights of network '{spec.name}' take {size / 2**30:.1f} GiB, but an "
            "ONNX file is limited to 2 GiB. Choose lower ranks."
        )


def _traced(network: nn.Module, spec: NetworkSpec, path: Path) -> torch.onnx.ONNXProgram:
    """Translate a network to ONNX. Raises UserError if ONNX cannot express it."""
    frozen = inference_copy(network)
    names = _output_names(frozen, spec)
    # Use two samples: with one, the exporter could treat the batch size as a constant.
    (form,) = spec.forms or (InputForm("images", spec.input_shape),)
    example = torch.zeros(2, *form.shape, dtype=getattr(torch, form.dtype))
    try:
        with _silenced(), _PoolingAsMean():
            program = torch.onnx.export(
                frozen,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[form.name],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        # Do not show the text of the exporter: it is pages of advice about PyTorch.
        raise UserError(
            f"{path}: network '{spec.name}' cannot be exported to ONNX for any batch size: "
            f"{_cause(error)}. Its forward() must not branch on tensor values or on the batch "
            "size, and must only use operations that ONNX supports. Rewrite that part with plain "
            "layers."
        ) from error
    if program is None:
        raise TypeError("the exporter returned no program, which `dynamo=True` promises")
    return program


def _output_names(network: nn.Module, spec: NetworkSpec) -> list[str]:
    outputs = outputs_from(output_for_zeros(network, spec.input_shape, spec.name, spec.forms))
    return list(outputs) if isinstance(outputs, dict) else ["logits"]


def _write_two_files(program: torch.onnx.ONNXProgram, path: Path) -> None:
    data = path.with_name(f"{path.name}.data")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        partial = folder / path.name
        program.save(partial, external_data=True)
        # With the weights, because they say which channels and branches can be removed.
        model = _cleaned(onnx.load(partial))
        (folder / data.name).unlink()
        # Shapes must stay in the graph, and are small.
        onnx.save_model(
            model, partial, save_as_external_data=True, location=data.name, size_threshold=256
        )
        onnx.checker.check_model(partial, full_check=True)
        # Move the graph last, so that there is never a graph without its weights.
        (folder / data.name).replace(data)
        partial.replace(path)


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    _name_layers(model.graph)
    _delete_origin(model)
    remove_unread_channels(model)
    return model


class _PoolingAsMean(TorchFunctionMode):
    """Context that computes global average pooling with a plain mean.

    PyTorch's pooling also sets the memory format of the result if the map is in channels-last
    order, as in transformers. In ONNX, this would become a gather of unknown shape.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.adaptive_avg_pool2d and tuple(_pair(args[1])) == (1, 1):
            return args[0].mean((-2, -1), keepdim=True)
        return func(*args, **(kwargs or {}))


def _require_any_batch_size(program: torch.onnx.ONNXProgram, path: Path, spec: NetworkSpec) -> None:
    """Raise UserError if the batch size of the graph is fixed.

    The exporter fixes the batch size if the network treats it as a constant.
    """
    images, *outputs = *program.model.graph.inputs, *program.model.graph.outputs
    batch_dimensions = [str(value.shape[0]) if value.shape else "" for value in (images, *outputs)]
    if not all("batch" in dimension for dimension in batch_dimensions):
        shapes = " and an output of shape ".join(str(value.shape) for value in (images, *outputs))
        raise UserError(
            f"{path}: network '{spec.name}' only supports one batch size: its graph has an input "
            f"of shape {shapes}. Its forward() must not loop over images or reshape to a fixed "
            "number of images. Use shape[0] or flatten(1)."
        )


def _cause(error: BaseException) -> str:
    """Return the innermost cause of an exporter error and the line of the network behind it."""
    place = None
    while error.__cause__:
        error = error.__cause__
        # The exporter does not report the line, but its frames hold the operation that failed.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node):
                place = _place_of_node(node) or place
    reason = reason_of(error)
    return f"{reason} ({place})" if place else reason


def _place_of_node(node: torch.fx.Node) -> str | None:
    """Return the line of the network that led to an operation of a traced graph."""
    trace = node.meta.get("stack_trace") or ""
    return innermost(re.findall(r'File "(.+)", line (\d+), in .*\n\s*(.+)', trace))


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Hide the output, log messages and warnings of the exporter."""
    previous_level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            Path(os.devnull).open("w") as null,
            contextlib.redirect_stdout(null),
            contextlib.redirect_stderr(null),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous_level)


def inference_copy(network: nn.Module) -> nn.Module:
    """Return a copy for inference: evaluation mode, float32, CPU, contiguous memory format."""
    frozen = copied(unwrapped(network)).to("cpu", torch.float32).eval()
    fold(frozen)
    # Training can leave weights in channels-last order, and then the exporter writes gathers for a
    # simple reshape. `contiguous` is not enough: it does not change the strides of 1 x 1 kernels.
    for tensor in (*frozen.parameters(), *frozen.buffers()):
        tensor.data = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.data)
    return frozen


def _delete_origin(message: Message) -> None:
    """Delete the exporter's metadata: stack traces, source files and internal names.

    The metadata contain paths of this machine, so files of equal networks would differ.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _delete_origin(part)


def _name_layers(graph: onnx.GraphProto) -> None:
    """Set the name of each node with a weight to the name of its layer: `features.conv1_1`."""
    weights = {initializer.name for initializer in graph.initializer}
    used_names = {node.name for node in graph.node}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights:
            # Weights that the exporter transposed have a generated name without a module.
            name = node.input[1].rpartition(".")[0] or _module_of(node)
            if name and name not in used_names:
                used_names.add(name)
                node.name = name


def _module_of(node: onnx.NodeProto) -> str:
    """Return the path of a node's module from the exporter's metadata, or an empty string."""
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(metadata.get("pkg.torch.onnx.name_scopes", "[]"))
    # Scopes are ordered from the network to the operation.
    return scopes[-2] if len(scopes) > 1 else ""
