"""Tables of docs/papers-tables.md, from the results of `papers_tables.py`.

`python benchmarks/readme_table.py --write` writes them into the page.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lowrank.files import read_json

Record = Mapping[str, Any]
# The cells of one row of a network by column. Figures of the paper are None if it has none.
Cells = Callable[[str, Record, Record | None], dict[str, str]]

PAGE = "docs/papers-tables.md"
RESULTS = Path("benchmarks/results/papers_tables.json")
NAMES = tuple(
    f"papers-{table}" for table in ("counts", "one-thread", "all-threads", "kinds", "astrid")
)


def tables(root: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each table by its name: the cells by column."""
    document = read_json(root / RESULTS)
    contents = (_counts, _one_thread, _all_threads, _kinds)
    of_kim = [list(_rows(document, "kim", cells)) for cells in contents]
    return dict(zip(NAMES, [*of_kim, list(_rows(document, "astrid", _astrid))], strict=True))


def _rows(document: Record, paper: str, cells: Cells) -> Iterator[dict[str, str]]:
    """Yield a row for the original and for each row that refers to the paper."""
    papers = document["papers"]
    for name, network in document["networks"].items():
        if paper == "astrid" and name not in papers["astrid"]["networks"]:
            continue
        published = papers["kim"]["networks"].get(name)
        title = network["title"]
        for row, record in network["rows"].items():
            if row != "original" and row.partition("_")[0] != paper:
                continue
            of_row = published if row in ("original", "kim") else None
            first = {"network": title, "weights": network["weights"], "row": record["title"]}
            yield first | cells(row, record, of_row)
            title = ""


def _counts(row: str, record: Record, published: Record | None) -> dict[str, str]:
    side = 0 if row == "original" else 1
    sizes = record.get("megabytes", {})
    return {
        "parameters": f"{record['parameters'] / 1e6:.2f} M" if sizes else "not built",
        "paper's (remembered)": f"{published['weights_millions'][side]} M" if published else "",
        "MACs": f"{record['macs'] / 1e6:,.0f} M" if sizes else "",
        "paper's MACs (remembered)": f"{published['macs_millions'][side]:,} M" if published else "",
        "MB": f"{sizes['float']:.2f}" if sizes else "",
        "MB in int8": f"{sizes['int8']:.2f}" if sizes else "",
    }


def _one_thread(row: str, record: Record, published: Record | None) -> dict[str, str]:
    cells = _latencies(record, "one")
    side = 0 if row == "original" else 1
    return cells | {
        "paper's phone, ms (remembered)": str(published["milliseconds"][side]) if published else "",
        "paper's phone, faster (remembered)": (
            f"{published['faster']:.2f}x" if published and side else ""
        ),
    }


def _all_threads(row: str, record: Record, published: Record | None) -> dict[str, str]:
    return _latencies(record, "all")


def _latencies(record: Record, threads: str) -> dict[str, str]:
    cells = dict.fromkeys(("float, ms", "faster", "int8, ms", "int8, faster", "than int8"), "")
    if "int8" not in record:
        return cells | {"float, ms": "not built"}
    before, in_int8 = record["int8"][threads]["ms"]
    in_float = record["float"][threads]["ms"][1] if "float" in record else before
    cells |= {"float, ms": f"{in_float:.2f}", "int8, ms": f"{in_int8:.2f}"}
    for pair, column in (("float", "faster"), ("int8", "int8, faster"), ("int8_both", "than int8")):
        if pair in record:
            ratio, low, high = record[pair][threads]["faster"]
            cells[column] = f"{ratio:.2f}x ({low:.2f} to {high:.2f})"
    return cells


def _kinds(row: str, record: Record, published: Record | None) -> dict[str, str]:
    columns = {"pointwise": "1x1, ms", "convolution": "other convolutions, ms"}
    columns |= {"linear": "linear, ms", "rest": "rest, ms"}
    if "ms_by_kind" not in record:
        return dict.fromkeys((*columns.values(), "1x1 of the time", "1x1 of the MACs"), "")
    shares = {
        f"1x1 of the {what}": f"{_pointwise_percent(record[key]):.0f} %"
        for what, key in (("time", "ms_by_kind"), ("MACs", "macs_by_kind"))
    }
    times = record["ms_by_kind"]
    return {column: f"{times[kind]:.2f}" for kind, column in columns.items()} | shares


def _pointwise_percent(by_kind: Mapping[str, float]) -> float:
    return 100 * by_kind.get("pointwise", 0) / sum(by_kind.values())


def _astrid(row: str, record: Record, published: Record | None) -> dict[str, str]:
    counts = _counts(row, record, None)
    latencies = _latencies(record, "one")
    on_all = _latencies(record, "all")
    return {
        "parameters": counts["parameters"],
        "MACs": counts["MACs"],
        **latencies,
        "all threads, float, ms": on_all["float, ms"],
        "all threads, faster": on_all["faster"],
        "all threads, int8, ms": on_all["int8, ms"],
    }
