"""Decompose all classifiers of torchvision at half ranks, export them and compare the outputs.

    python benchmarks/all_classifiers.py [--again] [architecture ...]

Each architecture runs `classifiers.cover` with random weights in a separate process, because of
its memory. An interrupted run can be continued: architectures that have passed are not repeated
unless --again is given. The exit status is 1 if any architecture fails.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lowrank.files import read_json, write_json, written_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "coverage.json"
TABLE = HERE.parent / "docs" / "coverage.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", help="default: all")
    parser.add_argument("--again", action="store_true", help="also those that passed")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        write_json(options.one, record_of(*options.architectures))
        return
    names = options.architectures or architectures()
    records = read_json(RESULTS)["architectures"] if RESULTS.exists() else {}
    for number, name in enumerate(names, start=1):
        if options.again or records.get(name, {}).get("failure", "not tried"):
            records[name] = outcome_of(name)
        said = records[name]["failure"] or f"error {records[name]['relative_error']:.1e}"
        print(f"{number}/{len(names)} {name}: {said}", flush=True)
        write_json(
            RESULTS, {"versions": versions(), "architectures": dict(sorted(records.items()))}
        )
        write_table(records)
    sys.exit(any(records[name]["failure"] for name in names))


def record_of(name: str) -> dict[str, Any]:
    from classifiers import cover

    from lowrank.config.network_source import NetworkSource
    from lowrank.errors import UserError

    try:
        coverage = cover(NetworkSource(network=f"torchvision/{name}"))
    except UserError as error:
        return {"failure": str(error)}
    return {"failure": coverage.failure, **coverage.to_json()}


def outcome_of(name: str) -> dict[str, Any]:
    """Run an architecture in another process and return its record, even if the process dies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, __file__, name, "--one", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [""]
            return {"failure": f"ended with status {done.returncode}: {lines[-1]}"}
        return read_json(path)


def architectures() -> list[str]:
    from lowrank.zoo.torchvision_models import torchvision_names

    return torchvision_names()


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "torchvision", "onnx", "onnxruntime")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def write_table(records: dict[str, dict[str, Any]]) -> None:
    passed = sum(record["failure"] is None for record in records.values())
    lines = [
        "# torchvision's classifiers",
        "",
        "Written by `python benchmarks/all_classifiers.py`. Weights are random; every layer that",
        "can gain is decomposed at half of its full ranks (Tucker-2, Tucker-1 for the first",
        "convolution, a truncated SVD for 1 x 1 convolutions and linear layers). A square linear",
        "layer on tokens gets a third, since half would save nothing. The network is exported to",
        "ONNX. The error is the largest difference between the logits of ONNX Runtime and of",
        "PyTorch, as a share of their range; at most 1e-3 passes. Layers and their MACs include",
        "the query, key, value and output projections of attention.",
        "",
        f"{passed} of {len(records)} pass, with "
        + ", ".join(f"{name} {number}" for name, number in versions().items())
        + ".",
        "",
        "| architecture | input | layers | factored | left dense | MACs | error | seconds |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, record) for name, record in records.items()),
        "",
    ]
    with written_whole(TABLE) as partial:
        partial.write_text("\n".join(lines))


def row(name: str, record: dict[str, Any]) -> str:
    if "layers" not in record:
        return f"| {name} | | | | | | **{record['failure']}** | |"
    before, after = record["macs"]
    dense = "; ".join(f"{count} {why.partition(':')[0]}" for why, count in record["dense"].items())
    error = f"{record['relative_error']:.1e}"
    if record["failure"]:
        error = f"**{record['failure']}**"
    size = " x ".join(map(str, record["input_shape"][1:]))
    return (
        f"| {name} | {size} | {record['layers']} | {record['factored']} | {dense} | "
        f"{before / 1e6:,.0f} M -> {after / 1e6:,.0f} M ({before / after:.2f}x) | {error} | "
        f"{record['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
