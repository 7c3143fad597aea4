"""Compress a network for ImageNet at 224 pixels: cost of the compressor and its result.

    python benchmarks/imagenet.py IMAGES [--network resnet50] [--methods both]
        [--targets macs=0.7 latency=0.2 ...] [--threads 2]

The methods are factorizations (`low rank`), channel removal (`prune`), and the best of them for
each layer (`both`, the recommended method). A target is a share of the original's MACs, or
`latency=0.25`: a share of its latency in float that the compressed network has in int8 on this
machine, or `accuracy_drop=1`: the fastest network in int8 that loses one point by the estimate
without labels.

The weights are those of `keras_resnet50.py` and `torchvision_mobilenet.py`. IMAGES is a folder of
ImageNet images with the names `<class index>_<anything>.jpg`. Every second image is for
calibration, the others are for the accuracy. The expected drop is that of these images if the
probabilities of the original are right; it varies less than the accuracy. Nothing is trained.

Each method runs in a process of its own, so that its memory is known. Its targets share the
measurements of layers, so the first target takes longest. The time is compared with a floor: one
pass of the network over the calibration images, and one eigenproblem for each layer, of the size of
its smaller number of channels. Latencies are measured with one thread, in float and in int8,
against the original in float and in int8. The files stay in `build/imagenet/<network>/`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_resnet50
import numpy as np
import onnx
import onnxruntime
import torch
import torchvision_mobilenet
from scipy.special import softmax

import lowrank
from lowrank.api import TUCKER
from lowrank.compression.accuracy_search import AccuracySearch
from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.in_memory import Compression
from lowrank.compression.int8_file import write_int8
from lowrank.compression.module_network import ModuleNetwork
from lowrank.compression.one_file import FileMeasurements
from lowrank.config.factorize import FactorizeSettings
from lowrank.core.output_change import LostAccuracy
from lowrank.devices.peak_memory import peak_bytes
from lowrank.files import read_json, write_json
from lowrank.onnx_files.export import export_onnx
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.rank_settings import RankSettings
from lowrank.surgery.finding import find_layers
from lowrank.tasks import get_task
from lowrank.zoo.registry import NetworkSpec

RESULTS = Path(__file__).parent / "results"
BUILD = Path(__file__).parent.parent / "build/imagenet"
NETWORKS = {"resnet50": keras_resnet50, "mobilenet_v2": torchvision_mobilenet}
SHAPE = (3, 224, 224)
BATCH = 25

METHODS: dict[str, dict[str, Any]] = {
    "low rank": {**TUCKER, "alternatives": ["spatial_svd"]},
    "prune": {"conv": "remove_channels", "pointwise_conv": "remove_channels"},
    "both": dict(lowrank.RECOMMENDED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--targets", nargs="+", default=["macs=0.7"])
    parser.add_argument("--threads", type=int, default=2, help="threads of the compressor")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = sorted(options.images.glob("*.jpg"))
    if options.child:
        (method,) = options.methods
        for costs in compressed(
            options.network, paths[::2], method, options.targets, options.child
        ):
            print(json.dumps(costs), flush=True)
        return
    results = RESULTS / f"{options.network}.json"
    document = read_json(results) if results.exists() else {"rows": {}}
    folder = BUILD / options.network
    folder.mkdir(parents=True, exist_ok=True)
    measured = Measured(options.network, paths, folder)
    document |= measured.original() | {
        "processor_threads": options.threads,
        "floor_seconds": floor(options.network, paths[::2]),
    }
    for method in options.methods:
        files = folder / method.replace(" ", "_")
        files.mkdir(exist_ok=True)
        for target, costs in in_own_process(
            options.images, options.network, method, options.targets, options.threads, files
        ):
            row = {"method": method, "target": target} | costs
            row |= measured.rows(files / f"{target}.onnx")
            document["rows"][f"{method}, {target}"] = row
            print(row, flush=True)
            write_json(results, document)


def in_own_process(
    images: Path, network: str, method: str, targets: list[str], threads: int, folder: Path
) -> list[tuple[str, dict[str, Any]]]:
    """Compress the network in a process of its own to `<target>.onnx`; return what that took."""
    command = [sys.executable, __file__, str(images), "--network", network, "--methods", method]
    command += ["--targets", *targets, "--threads", str(threads), "--child", str(folder)]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    costs = map(json.loads, child.stdout.splitlines()[-len(targets) :])
    return list(zip(targets, costs, strict=True))


def compressed(
    name: str, paths: list[Path], method: str, targets: list[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """Compress the network to each target, write it, and return what that took."""
    images = NETWORKS[name].images(paths)
    started, processor = time.perf_counter(), time.process_time()
    original = ModuleNetwork.of(
        NETWORKS[name].trained(), SHAPE, get_task("classification"), images.split(BATCH)
    )
    factorize = {**METHODS[method], "norm": "activation", "sequential": True}
    compression = Compression.of(original, FactorizeSettings.model_validate(factorize))
    compression.int8 = True
    compression.say = lambda line: print(line, file=sys.stderr, flush=True)
    for number, target in enumerate(targets):
        rule = rule_for(target)
        if isinstance(rule, BudgetSettings) and rule.searches:
            rule = AccuracySearch(compression, rule).settings()
        small, planned = compression.at(rule)
        macs = compression.macs(planned)
        yield {
            "measures_layers": number == 0,
            "seconds": round(time.perf_counter() - started, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "peak_gib": round(peak_bytes() / 2**30, 2),
            "macs_share": round(macs[1] / macs[0], 4),
            "layers_replaced": len(compression.factored),
            "factorizations": Counter(
                factored.factorization for factored in compression.factored.values()
            ),
        }
        small.write_fixed(folder / f"{target}.onnx")
        started, processor = time.perf_counter(), time.process_time()


def rule_for(target: str) -> RankSettings:
    """Return the settings of the rank rule for `macs=0.7`, `latency=0.2` or `accuracy_drop=1`."""
    cost, _, text = target.partition("=")
    value = float(text)
    return rank_settings(
        {
            "select": "budget",
            "target": {"latency_ms": {"local": value}} if cost == "latency" else {cost: value},
            "multiple_of": "auto",
            "largest_drop": 1,
        }
    )


def floor(name: str, paths: list[Path]) -> float:
    """Return the seconds of one pass over the images, and of one eigenproblem for each layer."""
    network, images = NETWORKS[name].trained(), NETWORKS[name].images(paths)
    sizes = [
        min(layer.in_channels, layer.out_channels)
        for layer in find_layers(network, SHAPE, name).layers
    ]
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(BATCH):
            network(batch)
    for size in sizes:
        np.linalg.eigh(np.diag(np.arange(1.0, size + 1)) + 1 / size)
    return round(time.perf_counter() - started, 1)


class Measured:
    """The original network as ONNX, and measurements against it."""

    def __init__(self, name: str, paths: list[Path], folder: Path) -> None:
        self._folder = folder
        source = NETWORKS[name]
        self._images = source.images(paths[1::2]).numpy()
        self._labels = np.array([int(path.name.partition("_")[0]) for path in paths[1::2]])
        self._calibration = [batch.numpy() for batch in source.images(paths[::2]).split(BATCH)]
        self.in_float, self._in_int8 = folder / "original.onnx", folder / "original_int8.onnx"
        export_onnx(source.trained(), NetworkSpec(name, SHAPE, 1000), self.in_float)
        self._quantize(self.in_float, self._in_int8)
        self._answers = self._logits(self.in_float)

    def original(self) -> dict[str, Any]:
        """Return the measurements of the original in float and in int8."""
        return {
            "calibration_images": sum(map(len, self._calibration)),
            "test_images": len(self._images),
            "original": self._row(self.in_float, []),
            "original_int8": self._row(self._in_int8, [self.in_float]),
        }

    def rows(self, file: Path) -> dict[str, Any]:
        """Return the measurements of a compressed file, in float and in int8."""
        return {"float": self.row(file), "int8": self.row_in_int8(file)}

    def row(self, file: Path) -> dict[str, Any]:
        """Return the measurements of a file as it is."""
        return self._row(file, [self.in_float, self._in_int8])

    def row_in_int8(self, file: Path) -> dict[str, Any]:
        """Quantize a file, and return the measurements of its int8 network."""
        in_int8 = file.with_name(f"{file.stem}_int8.onnx")
        kept = self._quantize(file, in_int8)
        return self.row(in_int8) | {"nodes_in_float": len(kept)}

    def _quantize(self, file: Path, in_int8: Path) -> tuple[str, ...]:
        network = GraphNetwork.read(file, {"images": (1, *SHAPE)}, self._calibration)
        return write_int8(network, in_int8)

    def _row(self, file: Path, references: list[Path]) -> dict[str, Any]:
        """Return accuracy, size, and the ratios of latency to the references with their bounds."""
        logits = self._answers if file == self.in_float else self._logits(file)
        best = logits.argmax(1)
        return {
            "accuracy_percent": round(100 * float((best == self._labels).mean()), 1),
            "agreement_percent": round(100 * float((best == self._answers.argmax(1)).mean()), 1),
            "expected_drop": self._expected_drop(best),
            "megabytes": round(file.stat().st_size / 1e6, 2),
            "faster": [self._speedup(file, reference) for reference in references],
        }

    def _expected_drop(self, answers: np.ndarray) -> list[float]:
        """Return the drop in points if the original's probabilities are right, and its error."""
        probabilities, lost = softmax(self._answers.astype(np.float64), axis=1), LostAccuracy()
        images = np.arange(len(answers))
        own, other = self._answers.argmax(1), answers
        lost.add(probabilities[images, own], probabilities[images, other])
        return [round(value or 0.0, 2) for value in (lost.points, lost.error)]

    def _logits(self, file: Path) -> np.ndarray:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        batches = np.split(self._images, range(BATCH, len(self._images), BATCH))
        return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])

    def _speedup(self, file: Path, reference: Path) -> Any:
        network = GraphNetwork(onnx.load(reference), (), {"images": (1, *SHAPE)}, str(reference))
        folder = self._folder / "latency"
        folder.mkdir(exist_ok=True)
        speedup = FileMeasurements(network, 1, folder).measure(file.name, file).speedup
        return speedup if isinstance(speedup, str) else [round(ratio, 3) for ratio in speedup]


if __name__ == "__main__":
    main()
