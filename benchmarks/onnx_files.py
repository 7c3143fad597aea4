r"""Compress ONNX files of others without training: three PaddleOCR networks.

    python benchmarks/onnx_files.py [--networks recognition ...] [--targets macs latency]

The networks find, turn and read lines of text. pip downloads them with the package
rapidocr-onnxruntime 1.4.4 (15 MB, Apache 2.0; nothing of it is run). The images are rendered with
fonts of Debian packages (see text_images.py), the metrics are those of text_metrics.py. For each
network, this measures the layers that factors can replace, the error of the outputs at full rank,
and for each target, on images that calibration has not seen: metric, agreement with the original,
size, and latency on one thread, of

- the original in float and in int8,
- the network with factors that approximate the outputs of layers, in float and in int8,
- the network with factors that approximate weights, and sequentially, in float (`--norms`).

The results are in benchmarks/results/onnx_files.json. Latencies are only meaningful on a quiet
machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import text_images
import text_metrics

from lowrank.api import TUCKER
from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.in_memory import Compression
from lowrank.compression.int8_file import write_int8
from lowrank.compression.one_file import FileMeasurements
from lowrank.config.device_kinds import create_device
from lowrank.config.factorize import FactorizeSettings
from lowrank.core.plans import PlannedLayer
from lowrank.errors import UserError
from lowrank.factorize import decompose, get_factorization, one_group
from lowrank.files import write_json
from lowrank.onnx_networks.model_file import write_model
from lowrank.ranks.any_rule import rank_settings

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "onnx_files.json"
FOLDER = ROOT / "build/onnx_files"
PACKAGE = "rapidocr-onnxruntime==1.4.4"

TARGETS: dict[str, dict[str, Any]] = {
    "macs": {"macs": 0.7},
    "latency": {"latency_ms": {"local": 0.7}},
}
NORMS: dict[str, dict[str, Any]] = {
    "activation": {"norm": "activation"},
    "weight": {"norm": "weight"},
    "sequential": {"norm": "activation", "sequential": True},
}
THREADS = 1

Evaluate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Benchmark:
    """A network, its images for calibration, and its metrics.

    `metrics` take the network, `agreements` also the original.
    """

    file: str
    images: Callable[[int], np.ndarray]
    count: int
    metrics: Sequence[Callable[[Evaluate], float]]
    agreements: Sequence[Callable[[Evaluate, Evaluate], float]]


NETWORKS = {
    "orientation": Benchmark(
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        lambda count: text_images.crops(count, seed=0).images,
        256,
        (text_metrics.orientation,),
        (text_metrics.same_answers,),
    ),
    "detection": Benchmark(
        "ch_PP-OCRv4_det_infer.onnx",
        lambda count: text_images.pages(count, seed=0).images,
        32,
        (text_metrics.found_lines,),
        (text_metrics.box_agreement, text_metrics.map_error),
    ),
    "recognition": Benchmark(
        "ch_PP-OCRv4_rec_infer.onnx",
        lambda count: text_images.lines(count, seed=0).images,
        256,
        (text_metrics.exact_match, text_metrics.character_errors),
        (text_metrics.same_texts,),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--norms", nargs="+", default=["activation"], choices=NORMS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    fetch()
    device = create_device("local", {"threads": THREADS})
    document: dict[str, Any] = {"environment": device.environment({}), "networks": {}}
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            measured = Measured(NETWORKS[name], Path(folder))
            document["networks"][name] = measured.document(options.targets, options.norms)
        write_json(options.output, document)
    print("\n".join(table(document)))


def fetch() -> None:
    """Download and unpack the package, without installing it."""
    if (FOLDER / "rapidocr_onnxruntime").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(FOLDER)


def table(document: Mapping[str, Any]) -> list[str]:
    """Return the results as a Markdown table, a row for each file."""
    lines = [
        "| network | file | layers replaced | MACs, % | MB | metrics, % | faster than float | "
        "faster than int8 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, network in document["networks"].items():
        rows = {"original": network["original"], "int8 of the original": network["original_int8"]}
        for target in TARGETS.keys() & network.keys():
            rows |= {
                f"{target}, {norm.replace('_', ' in ')}": row
                for norm, row in network[target].items()
                if norm.removesuffix("_int8") in NORMS
            }
        benchmark = NETWORKS[name]
        metrics = [m.__name__ for m in (*benchmark.metrics, *benchmark.agreements)]
        for file, row in rows.items():
            cells = (
                name,
                file,
                str(row.get("replaced", "")),
                f"{100 * row['macs_share']:.0f}" if "macs_share" in row else "",
                f"{row['size_bytes'] / 1e6:.2f}",
                ", ".join(f"{metric.replace('_', ' ')} {row[metric]:.2f}" for metric in metrics),
                _ratio(row.get("speedup")),
                _ratio(row.get("speedup_over_int8")),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratio(speedup: Sequence[float] | str | None) -> str:
    if speedup is None or isinstance(speedup, str):
        return speedup or ""
    return f"{speedup[0]:.2f}x"


class Measured:
    """The measurements of one network."""

    def __init__(self, benchmark: Benchmark, folder: Path) -> None:
        self._benchmark, self._folder = benchmark, folder
        self._path = FOLDER / "rapidocr_onnxruntime/models" / benchmark.file
        start = time.perf_counter()
        self._network = GraphNetwork.read(self._path, None, [benchmark.images(benchmark.count)])
        self._seconds_to_read = time.perf_counter() - start
        self._original = evaluation(self._path)
        self._control = folder / "control.onnx"

    def document(self, targets: Sequence[str], norms: Sequence[str]) -> dict[str, Any]:
        """Return all measurements of the network."""
        layers = self._network.table.layers
        write_int8(self._network, self._control)
        document = {
            "file": self._benchmark.file,
            "calibration_images": self._benchmark.count,
            "layers": len(layers),
            "replaceable": sum(not layer.not_factored for layer in layers),
            "macs": sum(layer.dense_macs for layer in layers),
            "full_rank_error": self._error_at_full_rank(),
            "seconds_to_read": self._seconds_to_read,
            "original": self._quality(self._path) | {"size_bytes": self._path.stat().st_size},
            "original_int8": self._row("original in int8", self._control),
        }
        print(self._benchmark.file, document, flush=True)
        for target in targets:
            document[target] = self._compressed(TARGETS[target], norms)
            print(self._benchmark.file, target, document[target], flush=True)
        return document

    def _compressed(self, target: Mapping[str, Any], norms: Sequence[str]) -> dict[str, Any]:
        """Return the measurements of the network with a target for its cost."""
        rule = rank_settings({"select": "budget", "target": target})
        document: dict[str, Any] = {"target": target}
        compressions: dict[str, Compression[GraphNetwork]] = {}
        for norm in norms:
            entries = {**TUCKER, "alternatives": ["spatial_svd"], **NORMS[norm]}
            settings = FactorizeSettings.model_validate(entries)
            # Both choose the same ranks from the same losses.
            same = compressions.get("activation" if norm == "sequential" else norm)
            compression = (
                replace(same, factorize=settings)
                if same
                else Compression.of(self._network, settings)
            )
            compressions[norm] = compression
            start, processor = time.perf_counter(), time.process_time()
            try:
                small, planned = compression.at(rule)
            except UserError as error:
                # Small layers have no factors that are faster, so some targets cannot be met.
                return document | {"not_met": str(error)}
            seconds = {
                "seconds": time.perf_counter() - start,
                "processor_seconds": time.process_time() - processor,
            }
            path = self._folder / f"{norm}.onnx"
            write_model(path, small.model)
            document[norm] = seconds | self._costs(planned) | self._row(norm, path)
            if norm == "activation":
                int8 = self._folder / f"{norm}_int8.onnx"
                write_int8(small, int8)
                document[f"{norm}_int8"] = self._row(f"{norm} in int8", int8, over_int8=True)
        return document

    def _costs(self, planned: Sequence[PlannedLayer]) -> dict[str, Any]:
        whole = sum(layer.dense_macs for layer in self._network.table.layers)
        saved = sum(layer.macs[0] - layer.macs[1] for layer in planned)
        return {
            "replaced": sum(not layer.is_dense for layer in planned),
            "macs_share": 1 - saved / whole,
        }

    def _row(self, label: str, path: Path, *, over_int8: bool = False) -> dict[str, Any]:
        """Return quality, size and latency of a file, against the original in float."""
        row = self._quality(path) | {"size_bytes": path.stat().st_size}
        row["speedup"] = self._speedup(label, path, self._path)
        if over_int8:
            row["speedup_over_int8"] = self._speedup(label, path, self._control)
        return row

    def _quality(self, path: Path) -> dict[str, float]:
        evaluate = evaluation(path)
        metrics = {metric.__name__: metric(evaluate) for metric in self._benchmark.metrics}
        return metrics | {
            metric.__name__: metric(evaluate, self._original)
            for metric in self._benchmark.agreements
        }

    def _speedup(self, label: str, path: Path, reference: Path) -> Any:
        """Return the ratio of latencies and its interval."""
        network = GraphNetwork(onnx.load(reference), (), self._network.shapes, str(reference))
        return FileMeasurements(network, THREADS, self._folder).measure(label, path).speedup

    def _error_at_full_rank(self) -> float:
        """Return the error of the outputs with all layers replaced, relative to the outputs."""
        full = self._network.copy()
        for layer in self._network.table.layers:
            kind = "svd" if layer.kernel == (1, 1) else "tucker2"
            method = get_factorization(kind)
            if layer.not_factored or method.applies_to(layer):
                continue
            weight, bias = self._network.weight_and_bias(layer.name)
            ranks = method.full_ranks(one_group(layer))
            full.replace(layer.name, decompose(method, layer, weight, bias, ranks))
        path = self._folder / "full.onnx"
        write_model(path, full.model)
        (batch,) = self._network.batches[0].values()
        before, after = self._original(batch), evaluation(path)(batch)
        return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def evaluation(path: Path) -> Evaluate:
    """Return a function that runs a file on a batch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    return partial(_first_output, session, name)


def _first_output(
    session: onnxruntime.InferenceSession, name: str, batch: np.ndarray
) -> np.ndarray:
    output: np.ndarray = session.run(None, {name: batch})[0]
    return output


if __name__ == "__main__":
    main()
