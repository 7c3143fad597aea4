r"""Measure int8 alone for the uncompressed networks, by the types of activations and weights.

    python benchmarks/int8.py [--models vgg16 resnet20] [--images N] [--seconds S]

`--models` names networks of params.yaml. To measure a network with your own weights, add an entry
to `checkpoint`. For each network, this measures the accuracy on the test split (on all images, or
on the first N), the latency against float with its 95 % interval, and the share of the MACs in
integer kernels, for

- the network in float,
- int8 with `quantize.activations: auto` and `quantize.reduce_range: auto` for this processor,
- int8 activations with full range, the defaults of earlier versions,
- uint8 activations with full range and with reduced range.

Make the original networks with `snakemake build/vgg16/original/model.onnx` and so on. The results,
in benchmarks/results/int8.json, name the processor. Latencies are only meaningful on a quiet
machine.

On a processor with VNNI, this measures the behaviour without VNNI:

    python benchmarks/older_cpu.py python benchmarks/int8.py \
        --output benchmarks/results/int8_older_cpu.json
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from lowrank.config.device_kinds import create_device
from lowrank.config.params import Params
from lowrank.config.reading import load_params
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import open_dataset
from lowrank.devices import main_settings
from lowrank.devices.processor import IntegerTypes, Processor
from lowrank.evaluation.exported import ExportedNetworks
from lowrank.files import write_json
from lowrank.onnx_files.int8 import Quantizer, types_for
from lowrank.onnx_files.kernels import integer_kernels, macs_of_nodes
from lowrank.surgery.states import read_spec
from lowrank.tasks import get_task

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "int8.json"
TYPES = {
    "int8, full range (old default)": IntegerTypes("int8", reduce_range=False),
    "uint8, full range": IntegerTypes("uint8", reduce_range=False),
    "uint8, reduced range": IntegerTypes("uint8", reduce_range=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet20"])
    parser.add_argument("--images", type=int, help="of the test split; all by default")
    parser.add_argument("--seconds", type=float, help="of each comparison; default: params.yaml")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    settings = main_settings(params.benchmark["local"].model_dump())
    settings |= {"energy_seconds": 0} | ({"seconds": options.seconds} if options.seconds else {})
    device = create_device("local", settings)
    rows = []
    for model in options.models:
        rows += rows_of(model, params, device, settings, options.images)
    environment = device.environment(settings)
    print(f"\n{environment['cpu']}: " + ", ".join(
        f"{name} {'yes' if has else 'no'}" for name, has in Processor.here().features.items()
    ))  # fmt: skip
    write_json(options.output, {"environment": environment, "rows": rows})


def rows_of(
    model: str, params: Params, device: Any, settings: dict[str, Any], images: int | None
) -> list[dict[str, Any]]:
    """Return rows for the network in float and for each choice of types."""
    folder = ROOT / "build" / model / "original"
    network, spec = folder / "model.onnx", read_spec(folder / "model.safetensors")
    data = open_dataset(ROOT / "data/datasets" / params.checkpoint[model].dataset)
    test = data.test if images is None else data.test.sample(images)
    in_runtime = ExportedNetworks(get_task("classification"), spec, params.quantize.threads)
    rows = [
        {
            "model": model,
            "types": "float",
            "images": len(test),
            "top1": in_runtime.values(network, test)["top1"],
            "size_bytes": network.stat().st_size,
        }
    ]
    print(rows[0], flush=True)
    batches = EvaluationBatches(data.train.sample(params.quantize.images), spec)
    calibration = [{"images": batches[number][0].numpy()} for number in range(len(batches))]
    auto = types_for(Processor.here(), params.quantize)
    macs = macs_of_nodes(network)
    once = settings | {"warmup_seconds": 0, "repeats": 1, "seconds": 0}
    with tempfile.TemporaryDirectory() as work:
        quantizer = Quantizer(network, calibration, params.quantize, Path(work))
        for name, types in {"auto": auto, **TYPES}.items():
            path = Path(work) / types.file
            quantizer.write(path, types)
            measured = device.measure(network, path, settings)
            kernels = integer_kernels(device.node_times(path, once), macs)
            row = {
                "model": model,
                "types": name,
                "file": types.file,
                "images": len(test),
                "top1": in_runtime.values(path, test)["top1"],
                "size_bytes": path.stat().st_size,
                "float_ms": measured["original"]["p50"],
                "ms": measured["compressed"]["p50"],
                **{key: measured[key] for key in ("speedup", "speedup_low", "speedup_high")},
                "integer_nodes": kernels["nodes"],
                "nodes": kernels["total"],
                "macs_share": kernels["macs_share"],
                "disturbed": measured["conditions"]["warning"],
            }
            rows.append(row)
            print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
