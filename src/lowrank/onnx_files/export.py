"""Networks as ONNX files."""

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
from lowrank.temporary import temporary_folder
from lowrank.zoo.forward import innermost, reason_of
from lowrank.zoo.plain import copied, fold, unwrapped
from lowrank.zoo.registry import NetworkSpec

# The exporter's own operator set: newer ones are converted from it, and every ONNX Runtime since
# 1.14 runs it.
OPSET = 18

# A protobuf message, which an ONNX file is, holds less than 2 GiB; the graph needs some of it.
_LARGEST_BYTES = 2**31 - 2**25


def export_onnx(
    network: nn.Module,
    spec: NetworkSpec,
    path: str | os.PathLike,
    *,
    external_data: bool = False,
) -> None:
    """Write a network as one self-contained ONNX file of plain operators.

    The file computes what the network does in evaluation mode, in float32, with each batch
    normalisation folded into the convolution before it. Its input `images` is (batch, channels,
    height, width), normalised as `spec` says, for any batch; its output `logits` is
    (batch, classes). Convolutions and linear layers bear the network's names for them. Equal
    weights give equal bytes. The network itself is left as it was.

    Parameters
    ----------
    network
        The network.
    spec
        Its input.
    path
        The file to write.
    external_data
        Put weights of 2 GiB and more, which one ONNX file cannot hold, into a second file beside
        it, of the same name and `.data`.

    Raises
    ------
    UserError
        When the network does something that ONNX cannot express, or does it for one number of
        images only; when the weights are too many for one file and `external_data` is not set; or
        when the file cannot be written.
    """
    path = Path(path)
    frozen = inference_copy(network)
    # Two images: with one, the exporter could take the batch for a constant.
    example = torch.zeros(2, *spec.input_shape)
    try:
        with _without_chatter(), _MeanForPooling():
            program = torch.onnx.export(
                frozen,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        # The exporter's own text is pages of advice on PyTorch.
        raise UserError(
            f"{path}: network '{spec.name}' cannot be expressed in ONNX for any number of images: "
            f"{_cause(error)}. Its forward() must not choose what to compute by the values in a "
            "tensor or by the number of images, and must use operations that ONNX has; rewrite "
            "that part with plain layers."
        ) from error
    _require_logits_of_any_batch(program, path, spec)
    size = sum(weight.const_value.nbytes for weight in program.model.graph.initializers.values())
    if size < _LARGEST_BYTES:
        model = _finished(program.model_proto)
        onnx.checker.check_model(model, full_check=True)
        with written_whole(path) as partial:
            partial.write_bytes(model.SerializeToString(deterministic=True))
    elif external_data:
        _write_in_two(program, path)
    else:
        raise UserError(
            f"{path}: the weights of network '{spec.name}' take {size / 2**30:.1f} GiB, and an "
            "ONNX file holds less than 2. Lower its ranks."
        )


def _write_in_two(program: torch.onnx.ONNXProgram, path: Path) -> None:
    data = path.with_name(f"{path.name}.data")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        whole = folder / path.name
        program.save(whole, external_data=True)
        model = _finished(onnx.load(whole, load_external_data=False))
        whole.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(whole, full_check=True)
        # The graph last: a graph without its weights would be half a file.
        (folder / data.name).replace(data)
        whole.replace(path)


def _finished(model: onnx.ModelProto) -> onnx.ModelProto:
    _name_layers(model.graph)
    _forget_origin(model)
    return model


class _MeanForPooling(TorchFunctionMode):
    """Pools down to one pixel by a plain mean.

    PyTorch's own pooling also sets the result's memory order where the map is in channels-last
    order, as transformers have it; in ONNX that would become a gather of unknown shape.
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


def _require_logits_of_any_batch(
    program: torch.onnx.ONNXProgram, path: Path, spec: NetworkSpec
) -> None:
    """Refuse other outputs than logits, and a graph that was narrowed down to the example's batch.

    The exporter takes a dimension for a constant where the network does.
    """
    images, *outputs = *program.model.graph.inputs, *program.model.graph.outputs
    if len(outputs) != 1:
        raise UserError(
            f"{path}: network '{spec.name}' has {len(outputs)} outputs, expected the logits alone. "
            "Wrap it in a module that picks them out."
        )
    found = [str(value.shape[0]) for value in (images, *outputs)]
    if not all("batch" in dimension for dimension in found):
        shapes = " and an output of shape ".join(str(value.shape) for value in (images, *outputs))
        raise UserError(
            f"{path}: network '{spec.name}' computes for one number of images only: with any "
            f"number, its graph has an input of shape {shapes}. Its forward() must not loop over "
            "the images nor reshape to a fixed number of them: take shape[0], or flatten(1)."
        )


def _cause(error: BaseException) -> str:
    """The innermost cause of an exporter's error, with the network's line that led to it."""
    place = None
    while error.__cause__:
        error = error.__cause__
        # The exporter does not tell the line; it has the operation at hand when it gives up.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node):
                place = _place_of_node(node) or place
    told = reason_of(error)
    return f"{told} ({place})" if place else told


def _place_of_node(node: torch.fx.Node) -> str | None:
    """The network's line that led to an operation of a traced graph."""
    trace = node.meta.get("stack_trace") or ""
    return innermost(re.findall(r'File "(.+)", line (\d+), in .*\n\s*(.+)', trace))


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep what the exporter prints, logs and warns about from the terminal."""
    disabled_before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_before)


def inference_copy(network: nn.Module) -> nn.Module:
    """A copy for inference: evaluation mode, float32, on the CPU, in plain memory order."""
    frozen = copied(unwrapped(network)).to("cpu", torch.float32).eval()
    fold(frozen)
    # Weights left in channels-last order by training would make the exporter write gathers for a
    # mere reshape. (`contiguous` leaves a 1 x 1 kernel's strides as they are.)
    for tensor in (*frozen.parameters(), *frozen.buffers()):
        tensor.data = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.data)
    return frozen


def _forget_origin(message: Message) -> None:
    """Delete what the exporter notes on every part: stack traces, source files, its own names.

    They hold paths of the machine that exported, and so differ between equal networks.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _forget_origin(part)


def _name_layers(graph: onnx.GraphProto) -> None:
    """Give a node with a weight the name of the layer: `features.conv1_1`."""
    weights = {initializer.name for initializer in graph.initializer}
    taken = {node.name for node in graph.node}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights:
            # A weight that the exporter transposed bears a number for a name.
            name = node.input[1].rpartition(".")[0] or _module_of(node)
            if name and name not in taken:
                taken.add(name)
                node.name = name


def _module_of(node: onnx.NodeProto) -> str:
    """The path of the module that a node comes from, as the exporter notes it; or nothing."""
    noted = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(noted.get("pkg.torch.onnx.name_scopes", "[]"))
    # From the network itself down to the operation.
    return scopes[-2] if len(scopes) > 1 else ""
