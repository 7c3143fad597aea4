"""Reading and writing trained weights, whatever they were stored as."""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.core.stored import read_tensors, write_tensors
from lowrank.errors import UserError
from lowrank.zoo.plain import fold, has_computed_weights
from lowrank.zoo.state_dicts import find_state_dict, require_plain, without_prefix

# Written by torch for every batch normalisation, and of no use outside training from scratch.
_IGNORED = "num_batches_tracked"

# How PyTorch files are called; `.bin` as the Hugging Face hub does, `.ckpt` as Lightning does.
_PICKLES = (".pth", ".pt", ".pth.tar", ".pt.tar", ".ckpt", ".bin")
_SUFFIXES = (".safetensors", *_PICKLES, ".caffemodel")

# Classes that hold values alone, and that training programs save beside the weights.
_HARMLESS = (
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np.empty(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in (bool, "i4", "i8", "u1", "f2", "f4", "f8")),
)

# Heads that GoogLeNet and Inception v3 of torchvision have for training from scratch.
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def _ignore(line: str) -> None:
    """Say nothing."""


def read_weights(
    path: str | os.PathLike,
    network: nn.Module | None = None,
    *,
    key: str | None = None,
    say: Callable[[str], None] = _ignore,
) -> dict[str, Tensor]:
    """Read a file of trained weights into float32 tensors by name.

    `.safetensors`; a PyTorch file, also of a whole training run with the weights inside; or
    `.caffemodel`. Pickles are read with `weights_only=True`: one that holds code is refused, not
    run.

    Parameters
    ----------
    path
        The file.
    network
        The network that the weights are for; only a `.caffemodel` needs it, to name the tensors.
    key
        Which weights of a PyTorch file that holds several: see `find_state_dict`.
    say
        Told which were taken, where the file holds more.

    Raises
    ------
    UserError
        When the file is missing, truncated, of an unknown kind, holds code, no weights of that
        `key`, a tensor without dense values, or a value that is not finite; for a
        `.caffemodel`, also when it is for another network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint. Put the trained weights there, or name another file as "
            "`checkpoint` of the network in params.yaml."
        )
    if path.suffix == ".safetensors":
        tensors = read_tensors(path, framework="pt")
    elif path.name.endswith(_PICKLES):
        tensors = find_state_dict(_read_pickle(path), path, key, say)
    elif path.suffix == ".caffemodel" and network is not None:
        from lowrank.zoo.caffe import caffe_weights

        tensors = caffe_weights(path, network)
    else:
        raise UserError(
            f"{path}: a checkpoint ends in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, not in "
            f"'{path.suffix}'."
        )
    if key and not path.name.endswith(_PICKLES):
        raise UserError(
            f"{path}: `state_key` is for PyTorch files, which may hold several weights."
        )
    require_plain(tensors, path)
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


def load_weights(
    network: nn.Module,
    weights: dict[str, Tensor],
    *,
    source: str,
    say: Callable[[str], None] = _ignore,
) -> None:
    """Put weights into a network of the same architecture, in place.

    Prefixes that training programs put before the names are taken off, and `say` is told; the
    names that torchvision's DenseNet files have kept from before 2018 are understood; auxiliary
    heads are left out where the network is without them.

    Raises UserError that names the first tensor that differs and both shapes; `source` is the
    file to blame.
    """
    expected = dict(_tensors(network))
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(_IGNORED)}
    weights = _renamed(weights, expected, source, say)
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
        if tensor.is_floating_point() and not weights[name].is_floating_point():
            raise UserError(
                f"{source}: tensor '{name}' is of {weights[name].dtype}, "
                f"{type(network).__name__} expects {tensor.dtype}; integers are the weights of a "
                "quantized network. Take the checkpoint from before quantization."
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


def load_trained(
    network: nn.Module,
    weights: dict[str, Tensor],
    *,
    source: str,
    say: Callable[[str], None] = _ignore,
) -> None:
    """Put trained weights into a network and make its computed weights plain ones, in place.

    The file may hold either; `say` is told. Raises UserError as `load_weights`.
    """
    if not has_computed_weights(network):
        load_weights(network, weights, source=source, say=say)
        return
    try:
        load_weights(network, weights, source=source, say=say)
        folded = fold(network)
    except UserError:
        folded = fold(network)
        load_weights(network, weights, source=source, say=say)
    say(
        f"{len(folded)} tensors that the network computes before each pass are plain weights now: "
        f"{', '.join(folded[:3])}{', ...' if len(folded) > 3 else ''}"
    )


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


def _renamed(
    weights: dict[str, Tensor],
    expected: dict[str, Tensor],
    source: str,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """The weights under the network's names, where a known way of renaming leads there."""
    if expected.keys() <= weights.keys():
        return weights
    for renamed in (weights, {_densenet(name): tensor for name, tensor in weights.items()}):
        if (found := without_prefix(renamed, expected, source, say)) is not None:
            return found
    return weights


def _densenet(name: str) -> str:
    """`denselayer1.norm.1.weight` is `denselayer1.norm1.weight` (torchvision's densenet.py)."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1", name)


def _read_pickle(path: Path) -> Any:
    """What a PyTorch file holds, as far as that can be read without running code."""
    if _is_torchscript(path):
        raise UserError(
            f"{path}: a TorchScript archive, which is a program, not weights. Save the weights: "
            "torch.save(torch.jit.load('" + path.name + "').state_dict(), 'weights.pth')."
        )
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = (
            f"it holds an object of {named[1]}: a whole network or another part of a program, and "
            "reading that could run code"
            if named
            else "it is damaged, or a pickle that holds more than tensors, and reading that could "
            "run code"
        )
        raise UserError(
            f"{path}: refused: {what}. Save the weights alone, in the program that made them: "
            "torch.save(network.state_dict(), 'weights.pth'), or as safetensors."
        ) from error
    except Exception as error:  # Damaged bytes make the unpickler fail in many ways.
        raise UserError(
            f"{path}: not a whole PyTorch file of {path.stat().st_size} bytes "
            f"({_first_line(error)}). It was probably cut off while it was copied; fetch it again."
        ) from error


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with code, which torch.jit.save writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _first_line(error: Exception) -> str:
    # PyTorch's messages go on with how to read a file without any check.
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
