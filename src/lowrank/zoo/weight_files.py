"""Read and write files of trained weights in all supported formats."""

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
from lowrank.zoo.plain import can_be_folded, fold
from lowrank.zoo.state_dicts import find_state_dict, require_plain, without_prefix

# Torch stores this for every batch normalization; it is only needed for training from scratch.
_IGNORED = "num_batches_tracked"

# Suffixes of PyTorch files; `.bin` is used by the Hugging Face Hub, `.ckpt` by Lightning.
_PICKLES = (".pth", ".pt", ".th", ".pth.tar", ".pt.tar", ".ckpt", ".bin")
_SUFFIXES = (".safetensors", *_PICKLES, ".caffemodel")

# Classes that only hold values, and that training programs often save with the weights.
_SAFE_CLASSES: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np.empty(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in (bool, "i4", "i8", "u1", "f2", "f4", "f8")),
)

# Heads of torchvision's GoogLeNet and Inception v3 that are only used for training from scratch.
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def _ignore(line: str) -> None:
    """Do nothing with a message."""


def read_weights(
    path: str | os.PathLike,
    network: nn.Module | None = None,
    *,
    key: str | None = None,
    say: Callable[[str], None] = _ignore,
) -> dict[str, Tensor]:
    """Read a file of trained weights and return float32 tensors by name.

    Supported are `.safetensors`, PyTorch files (also checkpoints of a training run that contain
    the weights) and `.caffemodel`. Pickles are read with `weights_only=True`: a pickle that
    contains code is rejected and its code does not run.

    Parameters
    ----------
    path
        File to read.
    network
        Network that the weights belong to. Only a `.caffemodel` needs it, for the tensor names.
    key
        State dictionary to use in a PyTorch file that holds several: see `find_state_dict`.
    say
        Called with a message that says which weights are used, if the file holds several.

    Raises
    ------
    UserError
        If the file is missing, truncated or of an unknown format; if it contains code, no weights
        with the name `key`, a tensor without dense values, or a value that is not finite; or if a
        `.caffemodel` belongs to another network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint. Put the trained weights there, or set `checkpoint` of "
            "the network in params.yaml to another file."
        )
    tensors = _stored_tensors(path, network, key, say)
    require_plain(tensors, path)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if not name.endswith(_IGNORED)
    }
    _require_finite(tensors, path)
    return tensors


def _stored_tensors(
    path: Path, network: nn.Module | None, key: str | None, say: Callable[[str], None]
) -> dict[str, Tensor]:
    """Return the tensors of a file in the format that its name says."""
    if path.name.endswith(_PICKLES):
        return find_state_dict(_read_pickle(path), path, key, say)
    if path.suffix == ".safetensors":
        tensors = read_tensors(path, framework="pt")
    elif path.suffix == ".caffemodel" and network is not None:
        from lowrank.zoo.caffe import caffe_weights

        tensors = caffe_weights(path, network)
    else:
        raise UserError(
            f"{path}: unknown checkpoint format '{path.suffix}'. Expected a file name that ends "
            f"in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}."
        )
    if key:
        raise UserError(
            f"{path}: `state_key` only applies to PyTorch files, which can hold several sets of "
            "weights. Remove it."
        )
    return tensors


def _require_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            not_finite = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"{path}: tensor '{name}' has {not_finite} values that are not finite (NaN or "
                "infinity). These weights cannot be compressed. Use a checkpoint from before the "
                "training diverged."
            )


def load_weights(
    network: nn.Module,
    weights: dict[str, Tensor],
    *,
    source: str,
    say: Callable[[str], None] = _ignore,
) -> None:
    """Load weights into a network of the same architecture, in place.

    Prefixes that training programs add to the names are removed, and `say` is called with a
    message. The old names in torchvision's DenseNet files (before 2018) are accepted. Auxiliary
    heads are skipped if the network has none.

    Raises UserError with the name of the first tensor that differs and both shapes. `source` is
    the file that messages name.
    """
    expected = dict(_tensors(network))
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(_IGNORED)}
    weights = _renamed(weights, expected, source, say)
    if getattr(network, "aux_logits", True) is False:
        weights = {k: v for k, v in weights.items() if not k.startswith(_AUXILIARY_HEADS)}
    for name, tensor in expected.items():
        if name not in weights:
            raise UserError(
                f"{source}: has no tensor '{name}' of shape {tuple(tensor.shape)}, which "
                f"{type(network).__name__} needs (the first name in the file is "
                f"'{next(iter(weights), '')}'). The file holds the weights of another architecture."
            )
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{source}: tensor '{name}' has shape {tuple(weights[name].shape)}, but "
                f"{type(network).__name__} expects {tuple(tensor.shape)}. The file holds the "
                "weights of another architecture."
            )
        if tensor.is_floating_point() and not weights[name].is_floating_point():
            raise UserError(
                f"{source}: tensor '{name}' has type {weights[name].dtype}, but "
                f"{type(network).__name__} expects {tensor.dtype}. Integers are the weights of a "
                "quantized network. Use the checkpoint from before quantization."
            )
    if surplus := sorted(weights.keys() - expected.keys()):
        raise UserError(
            f"{source}: has a tensor '{surplus[0]}' of shape "
            f"{tuple(weights[surplus[0]].shape)} that {type(network).__name__} does not have "
            f"({len(surplus)} such tensors in total). The file holds the weights of another "
            "architecture."
        )
    # Do not use load_state_dict: some torchvision networks require the version that their files
    # store next to the tensors.
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
    """Load trained weights into a network and fold it, in place.

    The file may hold the weights before or after folding (see `lowrank.zoo.plain.fold`). `say` is
    called with a message. Raises UserError in the same cases as `load_weights`.
    """
    if not can_be_folded(network):
        load_weights(network, weights, source=source, say=say)
        return
    known = _tensor_names(network) & weights.keys()
    try:
        load_weights(network, weights, source=source, say=say)
        folded = fold(network)
    except UserError as error:
        folded = fold(network)
        if len(known) > len(_tensor_names(network) & weights.keys()):
            # The file holds the weights before folding, so only that message names its tensors.
            raise error from None
        load_weights(network, weights, source=source, say=say)
    if folded:
        say(
            f"folded {len(folded)} tensors that the network computes before each forward pass, or "
            "that hold several projections of attention, into weights of layers: "
            f"{', '.join(folded[:3])}{', ...' if len(folded) > 3 else ''}"
        )


def _tensor_names(network: nn.Module) -> set[str]:
    return {name for name, _ in _tensors(network)}


def write_weights(
    path: str | os.PathLike,
    network: nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    header: dict[str, Any] | None = None,
) -> None:
    """Write the tensors of a network to a safetensors file, atomically.

    Equal weights give equal bytes.
    """
    tensors = {}
    for name, tensor in _tensors(network):
        # Integer tensors, such as index tables, keep their type.
        stored = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        tensors[name] = stored.contiguous().numpy()
    write_tensors(path, tensors, header)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and detached values of the parameters and buffers that are stored."""
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor) and not name.endswith(_IGNORED):
            yield name, value


def _renamed(
    weights: dict[str, Tensor],
    expected: dict[str, Tensor],
    source: str,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """Return the weights under the names of the network, if a known renaming leads to them."""
    if expected.keys() <= weights.keys():
        return weights
    for renamed in (weights, {_densenet(name): tensor for name, tensor in weights.items()}):
        if (matched := without_prefix(renamed, expected, source, say)) is not None:
            return matched
    return weights


def _densenet(name: str) -> str:
    """Turn `denselayer1.norm.1.weight` into `denselayer1.norm1.weight`, like torchvision does."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1", name)


def _read_pickle(path: Path) -> Any:
    """Return the content of a PyTorch file without running code."""
    if _is_torchscript(path):
        raise UserError(
            f"{path}: a TorchScript archive, which is a program, not weights. Save only the "
            "weights: torch.save(torch.jit.load('" + path.name + "').state_dict(), 'weights.pth')."
        )
    try:
        with torch.serialization.safe_globals(list(_SAFE_CLASSES)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        class_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it contains an object of class {class_name[1]} (a complete network or another part "
            "of a program), and loading it could run code"
            if class_name
            else "it is damaged, or it is a pickle that contains more than tensors, and loading it "
            "could run code"
        )
        raise UserError(
            f"{path}: rejected: {reason}. In the program that created it, save only the weights: "
            "torch.save(network.state_dict(), 'weights.pth'), or use safetensors."
        ) from error
    except Exception as error:  # Damaged bytes can make the unpickler fail in many ways.
        raise UserError(
            f"{path}: not a complete PyTorch file ({path.stat().st_size} bytes; "
            f"{_first_line(error)}). It is probably truncated. Copy or download it again."
        ) from error


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive with code, as torch.jit.save writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _first_line(error: Exception) -> str:
    # Keep only the first line: PyTorch's messages continue with how to disable the safety check.
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
