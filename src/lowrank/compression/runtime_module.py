"""An ONNX network that is called like a PyTorch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lowrank.onnx_networks.model_run import ModelRun


class RuntimeModule(nn.Module):
    """An ONNX network with one input, computed by ONNX Runtime on the CPU, without gradients.

    Parameters
    ----------
    model
        The network.
    label
        Name of the network for messages.
    names
        Names of its outputs in the order of the graph; empty if one tensor is returned.

    Raises
    ------
    UserError
        If ONNX Runtime cannot load the network.
    """

    def __init__(self, model: onnx.ModelProto, label: str, names: Sequence[str] = ()) -> None:
        super().__init__()
        self._run, self._names = ModelRun(model, label), tuple(names)

    def forward(self, images: Tensor) -> Any:
        """Return the outputs for images (N, C, H, W), on their device: a tensor, or by name."""
        (name,) = self._run.inputs
        values = self._run({name: images.detach().cpu().numpy()})
        outputs = [
            torch.from_numpy(values[output]).to(images.device) for output in self._run.outputs
        ]
        return dict(zip(self._names, outputs, strict=True)) if self._names else outputs[0]
