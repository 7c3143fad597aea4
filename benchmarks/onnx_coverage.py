"""Compress the networks of torchvision in both forms, as PyTorch modules and as ONNX files.

    python benchmarks/onnx_coverage.py [--again] [name ...]

Covers classifiers, detection, segmentation and video, with random weights, if PyTorch can export
them to ONNX. For each network, this checks that

- factors that lose nothing, in place of all layers, do not change the outputs of the ONNX file,
- the file is the same network in PyTorch (`GraphModule`), or names the operators that are missing,
- at half of the MACs, the file and the module give the same outputs (for small networks).

Each network runs in a process of its own. The results are in benchmarks/results/onnx_coverage.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from lowrank.files import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "onnx_coverage.json"
# Largest number of parameters for the comparison at half of the MACs, and the time for a network.
SMALL = 12_000_000
LIMIT_SECONDS = 600
LARGEST_ERROR = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one:
        write_json(options.one, record_of(*options.names))
        return
    records = read_json(options.output) if options.output.exists() else {}
    for name in options.names or networks():
        if name not in records or options.again:
            records[name] = outcome_of(name)
            write_json(options.output, dict(sorted(records.items())))
        print(f"{name}: {records[name]}", flush=True)
    print("\n".join(table(records)))


def networks() -> list[str]:
    import torchvision

    names = torchvision.models.list_models()
    return [name for name in names if not name.startswith(("quantized_", "raft"))]


def outcome_of(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, __file__, name, "--one", str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"failure": f"not finished in {LIMIT_SECONDS} s"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [""]
            return {"failure": f"status {done.returncode}: {lines[-1][:200]}"}
        return read_json(path)


def record_of(name: str) -> dict[str, Any]:
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.set_num_threads(1)
    arguments: dict[str, Any] = {"weights": None}
    if any(
        word in name for word in ("rcnn", "retinanet", "ssd", "fcos", "fcn", "lraspp", "deeplab")
    ):
        arguments["weights_backbone"] = None
    network = torchvision.models.get_model(name, **arguments).eval()
    images = torch.randn(2, *shape_of(name), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        try:
            export(network, images, path)
        except Exception as error:  # The exporter raises nearly any type.
            return {
                "exported": False,
                "reason": f"{type(error).__name__}: {error}".split("\n")[0][:160],
            }
        return {"exported": True} | checks(network, images, path)


def shape_of(name: str) -> tuple[int, ...]:
    """Return the shape of one input: small, if the architecture takes any size."""
    if name.startswith(("mvit", "swin3d", "s3d")):
        return (3, 16, 224, 224) if name != "s3d" else (3, 16, 112, 112)
    if name.startswith(("mc3", "r3d", "r2plus1d")):
        return (3, 8, 64, 64)
    if name.startswith("vit_h"):
        return (3, 224, 224)
    if name.startswith(("vit_", "maxvit", "swin")):
        return (3, 224, 224)
    if name.startswith("inception"):
        return (3, 160, 160)
    return (3, 128, 128)


def export(network: Any, images: Any, path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (images,), dynamo=True, verbose=False)
    if program is None:
        raise TypeError("the exporter returned no program")
    program.save(path)


def checks(network: Any, images: Any, path: Path) -> dict[str, Any]:
    from lowrank.compression.graph_network import GraphNetwork
    from lowrank.onnx_networks.graph_module import GraphModule

    start = time.perf_counter()
    original = GraphNetwork.read(path, None, [images.numpy()])
    layers = original.table.layers
    record: dict[str, Any] = {
        "layers": len(layers),
        "replaceable": sum(not layer.not_factored for layer in layers),
        "full_rank_error": error_at_full_rank(original, images.numpy()),
    }
    shapes = {name: tuple(images.shape) for name in original.shapes}
    module = GraphModule(original.model, original.sites, shapes, "nchw", str(path))
    record["not_trainable"] = module.obstacle
    size = sum(parameter.numel() for parameter in network.parameters())
    if size <= SMALL and images.ndim == 4:
        record["difference_at_half"] = difference_at_half(network, images, path)
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def error_at_full_rank(original: Any, images: Any) -> float:
    """Return the change of the outputs of the file by factors that lose nothing."""
    from lowrank.factorize import Decomposition
    from lowrank.surgery.equality import lossless_factors

    full = original.copy()
    for layer in original.table.layers:
        if not layer.not_factored:
            weight, bias = original.weight_and_bias(layer.name)
            sequence, kernels = lossless_factors(layer, weight, has_bias=bias is not None)
            full.replace(layer.name, Decomposition(tuple(sequence), tuple(kernels), bias, 0.0))
    return relative(outputs_of(full, images), outputs_of(original, images))


def difference_at_half(network: Any, images: Any, path: Path) -> float | str:
    """Return the difference of the outputs of both forms, each compressed to half of the MACs."""
    import lowrank
    from lowrank.compression.graph_network import GraphNetwork
    from lowrank.errors import UserError
    from lowrank.onnx_networks.model_run import ModelRun
    from lowrank.tasks.outputs import by_name, outputs_from

    settings: dict[str, Any] = {"ranks": {"select": "ratio", "ratio": 2, "negligible": 0}}
    try:
        of_file = lowrank.compress(path, **settings).network
        of_module = lowrank.compress(network, tuple(images.shape[1:]), **settings).network
        feed = {name: images.numpy() for name in GraphNetwork.read(path, None, []).shapes}
        first = list(ModelRun(of_file, str(path))(feed).values())
        second = [v.detach().numpy() for v in by_name(outputs_from(of_module(images))).values()]
    except UserError as error:
        return str(error)[:200]
    return relative(first, second)


def outputs_of(network: Any, images: Any) -> list[Any]:
    from lowrank.onnx_networks.model_run import ModelRun

    return list(ModelRun(network.model, "network")(dict.fromkeys(network.shapes, images)).values())


def relative(outputs: list[Any], expected: list[Any]) -> float:
    """Return the largest relative error of the floating-point outputs."""
    import numpy as np

    errors = [
        float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))
        for a, b in zip(outputs, expected, strict=True)
        if b.dtype.kind == "f" and b.size and a.shape == b.shape
    ]
    return max(errors, default=float("inf"))


def table(records: dict[str, Any]) -> list[str]:
    lines = [
        "| network | layers | replaceable | full-rank error | both forms at half | not trainable |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        if not record.get("exported"):
            reason = record.get("reason") or record.get("failure")
            lines.append(f"| {name} | not exported: {reason} | | | | |")
            continue
        half = record.get("difference_at_half", "")
        half = f"{half:.1e}" if isinstance(half, float) else half
        lines.append(
            f"| {name} | {record['layers']} | {record['replaceable']} | "
            f"{record['full_rank_error']:.1e} | {half} | {record['not_trainable']} |"
        )
    return lines


if __name__ == "__main__":
    main()
