"""torchvision's classifiers: their names, how they are built, and what their weights expect.

torchvision takes a second and a half to import: it is imported where it is needed.
"""

import contextlib
import io
import shutil
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.core.stored import write_tensors
from lowrank.errors import UserError, unknown_name
from lowrank.files import written_whole
from lowrank.temporary import temporary_folder
from lowrank.zoo.registry import NetworkSpec

# Their weights come from TensorFlow, whose normalisation their forward() restores; their auxiliary
# heads serve to train from scratch.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": True},
    "inception_v3": {"transform_input": True, "aux_logits": False, "init_weights": True},
}

_CONNECTION_SECONDS = 60.0


def torchvision_names() -> list[str]:
    """Every classification architecture that torchvision lists."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def torchvision_network(
    name: str, arguments: dict[str, Any], weights_name: str | None = None
) -> tuple[NetworkSpec, nn.Module]:
    """Build a classifier of torchvision's with random weights.

    Parameters
    ----------
    name
        As torchvision lists it.
    arguments
        Of torchvision's function of that name.
    weights_name
        The weights that the network is for, such as `IMAGENET1K_V2`; the preprocessing is theirs,
        and a vision transformer is built for the size of their images. By default it is built as
        torchvision does, for the best weights that fit.

    Raises
    ------
    UserError
        For an unknown name of the network or of the weights, or arguments that torchvision refuses.
    """
    import torchvision

    arguments = _ARGUMENTS.get(name, {}) | arguments
    if weights_name and name.startswith("vit_"):
        arguments.setdefault("image_size", _crop(_weights(name, weights_name)))
    try:
        network = torchvision.models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"torchvision/{name}: cannot be built with the arguments {arguments} ({error}). "
            "Correct `arguments` in params.yaml."
        ) from error
    return _spec(name, network, weights_name), network


def fetch_torchvision_weights(name: str, weights_name: str, path: Path) -> None:
    """Download weights of a torchvision classifier and write them, whole or not at all.

    Parameters
    ----------
    name
        The network, as torchvision lists it, with or without `torchvision/` before it.
    weights_name
        As torchvision lists it: `IMAGENET1K_V1`, or `DEFAULT` for those that it calls best.
    path
        Where to write: torchvision's own file for `.pth`, or its tensors as `.safetensors`.

    Raises
    ------
    UserError
        For an unknown name, or when the file cannot be reached or is not the one that torchvision
        lists; it says from where it was tried and where to put the file.
    """
    weights = _weights(name.removeprefix("torchvision/"), weights_name)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        try:
            tensors = _download(weights.url, folder)
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(
                f"{path}: the weights {weights_name} of {name} cannot be fetched from "
                f"{weights.url} ({str(error).strip()}). Fetch that file elsewhere and put it at "
                f"{path.with_suffix('.pth')}, which `weights` in params.yaml then names."
            ) from error
        if path.suffix == ".safetensors":
            write_tensors(path, {key: tensor.numpy() for key, tensor in tensors.items()})
            return
        with written_whole(path) as partial:
            shutil.copyfile(next(folder.iterdir()), partial)


def _download(url: str, folder: Path) -> dict[str, torch.Tensor]:
    # torch.hub sets no time limit of its own, and prints.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECTION_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return torch.hub.load_state_dict_from_url(
                url,
                model_dir=str(folder),
                map_location="cpu",
                progress=False,
                check_hash=True,
                weights_only=True,
            )
    finally:
        socket.setdefaulttimeout(before)


def _weights(name: str, weights_name: str) -> Any:
    """The entry of torchvision's table of weights."""
    import torchvision

    if name not in (known := torchvision_names()):
        raise unknown_name("torchvision classifier", name, known)
    entries = torchvision.models.get_model_weights(name)
    if weights_name not in entries.__members__:
        raise unknown_name(
            "weights", weights_name, entries.__members__, where=f"torchvision/{name}"
        )
    return entries[weights_name]


def _crop(weights: Any) -> int:
    return weights.transforms().crop_size[0]


def _spec(name: str, network: nn.Module, weights_name: str | None) -> NetworkSpec:
    import torchvision

    if weights_name:
        weights = _weights(name, weights_name)
    else:
        entries = torchvision.models.get_model_weights(name)
        candidates = [entries.DEFAULT, *entries]
        # Vision transformers are built for one size of images.
        built_for = getattr(network, "image_size", None)
        fitting = [each for each in candidates if built_for in (None, _crop(each))]
        weights = (fitting or candidates)[0]
    transforms = weights.transforms()
    size, resize = getattr(network, "image_size", _crop(weights)), transforms.resize_size[0]
    return NetworkSpec(
        name=name,
        input_shape=(len(transforms.mean), size, size),
        num_classes=0,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize=resize if size == _crop(weights) else None,
        interpolation=transforms.interpolation.value,
    )
