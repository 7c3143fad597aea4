"""Run an ONNX network in ONNX Runtime on tensors, as a PyTorch network is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from lowrank.tasks.outputs import joined, outputs_from
from lowrank.zoo.registry import NetworkSpec


class SessionRun:
    """Function from inputs (N, ...) to the outputs of a file (N, ...), several outputs by name.

    A file with a fixed batch size runs on as many inputs at a time; the last batch is filled up
    with its last input.

    Parameters
    ----------
    session
        The network, which has one input.
    spec
        Specification of the input.
    """

    def __init__(self, session: onnxruntime.InferenceSession, spec: NetworkSpec) -> None:
        self._session, self._spec = session, spec
        (entry,) = session.get_inputs()
        self._name = entry.name
        first = entry.shape[0] if entry.shape else None
        self._batch = first if isinstance(first, int) else None
        self._outputs = [output.name for output in session.get_outputs()]

    def __call__(self, inputs: Tensor) -> Any:
        if self._batch is None:
            return self._run(inputs)
        parts = [self._filled(part) for part in inputs.split(self._batch)]
        whole = joined([self._run(part) for part in parts])
        return _first(whole, len(inputs))

    def _filled(self, inputs: Tensor) -> Tensor:
        missing = (self._batch or 0) - len(inputs)
        return torch.cat([inputs, inputs[-1:].expand(missing, *inputs.shape[1:])])

    def _run(self, inputs: Tensor) -> Any:
        values = self._session.run(None, fed(inputs, self._name, self._spec))
        tensors = [torch.from_numpy(np.asarray(value)) for value in values]
        if len(tensors) == 1:
            return tensors[0]
        return outputs_from(dict(zip(self._outputs, tensors, strict=True)))


def fed(inputs: Tensor, name: str, spec: NetworkSpec) -> dict[str, np.ndarray]:
    """Return inputs (N, C, H, W) as the input of a file, in its layout."""
    if spec.layout == "nhwc":
        inputs = inputs.permute(0, 2, 3, 1)
    return {name: np.ascontiguousarray(inputs.numpy())}


def _first(outputs: Tensor | Mapping[str, Tensor], count: int) -> Any:
    if isinstance(outputs, Tensor):
        return outputs[:count]
    return {name: tensor[:count] for name, tensor in outputs.items()}
