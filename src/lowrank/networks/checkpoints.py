"""Reading and writing trained weights, whatever they were stored as."""

import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import UserError
from lowrank.stored import read_tensors, write_tensors

# Written by torch for every batch normalisation, and of no use outside training from scratch.
_IGNORED = "num_batches_tracked"

# What a checkpoint of a whole training run calls the weights.
_WRAPPERS = ("state_dict", "model", "model_state_dict")

# Heads that GoogLeNet and Inception v3 of torchvision have for training from scratch.
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def read_weights(path: str | os.PathLike, network: nn.Module | None = None) -> dict[str, Tensor]:
    """Read a file of trained weights into float32 tensors by name.

    `.safetensors`; `.pth` or `.pt`, also of a whole training run that holds the weights as
    `state_dict`, `model` or `model_state_dict`; or `.caffemodel`. Pickles are read with
    `weights_only=True`: one that holds code is refused, not run.

    Parameters
    ----------
    path
        The file.
    network
        The network that the weights are for; only a `.caffemodel` needs it, to name the tensors.

    Raises
    ------
    UserError
        When the file is missing, truncated, of an unknown kind, holds code, or holds a value that
        is not finite; for a `.caffemodel`, also when it is for another network.
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
    elif path.suffix == ".caffemodel" and network is not None:
        from lowrank.networks.caffe import caffe_weights

        tensors = caffe_weights(path, network)
    else:
        raise UserError(
            f"{path}: a checkpoint ends in .safetensors, .pth, .pt or .caffemodel, not in "
            f"'{path.suffix}'."
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

    Names that training tools put a prefix before are understood, and so are the names that
    torchvision's DenseNet files have kept from before 2018; auxiliary heads are left out where the
    network is without them.

    Raises UserError that names the first tensor that differs and both shapes; `source` is the
    file to blame.
    """
    expected = dict(_tensors(network))
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(_IGNORED)}
    weights = _renamed(weights, expected)
    if getattr(network, "aux_logits", True) is False:
        weights = {k: v for k, v in weights.items() if not k.startswith(_AUXILIARY_HEADS)}
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
    # Not load_state_dict: some of torchvision's networks want the version that a file of theirs
    # notes beside the tensors.
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])


def write_weights(
    path: str | os.PathLike,
    network: nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    header: dict[str, Any] | None = None,
) -> None:
    """Write a network's tensors as safetensors, whole or not at all; equal weights, equal bytes."""
    tensors = {}
    for name, tensor in _tensors(network):
        # A table of indices stays one.
        stored = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        tensors[name] = stored.contiguous().numpy()
    write_tensors(path, tensors, header)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that are stored, by name, detached."""
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor) and not name.endswith(_IGNORED):
            yield name, value


def _renamed(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the network's names, where a known way of renaming leads there."""
    for rename in _RENAMINGS:
        renamed = {rename(name): tensor for name, tensor in weights.items()}
        if expected.keys() <= renamed.keys():
            return renamed
    return weights


def _as_it_is(name: str) -> str:
    return name


def _without_prefix(name: str) -> str:
    """Without what DataParallel and torch.compile put before each name."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _densenet(name: str) -> str:
    """`denselayer1.norm.1.weight` is `denselayer1.norm1.weight` (torchvision's densenet.py)."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1", name)


_RENAMINGS: tuple[Callable[[str], str], ...] = (_as_it_is, _without_prefix, _densenet)


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
    if isinstance(content, dict):
        wrapped = (content.get(name) for name in _WRAPPERS)
        content = next((each for each in wrapped if isinstance(each, dict)), content)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(
            f"{path}: holds {type(content).__name__}, not a dictionary of tensors. Save "
            "`network.state_dict()`."
        )
    return content
