"""Measure the time and memory for choosing ranks from a target: the moments and the choice.

    python benchmarks/budget_cost.py [--networks vgg16 vgg16_imagenet]

`vgg16`           The shipped network with `macs_budget` on two threads. Limit: 2 minutes in total.
`vgg16_imagenet`  The network for ImageNet, at a quarter of its multiply-accumulates. Its trained
                  weights are not available, so weights are random and images are noise. Only a few
                  images are used, because more need time but no memory. Limit: 4 GiB.

Each step runs in a separate process, whose peak memory is measured. The exit status is 1 if a limit
is exceeded. Needs the data: `snakemake data/datasets/cifar10`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.config.network_source import NetworkSource
from lowrank.config.reading import load_params
from lowrank.core.rounds import assign_factorizations
from lowrank.data.sources import store_dataset
from lowrank.files import read_json, write_json
from lowrank.surgery.finding import find_layers
from lowrank.surgery.states import State, write_state
from lowrank.zoo import create_network, network_spec
from lowrank.zoo.weight_files import load_weights, read_weights

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "budget_cost.json"
NOISE = {"train": 60, "test": 2}
IMAGES = {"vgg16": 1000, "vgg16_imagenet": 40}
MOST_SECONDS = {"vgg16": 120.0}
MOST_GIB = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(IMAGES))
    options = parser.parse_args()
    rows, missed = [], False
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(name, Path(folder))
        print(row, flush=True)
        rows.append(row)
        seconds = row["calibrate"]["seconds"] + row["select_ranks"]["seconds"]
        missed |= seconds > MOST_SECONDS.get(name, float("inf"))
        missed |= max(row[step]["gib"] for step in ("calibrate", "select_ranks")) > MOST_GIB
    known = read_json(RESULTS)["rows"] if RESULTS.exists() else []
    others = [row for row in known if row["network"] not in options.networks]
    write_json(RESULTS, {"rows": others + rows})
    sys.exit(missed)


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Run both steps for one network and return their costs."""
    network, spec = create_network(name), network_spec(name)
    dataset = ROOT / "data/datasets/cifar10"
    if name == "vgg16":
        weights = ROOT / "data/checkpoints/vgg16.safetensors"
        load_weights(network, read_weights(weights), source=str(weights))
    else:
        dataset = folder / "noise"
        store_noise(dataset, spec.input_shape, spec.num_classes)
    state, table = folder / "model.safetensors", folder / "table.json"
    write_state(state, State(spec, network, {}, NetworkSource(network=name)))
    layers = find_layers(network, spec.input_shape, name)
    write_json(table, layers.to_json())
    method = load_params(ROOT / "params.yaml").methods["macs_budget"]
    assigned = json.dumps(assign_factorizations(layers, method.factorize.by_kind()))
    target = {"macs": 0.1} if name == "vgg16" else {"macs": 0.25}
    ranks: dict[str, Any] = {"select": "budget", "target": target}
    ranks |= {"images": 10} if name != "vgg16" else {}
    common = [
        "--network",
        name,
        "--state",
        state,
        "--table",
        table,
        "--layers",
        assigned,
        "--dataset",
        dataset,
    ]
    moments = folder / "moments.safetensors"
    return {
        "network": name,
        "calibrate": step(
            *("calibrate", *common, "--images", IMAGES[name], "--threads", 2),
            *("--moments", moments),
        ),
        "select_ranks": step(
            *("select_ranks", *common, "--all-layers", assigned, "--moments", moments),
            *("--settings", json.dumps(ranks), "--threads", 2, "--plan", folder / "ranks.json"),
        ),
    }


def store_noise(folder: Path, shape: tuple[int, ...], classes: int) -> None:
    generator = np.random.default_rng(0)
    channels, height, width = shape
    arrays = {}
    for split, count in NOISE.items():
        size = (count, height, width, channels)
        arrays[f"{split}_images"] = generator.integers(0, 256, size, dtype=np.uint8)
        arrays[f"{split}_labels"] = np.zeros(count, np.uint8)
    store_dataset(folder, "noise", [f"class {number}" for number in range(classes)], arrays)


def step(*arguments: Any) -> dict[str, float]:
    """Run one step in a separate process and return its time and peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lowrank.cli", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"lowrank {arguments[0]} failed")
    # `ru_maxrss` is in KiB on Linux.
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "gib": round(usage.ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    main()
