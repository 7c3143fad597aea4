"""The table at the top of the README, from the results of the matrix: no figure is typed by hand.

    python benchmarks/readme_table.py

Prints Markdown. Run it after the matrix was built, and put what it prints into the README.
"""

from pathlib import Path
from typing import Any

from lowrank.config.reading import load_params
from lowrank.files import read_json
from lowrank.report.headline import at

_HEADINGS = (
    *("network", "method", "top-1, %", "MACs", "ONNX file", "latency, ms"),
    *("the same in int8", "int8 of the original", "int8 against int8"),
)


def main() -> None:
    """Print the table."""
    params = load_params()
    device = params.matrix.devices[0]
    print("| " + " | ".join(_HEADINGS) + " |")
    print("|" + "---|" * len(_HEADINGS))
    for model in params.matrix.models:
        for method in params.matrix.methods:
            result = read_json(Path(f"results/{model}_{method}.json"))
            print("| " + " | ".join([model, f"`{method}`", *cells(result, device)]) + " |")


def cells(result: dict[str, Any], device: str) -> list[str]:
    """Return what a row says of one result; a cell is empty where something was not measured."""
    accuracy, macs, size = (result[key] for key in ("accuracy", "macs", "size_bytes"))
    latency = result["latency_ms"].get(device, {})
    times = ""
    if "speedup" in latency:
        medians = [f"{latency[which]['p50']:.2f}" for which in ("original", "compressed")]
        times = f"{' -> '.join(medians)} ({latency['speedup']:.2f}x)"
    over = at(result, f"int8.latency_ms.{device}.speedup_over_control")
    return [
        f"{accuracy['original']:.2f} -> {accuracy['exported']:.2f}",
        f"{macs['original'] / 1e6:.1f} M -> {macs['compressed'] / 1e6:.1f} M "
        f"({macs['ratio']:.2f}x)",
        f"{size['original'] / 1e6:.2f} MB -> {size['compressed'] / 1e6:.2f} MB "
        f"({size['ratio']:.1f}x)",
        times,
        in_int8(result.get("int8"), device),
        in_int8(at(result, "control.int8"), device),
        "" if over is None else f"{over:.2f}x faster",
    ]


def in_int8(document: dict[str, Any] | None, device: str) -> str:
    """Return what a row says of a network in int8."""
    if not document:
        return ""
    found = (
        f"{document['accuracy']['exported']:.2f} %, {document['size_bytes']['ratio']:.1f}x smaller"
    )
    speedup = at(document, f"latency_ms.{device}.speedup")
    return found if speedup is None else f"{found}, {speedup:.2f}x faster"


if __name__ == "__main__":
    main()
