"""Measure what the correction of biases gains in int8, for trained networks.

    python benchmarks/bias_correction.py [--images FOLDER]

Each network is quantized with and without the correction, with weights of 8 and of 7 bits. The
change of the outputs is the norm of their difference from those of the network in float, relative
to the norm of the latter. The networks for CIFAR-10 see 2,000 test images. With a FOLDER of
ImageNet images as for `imagenet.py`, ResNet-50 and MobileNetV2 follow; every second image is for
calibration, and the others are for the outputs.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import imagenet
import numpy as np
import onnx
import torch
from data_aware import inputs, shipped
from torch import Tensor, nn

from lowrank.config.quantize import QuantizeSettings
from lowrank.data.datasets import open_dataset
from lowrank.devices.processor import IntegerTypes
from lowrank.files import write_json
from lowrank.onnx_files.bias_correction import BiasCorrection
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.int8 import Quantizer
from lowrank.onnx_networks.model_run import ModelRun
from lowrank.zoo.registry import NetworkSpec

RESULTS = Path(__file__).parent / "results" / "bias_correction.json"
DATA = Path(__file__).parent.parent / "data/datasets/cifar10"
BATCH = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder with images of ImageNet")
    options = parser.parse_args()
    rows = []
    for name, network, spec, calibration, test in networks(options.images):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"network": name} | changes(network, spec, calibration, test, Path(folder)))
        print(rows[-1], flush=True)
        write_json(RESULTS, {"rows": rows})


def networks(
    folder: Path | None,
) -> Iterator[tuple[str, nn.Module, NetworkSpec, Tensor, Tensor]]:
    """Return each network with its images for calibration and for the comparison."""
    data = open_dataset(DATA)
    for name in ("vgg16", "resnet20"):
        network, spec = shipped(name)
        splits = (data.train.sample(500), data.test.sample(2000))
        calibration, test = (torch.cat(list(inputs(split, spec))) for split in splits)
        yield name, network, spec, calibration, test
    if folder is not None:
        paths = sorted(folder.glob("*.jpg"))
        for name, source in imagenet.NETWORKS.items():
            spec = NetworkSpec(name, imagenet.SHAPE, 1000)
            yield (
                name,
                source.trained(),
                spec,
                source.images(paths[::2]),
                source.images(paths[1::2]),
            )


def changes(
    network: nn.Module, spec: NetworkSpec, calibration: Tensor, test: Tensor, folder: Path
) -> dict[str, Any]:
    """Return the relative change of the outputs, and the seconds that the correction takes."""
    file, quantized = folder / "network.onnx", folder / "int8.onnx"
    export_onnx(network, spec, file)
    batches = [{"images": batch.numpy()} for batch in calibration.split(BATCH)]
    started = time.perf_counter()
    correction = BiasCorrection.prepared(onnx.load(file), batches, str(file))
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1)}
    del correction
    expected = outputs(file, test)
    quantizer = Quantizer(file, batches, QuantizeSettings(), folder)
    for bits in (8, 7):
        types = IntegerTypes("uint8", reduce_range=bits == 7)
        quantizer.write(quantized, types)
        row[f"corrected_{bits}"] = change(outputs(quantized, test), expected)
        with mock.patch.object(BiasCorrection, "apply", return_value=0):
            quantizer.write(quantized, types)
        row[f"rounded_{bits}"] = change(outputs(quantized, test), expected)
    return row


def outputs(file: Path, images: Tensor) -> np.ndarray:
    """Return the outputs of an ONNX file for some images."""
    run = ModelRun(onnx.load(file), str(file))
    batches = [run({"images": batch.numpy()}) for batch in images.split(BATCH)]
    return np.concatenate([next(iter(batch.values())) for batch in batches])


def change(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference, relative to the norm of the expected outputs."""
    return round(float(np.linalg.norm(actual - expected) / np.linalg.norm(expected)), 4)


if __name__ == "__main__":
    main()
