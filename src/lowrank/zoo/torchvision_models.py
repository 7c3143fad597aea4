"""torchvision's classifiers: their names, how to build them, and the input that weights expect.

Importing torchvision takes 1.5 s, so it is imported only where it is needed.
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

# The weights of these networks come from TensorFlow. `transform_input` converts images to the
# normalization of TensorFlow. The auxiliary heads are only used for training from scratch.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": True},
    "inception_v3": {"transform_input": True, "aux_logits": False, "init_weights": True},
}

_CONNECTION_SECONDS = 60.0


def torchvision_names() -> list[str]:
    """Return the names of all classification architectures in torchvision."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def torchvision_network(
    name: str, arguments: dict[str, Any], weights_name: str | None = None
) -> tuple[NetworkSpec, nn.Module]:
    """Build a torchvision classifier with random weights.

    Parameters
    ----------
    name
        Name of the network in torchvision.
    arguments
        Arguments of the torchvision function with that name.
    weights_name
        Weights that will be loaded into the network, such as `IMAGENET1K_V2`. They define the
        preprocessing, and the image size of a vision transformer. By default, the network is built
        with torchvision's defaults, and the preprocessing is that of the best weights that fit.

    Raises
    ------
    UserError
        If the name of the network or of the weights is unknown, or torchvision rejects the
        arguments.
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
    """Download the weights of a torchvision classifier and write them atomically.

    Parameters
    ----------
    name
        Name of the network in torchvision, with or without the prefix `torchvision/`.
    weights_name
        Name of the weights in torchvision: `IMAGENET1K_V1`, or `DEFAULT` for the best weights.
    path
        File to write: a copy of torchvision's file for `.pth`, or its tensors for `.safetensors`.

    Raises
    ------
    UserError
        If a name is unknown, the download fails, or the file does not have the hash that
        torchvision lists. The message names the URL and where to put the file.
    """
    weights = _weights(name.removeprefix("torchvision/"), weights_name)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        try:
            tensors = _download(weights.url, folder)
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot download the weights {weights_name} of {name} from {weights.url} "
                f"({str(error).strip()}). Download that file on another machine, put it at "
                f"{path.with_suffix('.pth')}, and set `weights` in params.yaml to that path."
            ) from error
        if path.suffix == ".safetensors":
            write_tensors(path, {key: tensor.numpy() for key, tensor in tensors.items()})
            return
        with written_whole(path) as partial:
            shutil.copyfile(next(folder.iterdir()), partial)


def _download(url: str, folder: Path) -> dict[str, torch.Tensor]:
    # torch.hub has no timeout, and it prints to stdout.
    previous_timeout = socket.getdefaulttimeout()
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
        socket.setdefaulttimeout(previous_timeout)


def _weights(name: str, weights_name: str) -> Any:
    """Return the entry for these weights in torchvision."""
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
        # Vision transformers accept only one image size.
        image_size = getattr(network, "image_size", None)
        compatible = [entry for entry in candidates if image_size in (None, _crop(entry))]
        weights = (compatible or candidates)[0]
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
