"""The tables of results in README.md and docs/benchmarks.md: no figure is typed by hand.

    python benchmarks/readme_table.py [--write]

Prints the Markdown of both tables, from `results/*.json`. Run it after the matrix was built. With
`--write` it puts each table between the two comments that mark its place in the page;
`tests/test_docs.py` fails where a page holds other figures.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lowrank.config.params import Params
from lowrank.config.reading import load_params
from lowrank.files import read_json, write_text
from lowrank.report.headline import at

Result = dict[str, Any]

# How networks are called in their papers.
_TITLES = {"vgg16": "VGG-16", "resnet20": "ResNet-20"}
# Beside the matrix, where its result is there.
_BESIDE_THE_MATRIX = ("accuracy_budget",)

_SHORT = (
    *("network", "variant", "top-1, %", "MACs", "ONNX file, MB", "latency, ms"),
    *("against float32", "against int8 of the original", "command"),
)
_LONG = (
    *("network", "method", "top-1, %", "MACs", "ONNX file", "latency, ms"),
    *("the same in int8", "int8 of the original", "int8 against int8"),
)


def main() -> None:
    """Print the tables, or write them into the pages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--write", action="store_true", help="put them into the pages")
    write = parser.parse_args().write
    for name, (page, lines) in tables().items():
        if write:
            write_text(Path(page), replaced(Path(page).read_text(), name, lines))
        else:
            print(f"{page}: {name}\n\n" + "\n".join(lines) + "\n")


def tables(root: Path = Path()) -> dict[str, tuple[str, list[str]]]:
    """The page and the lines of each table, by its name; `root` is the folder of the project."""
    params = load_params(root / "params.yaml")
    results = results_of(params, root)
    return {
        "int8": ("README.md", [*_table(_SHORT, short_rows(results, params)), "", caption(results)]),
        "all": ("docs/benchmarks.md", _table(_LONG, long_rows(results, params))),
    }


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """The text of a page with the lines between the two comments that name the table."""
    pattern = re.compile(rf"(<!-- results {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    found = pattern.search(text)
    if not found:
        raise SystemExit(f"no place for a table: `<!-- results {name} -->` and `<!-- end -->`")
    body = "\n".join(["", *lines, "", ""])
    return text[: found.end(1)] + body + text[found.start(2) :]


def results_of(params: Params, root: Path = Path()) -> dict[str, dict[str, Result]]:
    """The results of the matrix by network and method, and those beside it that are there."""
    found: dict[str, dict[str, Result]] = {}
    for model in params.matrix.models:
        paths = {
            method: root / f"results/{model}_{method}.json"
            for method in (*params.matrix.methods, *_BESIDE_THE_MATRIX)
        }
        found[model] = {
            method: read_json(path)
            for method, path in paths.items()
            if method in params.matrix.methods or path.exists()
        }
    return found


def short_rows(results: Mapping[str, Mapping[str, Result]], params: Params) -> list[list[str]]:
    """The original in float32 and in int8, then each method in int8; the fastest one is bold.

    What was measured of the original beside each method is brought together by its median.
    """
    device, rows = params.matrix.devices[0], []
    for model, of_methods in results.items():
        first = next(iter(of_methods.values()))

        def middle(place: str, of_methods: Mapping[str, Result] = of_methods) -> float:
            return median(at(each, place) for each in of_methods.values())

        control = f"control.int8.latency_ms.{device}"
        macs = f"{first['macs']['original'] / 1e6:.1f} M"
        float32 = [
            f"{first['accuracy']['original']:.2f}",
            macs,
            _megabytes(first["size_bytes"]["original"]),
            f"{middle(f'latency_ms.{device}.original.p50'):.2f}",
        ]
        int8 = [
            f"{at(first, 'control.int8.accuracy.exported'):.2f}",
            macs,
            _megabytes(at(first, "control.int8.size_bytes.compressed")),
            f"{middle(f'{control}.original.p50'):.2f} -> {middle(f'{control}.compressed.p50'):.2f}",
            f"{middle(f'{control}.speedup'):.2f}x",
        ]
        title = _TITLES.get(model, model)
        rows += [
            [title, "original, float32", *float32, "1.00x", "", ""],
            ["", "original, int8 (control)", *int8, "1.00x", "in every result"],
        ]
        over = {
            method: at(each, f"int8.latency_ms.{device}.speedup_over_control") or 0.0
            for method, each in of_methods.items()
        }
        best = max(over, key=over.__getitem__)
        for method, each in of_methods.items():
            row = _int8_row(each, device, command=f"`make results/{model}_{method}.json`")
            bold = method == best and over[method] > 1
            rows.append(["", f"**`{method}`, int8**" if bold else f"`{method}`, int8", *row])
    return rows


def _int8_row(result: Result, device: str, command: str) -> list[str]:
    """The figures of a method's network in int8."""
    quantized = result["int8"]
    latency = at(quantized, f"latency_ms.{device}") or {}
    medians = [at(latency, f"{which}.p50") for which in ("original", "compressed")]
    return [
        f"{quantized['accuracy']['exported']:.2f}",
        f"{result['macs']['compressed'] / 1e6:.1f} M",
        _megabytes(quantized["size_bytes"]["compressed"]),
        "" if None in medians else " -> ".join(f"{each:.2f}" for each in medians),
        *(_or_nothing(latency.get(key), "{:.2f}x") for key in ("speedup", "speedup_over_control")),
        command,
    ]


def caption(results: Mapping[str, Mapping[str, Result]]) -> str:
    """Where the figures come from: processor, runtime, threads and images."""
    found = [each for of_methods in results.values() for each in of_methods.values()]
    machines = {_machine(environment) for each in found for environment in [_main(each)]}
    images = {each["reported"]["images"] for each in found}
    return (
        f"Measured on {'; '.join(sorted(machines))}. "
        f"Top-1 is that of the ONNX file, on {' or '.join(f'{each:,}' for each in sorted(images))} "
        "test images."
    )


def _main(result: Result) -> dict[str, Any]:
    """The environment of the main device, the first one."""
    return next(iter(result["environment"].values()))


def _machine(environment: Mapping[str, Any]) -> str:
    names = {"avx512": "AVX-512", "vnni": "VNNI", "bf16": "bfloat16", "dot_product": "dot product"}
    has = [name for key, name in names.items() if environment.get(key)]
    threads = environment["threads"]
    return (
        f"{environment['cpu']} ({', '.join([environment['machine'], *has])}), ONNX Runtime "
        f"{environment['runtime_version']}, {threads} thread{'s' if threads > 1 else ''}"
    )


def long_rows(results: Mapping[str, Mapping[str, Result]], params: Params) -> list[list[str]]:
    """A row for each result of the matrix: float32, int8 and the control side by side."""
    device, rows = params.matrix.devices[0], []
    for model, of_methods in results.items():
        for number, (method, each) in enumerate(of_methods.items()):
            title = _TITLES.get(model, model) if number == 0 else ""
            rows.append([title, f"`{method}`", *cells(each, device)])
    return rows


def cells(result: Result, device: str) -> list[str]:
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
        f"{_megabytes(size['original'])} MB -> {_megabytes(size['compressed'])} MB "
        f"({size['ratio']:.1f}x)",
        times,
        in_int8(result.get("int8"), device),
        in_int8(at(result, "control.int8"), device),
        _or_nothing(over, "{:.2f}x"),
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


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    return [lines[0], "|" + "---|" * len(headings), *lines[1:]]


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f}"


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


if __name__ == "__main__":
    main()
