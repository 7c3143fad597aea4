"""Compare Tucker-2 that minimizes the error of weights, of outputs, and of outputs sequentially.

    python benchmarks/data_aware.py [--images 1000] [--threads 2]

The shipped networks are decomposed at the same ranks in all three ways, without fine-tuning. In
ResNet-20, the ranks of each 3 x 3 convolution with 16 or more inputs are a share of both channel
counts. VGG-16 has the ranks of EVBMF. Accuracy is measured on the 10,000 test images. Needs the
data: `snakemake data/datasets/cifar10`.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import Dataset, Split, open_dataset
from lowrank.evaluation.network import value_of
from lowrank.files import write_json
from lowrank.surgery.finding import find_layers
from lowrank.tasks import get_task
from lowrank.zoo import create_network, network_spec
from lowrank.zoo.registry import NetworkSpec
from lowrank.zoo.weight_files import load_weights, read_weights

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "data_aware.json"
SHARES = (0.75, 0.6, 0.5, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = open_dataset(ROOT / "data/datasets/cifar10")
    rows = []
    for share in SHARES:
        network, spec = shipped("resnet20")
        method = {"factorize": {"conv": "tucker2"}, "ranks": at_share(network, spec, share)}
        rows.append(
            {"ranks": f"{share} of the channels"} | compare(network, spec, method, data, options)
        )
    network, spec = shipped("vgg16")
    method = {"factorize": {"conv": "tucker2"}, "ranks": {"select": "vbmf"}}
    rows.append({"ranks": "EVBMF"} | compare(network, spec, method, data, options))
    write_json(RESULTS, {"images": options.images, "threads": options.threads, "rows": rows})


def compare(
    network: nn.Module, spec: NetworkSpec, method: dict[str, Any], data: Dataset, options: Any
) -> dict[str, Any]:
    """Return the accuracy and the time of each way."""
    row: dict[str, Any] = {"network": spec.name}
    for way in ("weight", "activation", "sequential"):
        images = None if way == "weight" else inputs(data.train.sample(options.images), spec)
        start = time.perf_counter()
        small = lowrank.compress(
            network, spec.input_shape, images=images, sequential=way == "sequential", **method
        )
        row[f"{way}_seconds"] = round(time.perf_counter() - start, 1)
        row[f"{way}_percent"] = round(
            value_of(get_task("classification"), small.network, data.test, spec), 2
        )
        row["macs_ratio"] = round(macs_ratio(network, spec, small), 2)
    print(row, flush=True)
    return row


def shipped(name: str) -> tuple[nn.Module, NetworkSpec]:
    network, spec = create_network(name), network_spec(name)
    path = ROOT / f"data/checkpoints/{name}.safetensors"
    load_weights(network, read_weights(path, network), source=str(path))
    return network.eval(), spec


def at_share(network: nn.Module, spec: NetworkSpec, share: float) -> dict[str, Any]:
    """Return ranks for all 3 x 3 convolutions except the first."""
    layers = find_layers(network, spec.input_shape, spec.name).layers
    return {
        "select": "fixed",
        "table": {
            layer.name: [round(share * layer.in_channels), round(share * layer.out_channels)]
            for layer in layers
            if layer.kernel == (3, 3) and layer.in_channels >= 16
        },
    }


def macs_ratio(network: nn.Module, spec: NetworkSpec, small: lowrank.Compressed) -> float:
    """Return the ratio of the MACs of the whole networks, original / compressed."""
    before = sum(x.dense_macs for x in find_layers(network, spec.input_shape, spec.name).layers)
    saved = sum(layer.macs[0] - layer.macs[1] for layer in small.layers)
    return before / (before - saved)


def inputs(images: Split, spec: NetworkSpec) -> Iterator[Tensor]:
    """Return batches of preprocessed images."""
    batches = EvaluationBatches(images, spec)
    return (batches[number][0] for number in range(len(batches)))


if __name__ == "__main__":
    main()
