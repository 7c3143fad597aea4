"""Generate the tables of results in README.md, docs/benchmarks.md and docs/papers-tables.md.

    python benchmarks/readme_table.py [--write]

Prints the Markdown of the tables, from `results/*.json` and from the results of
`papers_tables.py`. Run it after building the matrix, or after that benchmark. With `--write`, each
table is written between the two comments that mark its place in the page.
`tests/test_docs.py` fails if a page contains other figures.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import papers_page

from lowrank.config.params import Params
from lowrank.config.reading import load_params
from lowrank.files import read_json, write_text
from lowrank.report.headline import at

Result = dict[str, Any]

# Names of networks in their papers.
_TITLES = {"vgg16": "VGG-16", "resnet20": "ResNet-20"}
# Methods outside the matrix that are included if their results exist.
_BESIDE_THE_MATRIX = ("lowrank",)

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
    parser.add_argument("--write", action="store_true", help="write them into the pages")
    write = parser.parse_args().write
    for name, (page, lines) in tables().items():
        if write:
            write_text(Path(page), replaced(Path(page).read_text(), name, lines))
        else:
            print(f"{page}: {name}\n\n" + "\n".join(lines) + "\n")


def tables(root: Path = Path()) -> dict[str, tuple[str, list[str]]]:
    """Return the page and the lines of each table by its name.

    `root` is the folder of the project.
    """
    params = load_params(root / "params.yaml")
    results = results_of(params, root)
    return {
        "int8": ("README.md", [*_table(_SHORT, short_rows(results, params)), "", caption(results)]),
        "all": ("docs/benchmarks.md", _table(_LONG, long_rows(results, params))),
        **{
            name: (papers_page.PAGE, _table(list(rows[0]), [list(row.values()) for row in rows]))
            for name, rows in papers_page.tables(root).items()
        },
    }


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """Return the text of a page with the lines between the two comments that name the table."""
    pattern = re.compile(rf"(<!-- results {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    match = pattern.search(text)
    if not match:
        raise SystemExit(
            f"the comments `<!-- results {name} -->` and `<!-- end -->` are missing in the page"
        )
    body = "\n".join(["", *lines, "", ""])
    return text[: match.end(1)] + body + text[match.start(2) :]


def results_of(params: Params, root: Path = Path()) -> dict[str, dict[str, Result]]:
    """Return the results of the matrix, and existing ones outside it, by network and method."""
    results: dict[str, dict[str, Result]] = {}
    for model in params.matrix.models:
        paths = {
            method: root / f"results/{model}_{method}.json"
            for method in (*params.matrix.methods, *_BESIDE_THE_MATRIX)
        }
        results[model] = {
            method: read_json(path)
            for method, path in paths.items()
            if method in params.matrix.methods or path.exists()
        }
    return results


def short_rows(results: Mapping[str, Mapping[str, Result]], params: Params) -> list[list[str]]:
    """Return rows for the original in float32 and int8, and for each method in int8.

    The fastest method is bold. The original is measured with each method, and its row has the
    medians of these measurements.
    """
    device, rows = params.matrix.devices[0], []
    for model, by_method in results.items():
        first = next(iter(by_method.values()))

        def median_of(place: str, by_method: Mapping[str, Result] = by_method) -> float:
            return median(at(result, place) for result in by_method.values())

        control = f"control.int8.latency_ms.{device}"
        macs = f"{first['macs']['original'] / 1e6:.1f} M"
        float32 = [
            f"{first['accuracy']['original']:.2f}",
            macs,
            _megabytes(first["size_bytes"]["original"]),
            f"{median_of(f'latency_ms.{device}.original.p50'):.2f}",
        ]
        int8 = [
            f"{at(first, 'control.int8.accuracy.exported'):.2f}",
            macs,
            _megabytes(at(first, "control.int8.size_bytes.compressed")),
            f"{median_of(f'{control}.original.p50'):.2f} -> "
            f"{median_of(f'{control}.compressed.p50'):.2f}",
            f"{median_of(f'{control}.speedup'):.2f}x",
        ]
        title = _TITLES.get(model, model)
        rows += [
            [title, "original, float32", *float32, "1.00x", "", ""],
            ["", "original, int8 (control)", *int8, "1.00x", "in every result"],
        ]
        over_control = {
            method: at(result, f"int8.latency_ms.{device}.speedup_over_control") or 0.0
            for method, result in by_method.items()
        }
        best = max(over_control, key=over_control.__getitem__)
        for method, result in by_method.items():
            row = _int8_row(result, device, command=f"`make results/{model}_{method}.json`")
            bold = method == best and over_control[method] > 1
            rows.append(["", f"**`{method}`, int8**" if bold else f"`{method}`, int8", *row])
    return rows


def _int8_row(result: Result, device: str, command: str) -> list[str]:
    """Return the figures of a method's network in int8."""
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
    """Return the caption: processor, runtime, threads and number of images."""
    all_results = [result for by_method in results.values() for result in by_method.values()]
    machines = {_machine(_main(result)) for result in all_results}
    images = {result["reported"]["images"] for result in all_results}
    counts = " or ".join(f"{count:,}" for count in sorted(images))
    return (
        f"Measured on {'; '.join(sorted(machines))}. "
        f"Top-1 is that of the ONNX file, on {counts} test images."
    )


def _main(result: Result) -> dict[str, Any]:
    """Return the environment of the main device, which is the first one."""
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
    """Return a row for each result of the matrix: float32, int8 and the control."""
    device, rows = params.matrix.devices[0], []
    for model, by_method in results.items():
        for number, (method, result) in enumerate(by_method.items()):
            title = _TITLES.get(model, model) if number == 0 else ""
            rows.append([title, f"`{method}`", *cells(result, device)])
    return rows


def cells(result: Result, device: str) -> list[str]:
    """Return the cells of one result. Cells are empty if not measured."""
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
    """Return the cell of a network in int8."""
    if not document:
        return ""
    text = (
        f"{document['accuracy']['exported']:.2f} %, {document['size_bytes']['ratio']:.1f}x smaller"
    )
    speedup = at(document, f"latency_ms.{device}.speedup")
    return text if speedup is None else f"{text}, {speedup:.2f}x faster"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    return [lines[0], "|" + "---|" * len(headings), *lines[1:]]


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f}"


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


if __name__ == "__main__":
    main()
