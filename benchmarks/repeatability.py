"""Measure how much five consecutive measurements differ, and whether their intervals cover it.

    python benchmarks/repeatability.py [--models ORIGINAL COMPRESSED] [--runs 5]

Uses the settings of `benchmark.local` in params.yaml. The exit status is 1 if the largest speedup
is more than 1.10 times the smallest, or if an interval does not contain the median of all. The
default models are the shipped VGG-16 and its `tucker`, from `snakemake
build/vgg16/tucker/model.onnx`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from lowrank.config.device_kinds import create_device
from lowrank.config.reading import load_params
from lowrank.devices import main_settings
from lowrank.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "repeatability.json"
MODELS = ["build/vgg16/original/model.onnx", "build/vgg16/tucker/model.onnx"]
MAX_SPREAD = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs=2, type=Path, default=[ROOT / path for path in MODELS])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    original, compressed = options.models
    device = load_params(ROOT / "params.yaml").benchmark["local"]
    settings = main_settings(device.model_dump()) | {"energy_seconds": 0}
    rows = []
    for _ in range(options.runs):
        measurement = create_device("local", settings).measure(original, compressed, settings)
        row = {
            name: round(measurement[name], 3) for name in ("speedup", "speedup_low", "speedup_high")
        }
        row["warning"] = measurement["conditions"]["warning"]
        print(row, flush=True)
        rows.append(row)
    speedups = [row["speedup"] for row in rows]
    median, spread = float(np.median(speedups)), max(speedups) / min(speedups)
    covered = all(row["speedup_low"] <= median <= row["speedup_high"] for row in rows)
    print(f"{max(speedups)} / {min(speedups)} = {spread:.3f}; intervals cover {median}: {covered}")
    write_json(RESULTS, {"spread": round(spread, 4), "rows": rows})
    sys.exit(not (spread <= MAX_SPREAD and covered))


if __name__ == "__main__":
    main()
