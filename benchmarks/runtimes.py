"""Compare the latency of ONNX files in ONNX Runtime and in OpenVINO.

    python benchmarks/runtimes.py "ResNet-50=build/imagenet/resnet50/original.onnx" ...

An argument is a label and a file whose sizes are fixed, except for the batch. Each file is measured
with one thread and one sample, in both runtimes in turns. Latencies are medians in ms. Measurements
of other labels stay in the results. Needs the extra `openvino`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lowrank.config.device_kinds import create_device
from lowrank.files import read_json, write_json
from lowrank.onnx_networks.fixed_sizes import write_fixed
from lowrank.onnx_networks.model_file import inputs_of

RESULTS = Path(__file__).parent / "results" / "runtimes.json"
RUNTIMES = ("onnxruntime", "openvino")
TURNS = 3
SETTINGS: dict[str, Any] = {"threads": 1, "sittings": 1, "energy_seconds": 0}
SETTINGS |= {"warmup_seconds": 0.5, "seconds": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="LABEL=FILE")
    options = parser.parse_args()
    document = read_json(RESULTS) if RESULTS.exists() else {"files": {}}
    device = create_device("local", {})
    document["environment"] = device.environment({})
    for entry in options.files:
        label, _, path = entry.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "fixed.onnx"
            entries = inputs_of(onnx.load(path, load_external_data=False))
            sizes = {
                entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim][1:]
                for entry in entries
            }
            file = write_fixed(Path(path), file, sizes)
            document["files"][label] = milliseconds(device, file)
        print(label, document["files"][label], flush=True)
        write_json(RESULTS, document)


def milliseconds(device: Any, file: Path) -> dict[str, float]:
    """Return the median latency of a file by runtime, in ms."""
    latencies: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(TURNS):
        for runtime, values in latencies.items():
            settings = SETTINGS | {"runtime": runtime}
            measured = device.measure(file, file, settings)
            values += [measured[name]["p50"] for name in ("original", "compressed")]
    return {runtime: round(float(np.median(values)), 3) for runtime, values in latencies.items()}


if __name__ == "__main__":
    main()
