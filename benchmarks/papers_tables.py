"""Measure the networks of the papers' tables: Kim et al. 2016, and Astrid & Lee 2017.

    python benchmarks/papers_tables.py [IMAGES] [--networks alexnet vgg_s]
        [--rows original kim] [--measure-only]

AlexNet, VGG-S, GoogLeNet and VGG-16, and torchvision's AlexNet, are compressed by the paper's ranks
(AlexNet) or by EVBMF ranks that are scaled to the paper's ratio of MACs, and by the recommended
method to the same MACs and to the same latency. AlexNet is also compressed by CP and SVD. All files
are measured in float and in int8, with one and with all threads, in turns with the original. The
time of each node, with one thread, is added up by kind of layer.

IMAGES is a folder of photos (.jpg) for the networks with trained convolutions. All others, and all
networks without IMAGES, are calibrated with noise. Files stay in `build/papers_tables/`, so a run
that was stopped continues. `--measure-only` builds nothing and measures the files again. With
`--networks` and `--rows`, the other measurements stay in the results. `kim` is the row by the
paper's ranks or MACs, `astrid` the one by CP. A network of the same latency aims at the latency
that was measured when it was built. To build a row again, delete its `.json` in the folder of the
network.
"""

import argparse
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from papers_networks import NETWORKS, PAPERS
from papers_rows import TITLES, Files, rows_of

from lowrank.config.device_kinds import create_device
from lowrank.core.layers import REST
from lowrank.files import read_json, write_json
from lowrank.onnx_files.counts import count
from lowrank.onnx_files.node_layers import layers_of_nodes
from lowrank.report.variant_pictures import times_picture

RESULTS = Path(__file__).parent / "results" / "papers_tables.json"
PICTURES = Path(__file__).parent.parent / "docs/pictures"
# Per sitting: runs of each model, and seconds of both together.
REPEATS, SECONDS = 10, 0.7
THREADS = {"one": 1, "all": len(os.sched_getaffinity(0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rows", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--measure-only", action="store_true")
    parser.add_argument("--count", type=int, default=64, help="images for the calibration")
    parser.add_argument("--threads", type=int, default=2, help="threads of the compressor")
    parser.add_argument("--sittings", type=int, default=3, help="processes of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = sorted(options.images.glob("*.jpg")) if options.images else []
    measurements = Measurements.of(options.sittings)
    for name in options.networks:
        files = Files(name, paths, options.count)
        titles = {row: title for row, title in rows_of(name).items() if row in options.rows}
        for row in titles:
            if not options.measure_only:
                print(f"{name}: building {row}", flush=True)
                files.build(row, partial(measurements.speedup, files))
        for row, title in titles.items():
            record = measurements.of_row(files, row, title)
            print(f"{name}: {row}: {summary(record)}", flush=True)
            network = add_to_results(name, files, row, record)
        draw(name, network)


def add_to_results(name: str, files: Files, row: str, record: dict[str, Any]) -> dict[str, Any]:
    """Write a row into the results, and return what they hold for its network."""
    known = read_json(RESULTS)["networks"] if RESULTS.exists() else {}
    rows = known.get(name, {}).get("rows", {}) | {row: record}
    known[name] = {
        "title": NETWORKS[name].title,
        "weights": NETWORKS[name].weights,
        "images": files.facts("original")["images"],
        "rows": {row: rows[row] for row in rows_of(name) if row in rows},
    }
    document = {
        "machine": create_device("local", {}).describe({}),
        "threads": THREADS,
        "papers": PAPERS,
        "networks": {name: known[name] for name in NETWORKS if name in known},
    }
    write_json(RESULTS, document)
    network: dict[str, Any] = known[name]
    return network


@dataclass(frozen=True)
class Measurements:
    """Measurements of files on this machine, with the same settings."""

    settings: dict[str, Any]

    @classmethod
    def of(cls, sittings: int) -> "Measurements":
        """Return measurements that are divided over a number of processes."""
        settings: dict[str, Any] = {"sittings": sittings, "repeats": REPEATS * sittings}
        settings |= {"warmup_seconds": 0.3, "energy_seconds": 0, "seconds": SECONDS * sittings}
        return cls(settings)

    def speedup(self, files: Files, row: str) -> float:
        """Measure how much faster a row is than the original, in float with one thread."""
        measured = self._against(files.in_float("original"), files.in_float(row), 1)
        return float(measured["faster"][0])

    def of_row(self, files: Files, row: str, title: str) -> dict[str, Any]:
        """Return how a row was built, its counts and latencies, and its time by layer."""
        record = {"title": title, **files.facts(row)}
        if "not_built" in record:
            return record
        in_float, in_int8 = files.in_float(row), files.in_int8(row)
        original, original_int8 = files.in_float("original"), files.in_int8("original")
        pairs = {"int8": (original, in_int8)}
        if row != "original":
            pairs = {"float": (original, in_float), **pairs, "int8_both": (original_int8, in_int8)}
        counts = count(in_float)
        kinds = kinds_of(in_float)
        macs: dict[str, int] = defaultdict(int)
        for layer in counts.layers:
            macs[kinds[layer.name]] += layer.macs
        macs_of_layers = {layer.name: layer.macs for layer in counts.layers}
        milliseconds = self.milliseconds_by_layer(in_float)
        return record | {
            "parameters": counts.parameters,
            "macs": counts.macs,
            "megabytes": {
                precision: round(path.stat().st_size / 1e6, 2)
                for precision, path in (("float", in_float), ("int8", in_int8))
            },
            **{
                pair: {name: self._against(*paths, threads) for name, threads in THREADS.items()}
                for pair, paths in pairs.items()
            },
            "macs_by_kind": macs,
            "ms_by_kind": by_kind(milliseconds, kinds),
            "layers": [
                {
                    "layer": layer,
                    "kind": kinds.get(layer, REST),
                    "ms": round(ms, 4),
                    "macs": macs_of_layers.get(layer, 0),
                }
                for layer, ms in milliseconds.items()
            ],
        }

    def _against(self, before: Path, after: Path, threads: int) -> dict[str, Any]:
        """Measure two files in turns: median ms of both, the ratio and its 95 % interval."""
        device = create_device("local", {"threads": threads})
        measured = device.measure(before, after, self.settings)
        return {
            "ms": [round(measured[key]["p50"], 3) for key in ("original", "compressed")],
            "faster": [round(measured[f"speedup{end}"], 3) for end in ("", "_low", "_high")],
            "warning": measured["conditions"]["warning"],
        }

    def milliseconds_by_layer(self, path: Path) -> dict[str, float]:
        """Return the milliseconds of each node with weights, and of the rest, with one thread."""
        layers = layers_of_nodes(path)
        milliseconds: dict[str, float] = defaultdict(float)
        for node, spent in create_device("local", {}).node_times(path, self.settings).items():
            milliseconds[layers.get(node, REST)] += spent.milliseconds
        return milliseconds


def kinds_of(path: Path) -> dict[str, str]:
    """Return the kind of each node with weights: `pointwise`, `convolution` or `linear`."""
    kinds = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type == "Conv":
            attributes = {entry.name: entry for entry in node.attribute}
            kernel = list(attributes["kernel_shape"].ints)
            kinds[node.name] = "pointwise" if kernel == [1, 1] else "convolution"
        elif node.op_type in ("Gemm", "MatMul"):
            kinds[node.name] = "linear"
    return kinds


def by_kind(milliseconds: dict[str, float], kinds: dict[str, str]) -> dict[str, float]:
    """Return the milliseconds of each kind of layer, and of the rest."""
    sums: dict[str, float] = dict.fromkeys(("pointwise", "convolution", "linear", REST), 0.0)
    for layer, ms in milliseconds.items():
        sums[kinds.get(layer, REST)] += ms
    return {kind: round(ms, 4) for kind, ms in sums.items()}


def summary(row: dict[str, Any]) -> str:
    """Return a line about a row."""
    if "not_built" in row:
        return f"not built: {row['not_built']}"
    speeds = [
        f"{pair} {row[pair][threads]['faster'][0]:.2f}x ({threads})"
        for pair in ("float", "int8", "int8_both")
        if pair in row
        for threads in THREADS
    ]
    return f"{row['parameters']:,} parameters, {row['macs']:,} MACs, {', '.join(speeds)}"


def draw(name: str, network: dict[str, Any]) -> None:
    """Draw the time of each layer before and after the compression of Kim et al."""
    rows = network["rows"]
    if not all("layers" in rows.get(row, {}) for row in ("original", "kim")):
        return
    PICTURES.mkdir(exist_ok=True)
    title = f"{network['title']}, {rows['kim']['title']}: time by layer, one thread"
    records = layer_records(rows["original"]["layers"], rows["kim"]["layers"])
    with_macs = [record for record in records if record["layer"] != REST]
    times_picture(PICTURES / f"papers_{name}.svg", records, with_macs, title=title)


def layer_records(
    original: list[dict[str, Any]], compressed: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a record for each layer of the original: its times and the ratio of its MACs.

    The factors of a layer have its name and a number.
    """
    records = {
        entry["layer"]: {
            "layer": entry["layer"],
            "original_ms": entry["ms"],
            "macs": entry["macs"],
            **dict.fromkeys(("compressed_ms", "pointwise_ms", "compressed_macs"), 0.0),
        }
        for entry in original
    }
    for entry in compressed:
        name = entry["layer"]
        record = records[name if name in records else name.rpartition(".")[0]]
        record["compressed_ms"] += entry["ms"]
        record["compressed_macs"] += entry["macs"]
        if entry["kind"] == "pointwise":
            record["pointwise_ms"] += entry["ms"]
    for record in records.values():
        for ratio, before, after in (
            ("speedup", "original_ms", "compressed_ms"),
            ("macs_ratio", "macs", "compressed_macs"),
        ):
            record[ratio] = record[before] / record[after] if record[after] else None
    return list(records.values())


if __name__ == "__main__":
    main()
