"""Compress the networks of torchvision and timm in both forms: PyTorch modules and ONNX files.

    python benchmarks/onnx_coverage.py [--again] [--timm] [--jobs 2] [name ...]

Covers torchvision's networks for classification, detection, segmentation and video, and with
`--timm` a hundred architectures of timm (timm_names.txt), with random weights, if PyTorch can
export them to ONNX. For each network, this checks that

- factors that lose nothing, in place of all layers, do not change the outputs of the ONNX file,
- the file is the same network in PyTorch (`GraphModule`), or names the operators that are missing,
- at half of the MACs, the file and the module give the same outputs (for small networks).

Each network runs in a process of its own. The results are in benchmarks/results/onnx_coverage.json,
and as a table in docs/onnx-coverage.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lowrank.files import read_json, write_json, written_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "onnx_coverage.json"
TABLE = HERE.parent / "docs" / "onnx-coverage.md"
TIMM_NAMES = HERE / "timm_names.txt"
TIMM = "timm/"
# Largest number of parameters for the comparison at half of the MACs, and the time for a network.
SMALL = 12_000_000
LIMIT_SECONDS = 600
LARGEST_ERROR = 1e-3
# Relative change of the inputs, about that of rounding to float32 in a few layers. An error below
# the change of the outputs that it causes is no failure.
INPUT_ERROR = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all of torchvision")
    parser.add_argument("--timm", action="store_true", help="the names in timm_names.txt")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, a thread each")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one:
        write_json(options.one, record_of(*options.names))
        return
    records = read_json(options.output) if options.output.exists() else {}
    names = options.names or networks(timm=options.timm)
    known = {} if options.again else dict(records)

    def outcome(name: str) -> dict[str, Any]:
        record = known.get(name, {"failure": "not tried"})
        return outcome_of(name) if failure_of(record) else record

    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = zip(names, pool.map(outcome, names), strict=True)
        for number, (name, record) in enumerate(outcomes, start=1):
            records[name] = record
            write_json(options.output, dict(sorted(records.items())))
            print(f"{number}/{len(names)} {name}: {record}", flush=True)
    write_table(dict(sorted(records.items())))
    sys.exit(any(failure_of(records[name]) for name in names))


def networks(*, timm: bool) -> list[str]:
    import torchvision

    if timm:
        return [TIMM + name for name in TIMM_NAMES.read_text().split()]
    names = torchvision.models.list_models()
    return [name for name in names if not name.startswith(("quantized_", "raft"))]


def failure_of(record: dict[str, Any]) -> str | None:
    """Return why a network fails. One that PyTorch cannot export, or above 2 GiB, does not."""
    if record.get("failure"):
        return str(record["failure"])
    half = record.get("difference_at_half", 0.0)
    if isinstance(half, str):
        return half
    error = max(record.get("full_rank_error", 0.0), half)
    limit = max(LARGEST_ERROR, record.get("error_by_rounding", 0.0))
    return f"error {error:.1e}" if error > limit else None


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

    from lowrank.errors import UserError

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, shape = network_of(name)
    detects = name in detectors()
    images = torch.randn(1 if detects else 2, *shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        try:
            export(network, images, path, older=detects)
        except Exception as error:  # The exporter raises nearly any type.
            # The exporter's own message is general, in several colors.
            cause = error.__cause__ or error
            return {
                "exported": False,
                "reason": f"{type(cause).__name__}: {cause}".split("\n")[0][:160],
            }
        try:
            # Detectors sort equal scores by chance, so their outputs cannot be compared at half.
            return {"exported": True} | checks(network, images, path, at_half=not detects)
        except UserError as error:
            if "up to 2 GiB" not in str(error):
                raise
            return {"exported": False, "reason": "the file is larger than 2 GiB, which is refused"}


def network_of(name: str) -> tuple[Any, tuple[int, ...]]:
    """Return a network with random weights, and the shape of one input."""
    import torchvision

    if name.startswith(TIMM):
        import timm

        network = timm.create_model(name.removeprefix(TIMM), pretrained=False).eval()
        return network, tuple(timm.data.resolve_model_data_config(network)["input_size"])
    arguments: dict[str, Any] = {"weights": None}
    if any(
        word in name for word in ("rcnn", "retinanet", "ssd", "fcos", "fcn", "lraspp", "deeplab")
    ):
        arguments["weights_backbone"] = None
    if name in detectors():
        # Random weights give no high scores.
        arguments["box_score_thresh" if "rcnn" in name else "score_thresh"] = 0.0
        return one_image(torchvision.models.get_model(name, **arguments)).eval(), shape_of(name)
    return torchvision.models.get_model(name, **arguments).eval(), shape_of(name)


def detectors() -> list[str]:
    """Return the names of torchvision's networks that find objects."""
    import torchvision

    return list(torchvision.models.list_models(torchvision.models.detection))


def one_image(detector: Any) -> Any:
    """Return a network that takes a batch of one image, and returns the tensors of its objects."""
    import torch

    class OneImage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, images: Any) -> Any:
            return tuple(self.detector([images[0]])[0].values())

    return OneImage()


def shape_of(name: str) -> tuple[int, ...]:
    """Return the shape of one input: small, if the architecture takes any size."""
    if name.startswith(("mvit", "swin3d", "s3d")):
        return (3, 16, 224, 224)
    if name.startswith(("mc3", "r3d", "r2plus1d")):
        return (3, 8, 64, 64)
    if name.startswith("vit_h"):
        return (3, 224, 224)
    if name.startswith(("vit_", "maxvit", "swin")):
        return (3, 224, 224)
    if name.startswith("inception"):
        return (3, 160, 160)
    return (3, 128, 128)


def export(network: Any, images: Any, path: Path, *, older: bool = False) -> None:
    """Write a network as ONNX by PyTorch's exporter, or by the older one, which takes detectors."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if older:
            torch.onnx.export(network, (images,), path, dynamo=False, verbose=False)
            return
        program = torch.onnx.export(network, (images,), dynamo=True, verbose=False)
    if program is None:
        raise TypeError("the exporter returned no program")
    program.save(path)


def checks(network: Any, images: Any, path: Path, *, at_half: bool = True) -> dict[str, Any]:
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
    if record["full_rank_error"] > LARGEST_ERROR:
        # Some networks with random weights amplify any difference.
        changed = (images * (1 + INPUT_ERROR)).numpy()
        before = outputs_of(original, images.numpy())
        record["error_by_rounding"] = relative(outputs_of(original, changed), before)
    shapes = {name: tuple(images.shape) for name in original.shapes}
    module = GraphModule(original.model, original.sites, shapes, "nchw", str(path))
    record["not_trainable"] = module.obstacle
    size = sum(parameter.numel() for parameter in network.parameters())
    if at_half and size <= SMALL and images.ndim == 4:
        if kept := classes_kept(network, images):
            record["classes_kept"] = kept
        else:
            record["difference_at_half"] = difference_at_half(network, images, path)
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def classes_kept(network: Any, images: Any) -> list[str]:
    """Return the classes of layers that stay dense in PyTorch, because they replace `forward`."""
    from lowrank.surgery.finding import find_layers

    modules = dict(network.named_modules())
    layers = find_layers(network, tuple(images.shape[1:]), "network").layers
    kept = (layer.name for layer in layers if "its class" in (layer.not_factored or ""))
    return sorted({type(modules[name]).__name__ for name in kept})


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
        float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-12)
        for a, b in zip(outputs, expected, strict=True)
        if b.dtype.kind == "f" and b.size and a.shape == b.shape
    ]
    return max(errors, default=float("inf"))


def write_table(records: dict[str, Any]) -> None:
    from importlib.metadata import version

    exported = [record for record in records.values() if record.get("exported")]
    passed = sum(failure_of(record) is None for record in exported)
    trained = sum(not record["not_trainable"] for record in exported)
    packages = ("torch", "torchvision", "onnx", "onnxruntime", "onnx2torch")
    lines = [
        "# ONNX files of torchvision and timm",
        "",
        "Written by `python benchmarks/onnx_coverage.py`, with `--timm` for timm. Weights are",
        "random. Each network is exported by PyTorch and read from the ONNX file.",
        "",
        "- Full-rank error: change of the outputs in ONNX Runtime when factors that lose nothing",
        "  replace all layers.",
        "- Both forms at half: difference between the outputs of the file and of the PyTorch",
        "  network, both compressed to half of the MACs of each layer. Up to 12 million",
        "  parameters, and not for detectors, which sort equal scores by chance. A name is a class",
        "  of layers with a `forward` of its own, which stays dense in PyTorch: such networks are",
        "  not compared.",
        "- Trainable: whether PyTorch computes the same as the file; else the missing operators.",
        "",
        f"Tried: {tried(records, timm=False)} of torchvision, {tried(records, timm=True)} of timm.",
        f"Of {len(records)} networks, {len(exported)} could be compared. {passed} of these pass:",
        f"no error is above {LARGEST_ERROR:.0e}, or above the error of inputs changed by",
        f"{INPUT_ERROR:.0e}. {trained} can be trained. With "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + ".",
        "",
        "| network | layers | replaceable | full-rank error | both forms at half | trainable |",
        "|---|---|---|---|---|---|",
        *(row(name, record) for name, record in records.items()),
        "",
    ]
    with written_whole(TABLE) as partial:
        partial.write_text("\n".join(lines))


def tried(records: dict[str, Any], *, timm: bool) -> str:
    """Return how many networks of a list have a record, and of how many."""
    names = networks(timm=timm)
    return f"{sum(name in records for name in names)} of {len(names)}"


def row(name: str, record: dict[str, Any]) -> str:
    if failure := failure_of(record):
        return f"| {name} | | | **{failure}** | | |"
    if not record["exported"]:
        return f"| {name} | not compared: {record['reason']} | | | | |"
    half = ", ".join(record.get("classes_kept", []))
    if "difference_at_half" in record:
        half = f"{record['difference_at_half']:.1e}"
    return (
        f"| {name} | {record['layers']} | {record['replaceable']} | "
        f"{record['full_rank_error']:.1e} | {half} | "
        f"{record['not_trainable'] or 'yes'} |"
    )


if __name__ == "__main__":
    main()
