"""Networks as ONNX files."""

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from google.protobuf.message import Message
from torch import nn

from lowrank.errors import UserError
from lowrank.files import written_whole
from lowrank.networks.registry import NetworkSpec

# The exporter's own operator set: newer ones are converted from it, and every ONNX Runtime since
# 1.14 runs it.
OPSET = 18


def export_onnx(network: nn.Module, spec: NetworkSpec, path: str | os.PathLike) -> None:
    """Write a network as one self-contained ONNX file of plain operators.

    The file computes what the network does in evaluation mode, in float32, with each batch
    normalisation folded into the convolution before it. Its input `images` is (batch, channels,
    height, width), normalised as `spec` says, for any batch; its output `logits` is
    (batch, classes). Convolutions and linear layers bear the network's names for them. Equal
    weights give equal bytes. The network itself is left as it was.

    Raises
    ------
    UserError
        When the network does something that ONNX cannot express, or the file cannot be written.
    """
    frozen = inference_copy(network)
    # Two images: with one, the exporter could take the batch for a constant.
    example = torch.zeros(2, *spec.input_shape)
    try:
        with _without_chatter():
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
        # The exporter's own text is pages of advice on PyTorch; its cause is the reason.
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"{path}: network '{spec.name}' cannot be expressed in ONNX for any batch size "
            f"({reason}). Its forward() must not choose what to compute by the values in a tensor "
            "or by the number of images; rewrite that part with plain layers."
        ) from error
    model = program.model_proto
    _forget_origin(model)
    _name_layers(model.graph)
    onnx.checker.check_model(model, full_check=True)
    with written_whole(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))


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
    frozen = copy.deepcopy(network).to("cpu", torch.float32).eval()
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
    """Give a node with a weight that weight's name, less its last part: `features.conv1_1`."""
    weights = {initializer.name for initializer in graph.initializer}
    taken = {node.name for node in graph.node}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights:
            name = node.input[1].rpartition(".")[0]
            if name and name not in taken:
                taken.add(name)
                node.name = name
