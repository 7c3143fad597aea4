"""Run an ONNX network in ONNX Runtime on tensors, as a PyTorch network is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch

from lowrank.core.tensors import filled_up, for_inputs, length, mapped, pieces
from lowrank.tasks.outputs import joined, outputs_from
from lowrank.zoo.registry import NetworkSpec


class SessionRun:
    """Function from inputs (N, ...) to the outputs of a file (N, ...).

    Several inputs and several outputs are dictionaries of tensors by name. A file with a fixed
    batch size runs on as many samples at a time; the last batch is filled up with its last sample.

    Parameters
    ----------
    session
        The network.
    spec
        Specification of its inputs.
    """

    def __init__(self, session: onnxruntime.InferenceSession, spec: NetworkSpec) -> None:
        self._session, self._spec = session, spec
        entries = session.get_inputs()
        self._names = [entry.name for entry in entries]
        fixed = [entry.shape[0] for entry in entries if entry.shape]
        self._batch = next((size for size in fixed if isinstance(size, int)), None)
        self._outputs = [output.name for output in session.get_outputs()]

    def __call__(self, inputs: Any) -> Any:
        size = self._batch
        if size is None:
            return self._run(inputs)
        whole = joined([self._run(filled_up(part, size)) for part in pieces(inputs, size)])
        count = length(inputs)
        return mapped(lambda tensor: tensor[:count], whole)

    def _run(self, inputs: Any) -> Any:
        values = self._session.run(None, fed(inputs, self._names, self._spec))
        tensors = [torch.from_numpy(np.asarray(value)) for value in values]
        if len(tensors) == 1:
            return tensors[0]
        return outputs_from(dict(zip(self._outputs, tensors, strict=True)))


def fed(inputs: Any, names: Sequence[str], spec: NetworkSpec) -> dict[str, np.ndarray]:
    """Return inputs (N, ...) by the names of a file's inputs; images in the layout of the file."""
    if spec.layout == "nhwc":
        inputs = inputs.permute(0, 2, 3, 1)
    return {
        name: np.ascontiguousarray(tensor.numpy())
        for name, tensor in for_inputs(names, inputs).items()
    }
