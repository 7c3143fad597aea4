"""Reading and writing trained weights, whatever they were stored as."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import UserError
from lowrank.stored import read_tensors, write_tensors

# Written by torch for every batch normalisation, and of no use outside training from scratch.
_IGNORED = "num_batches_tracked"


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read a `.safetensors`, `.pth` or `.pt` file into float32 tensors by name.

    Pickles are read with `weights_only=True`: one that holds code is refused, not run.

    Raises
    ------
    UserError
        When the file is missing, truncated, of an unknown kind, holds code, or holds a value that
        is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint. Put the trained weights there, or name another file as "
            "`checkpoint` of the network in params.yaml."
        )
    if path.suffix == ".safetensors":
        tensors = read_tensors(path, framework="pt")
    elif path.suffix in (".pth", ".pt"):
        tensors = _read_pickle(path)
    else:
        raise UserError(
            f"{path}: a checkpoint ends in .safetensors, .pth or .pt, not in '{path.suffix}'."
        )
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if not name.endswith(_IGNORED)
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"{path}: tensor '{name}' holds {bad} values that are not finite (NaN or "
                "infinity). These weights cannot be compressed; use a checkpoint from before "
                "the training diverged."
            )
    return tensors


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Put weights into a network of the same architecture, in place.

    Raises UserError that names the first tensor that differs and both shapes; `source` is the
    file to blame.
    """
    expected = {
        name: tensor for name, tensor in network.state_dict().items() if not name.endswith(_IGNORED)
    }
    for name, tensor in expected.items():
        if name not in weights:
            raise UserError(
                f"{source}: holds no tensor '{name}' of shape {tuple(tensor.shape)}, which "
                f"{type(network).__name__} has (the names in the file are like "
                f"'{next(iter(weights), '')}'); these are the weights of another architecture."
            )
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{source}: tensor '{name}' has shape {tuple(weights[name].shape)}, "
                f"{type(network).__name__} expects {tuple(tensor.shape)}; these are the weights "
                "of another architecture."
            )
    if surplus := sorted(weights.keys() - expected.keys()):
        raise UserError(
            f"{source}: holds a tensor '{surplus[0]}' of shape "
            f"{tuple(weights[surplus[0]].shape)} that {type(network).__name__} has not "
            f"({len(surplus)} in all); these are the weights of another architecture."
        )
    network.load_state_dict({name: weights[name] for name in expected}, strict=False)


def write_weights(
    path: str | os.PathLike,
    network: nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    header: dict[str, Any] | None = None,
) -> None:
    """Write a network's tensors as safetensors, whole or not at all; equal weights, equal bytes."""
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous().numpy()
        for name, tensor in network.state_dict().items()
        if not name.endswith(_IGNORED)
    }
    write_tensors(path, tensors, header)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused: it is damaged, or a pickle that holds more than tensors, and "
            "reading that could run code. Save the weights alone: "
            "torch.save(network.state_dict(), 'weights.pth'), or as safetensors."
        ) from error
    except Exception as error:  # Damaged bytes make the unpickler fail in many ways.
        raise UserError(
            f"{path}: not a whole PyTorch file of {path.stat().st_size} bytes ({error}). It was "
            "probably cut off while it was copied; fetch it again."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(
            f"{path}: holds {type(content).__name__}, not a dictionary of tensors. Save "
            "`network.state_dict()`."
        )
    return content
