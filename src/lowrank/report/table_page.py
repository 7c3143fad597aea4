"""The table of all variants as a page: Markdown and HTML, with a column for each metric."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lowrank.core.metric import Metric
from lowrank.report.table import ORIGINAL, Record

_HEADINGS = {
    "network": ("network", "{}"),
    "method": ("method", "{}"),
    "precision": ("in", "{}"),
    "device": ("device", "{}"),
    "cpu": ("CPU", "{}"),
    "accuracy": ("accuracy", "{}"),
    "points_lost": ("lost", "{:.2f}"),
    "points_below_control": ("lost against int8 original", "{:.2f}"),
    "p50_ms": ("latency, ms", "{:.3f}"),
    "original_p50_ms": ("original beside it, ms", "{:.3f}"),
    "speedup": ("faster", "{:.2f}x"),
    "speedup_over_control": ("faster than int8 original", "{:.2f}x"),
    "relative_latency": ("share of the original's latency", "{:.3f}"),
    "macs": ("MACs", "{:,}"),
    "macs_ratio": ("fewer", "{:.2f}x"),
    "onnx_bytes": ("ONNX file, bytes", "{:,}"),
    "onnx_bytes_ratio": ("smaller", "{:.1f}x"),
    "energy_mj": ("energy, mJ", "{:.2f}"),
    "on_front_by_latency": ("best at its latency", "{}"),
}

TITLE = "All variants"

# A Markdown page with more rows lists only a part of them.
_MARKDOWN_ROWS = 200

# Explanation of the table's columns, one paragraph per entry.
_LEGEND = (
    "{metrics}. *Lost* is the difference to the original in float32"
    "{units}. The original in int8 is the control: one line of ONNX Runtime gives it without any "
    "compression.",
    "*Latency* is the median over all runs of one network. *Original beside it* is the median of "
    "the original in float32 in the same alternating runs. *Faster* is the median of the ratios of "
    "both, one for each pair of runs, so it differs a little from the quotient of the two medians.",
    "*Faster than int8 original* is measured in alternating runs of the two networks if both are "
    "in int8. Otherwise it is the quotient of their speed-ups over the original in float32.",
    "The row of an original holds the medians of the measurements beside each variant.",
    "*Share of the original's latency* is computed only from these ratios, for int8 networks "
    "through the control, because medians of runs at different times cannot be compared.",
    "*Best at its latency*: no network of the same original, device and CPU is as accurate at a "
    "smaller share.",
)


def legend(records: Sequence[Record], metrics: Mapping[str, Metric]) -> list[str]:
    """Return the legend of the table as paragraphs. Names of columns are marked as *name*."""
    cpus, used = cpus_of(records), _used(records, metrics)
    units = ", ".join(dict.fromkeys(metric.difference_unit for metric in used))
    first = _LEGEND[0].format(
        metrics=_measured_how(used),
        units=f", in {units}" if units else "",
    )
    listed = [f"{device}: {', '.join(names)}" for device, names in cpus.items() if names]
    lines = [
        first,
        *_LEGEND[1:],
        *([f"CPU of each device: {'; '.join(listed)}."] if listed else []),
    ]
    if _cpus_differ(records):
        lines.append(
            "Warning: rows of one device were measured on different CPUs. Compare milliseconds and "
            "speed-ups only between rows of the same CPU."
        )
    return lines


def _measured_how(metrics: Sequence[Metric]) -> str:
    """Return a sentence without its end: what the metrics are measured on."""
    parts = []
    for is_own, how in ((False, "on the test images"), (True, "by a function of the user")):
        if names := [metric.name for metric in metrics if metric.is_own == is_own]:
            verb = "is" if len(names) == 1 else "are"
            parts.append(f"{' and '.join(names)} {verb} measured {how}")
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}"


def cpus_of(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the CPUs on which was measured, by the name of the device."""
    cpus: dict[str, dict[str, None]] = {}
    for record in records:
        device_cpus = cpus.setdefault(record["device"], {})
        if record["cpu"]:
            device_cpus[record["cpu"]] = None
    return {device: list(names) for device, names in cpus.items()}


def _cpus_differ(records: Sequence[Record]) -> bool:
    return any(len(names) > 1 for names in cpus_of(records).values())


def by_metric(records: Sequence[Record], metrics: Mapping[str, Metric]) -> list[Record]:
    """Return the records with a column for each metric instead of `accuracy`.

    `metrics` holds the main metric of each model. Columns have names such as `top1_percent`.
    """
    used = _used(records, metrics)

    def columns(record: Record, key: str, value: Any) -> Record:
        if key != "accuracy":
            return {key: value}
        own = metrics[record["network"]]
        return {_column(metric): value if metric == own else None for metric in used}

    return [
        {name: cell for item in record.items() for name, cell in columns(record, *item).items()}
        for record in records
    ]


def _used(records: Sequence[Record], metrics: Mapping[str, Metric]) -> list[Metric]:
    """Return the metrics of the networks in the records, each one once."""
    return list(dict.fromkeys(metrics[record["network"]] for record in records))


def _column(metric: Metric) -> str:
    return metric.column(metric.key)


def markdown(records: Sequence[Record], metrics: Mapping[str, Metric]) -> str:
    """Return the records as a Markdown page, without empty columns.

    Of many records, list only the originals and the networks that are best at their latency.
    """
    listed, note = records, []
    if len(records) > _MARKDOWN_ROWS:
        listed = [
            record
            for record in records
            if record["method"] == ORIGINAL or record["on_front_by_latency"]
        ]
        note = [
            f"These are {len(listed):,} of {len(records):,} rows: the originals, and the networks "
            "that are best at their latency. All rows are in `summary.csv`, and in "
            "`pictures/summary.html`, where they can be sorted and filtered."
        ]
    headings, *rows = _cells(listed, metrics)
    lines = [headings, ["---"] * len(headings), *rows]
    table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    return "\n\n".join([f"# {TITLE}", *legend(records, metrics), *note, table])


def html(records: Sequence[Record], metrics: Mapping[str, Metric]) -> str:
    """Return the records as an HTML page whose rows can be sorted and filtered."""
    headings, *rows = _cells(records, metrics)
    heading = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in headings)}</tr>"
    lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows]
    paragraphs = [
        re.sub(r"\*(.+?)\*", r"<em>\1</em>", escape(line)) for line in legend(records, metrics)
    ]
    return _PAGE.format(
        title=TITLE,
        legend="\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs),
        heading=heading,
        rows="\n".join(lines),
    )


_PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font: 14px sans-serif; margin: 1em; }}
  p {{ max-width: 60em; margin: 0.4em 0; }}
  table {{ border-collapse: collapse; margin-top: 1em; }}
  th, td {{ padding: 3px 9px; border-bottom: 1px solid #ccc; text-align: right; }}
  th:nth-child(-n+4), td:nth-child(-n+4) {{ text-align: left; }}
  th {{ position: sticky; top: 0; background: white; cursor: pointer; }}
</style>
</head>
<body>
<h1>{title}</h1>
{legend}
<p><label>Only rows with <input id="words" placeholder="resnet20 int8"></label>
Click on a heading to sort.</p>
<table>
<thead>
{heading}
</thead>
<tbody>
{rows}
</tbody>
</table>
<script>
  const body = document.querySelector("tbody"), rows = [...body.rows];
  document.getElementById("words").addEventListener("input", event => {{
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of rows) {{
      const text = [...row.cells].map(cell => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !words.every(word => text.includes(word));
    }}
  }});
  document.querySelectorAll("th").forEach((heading, column) => {{
    let direction = -1;
    const value = row => row.cells[column].textContent.replaceAll(",", "");
    const compare = (a, b) => value(a).localeCompare(value(b), "en", {{numeric: false}});
    // Empty cells are last, whatever the direction.
    const order = (a, b) => {{
      const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
      if (!value(a) || !value(b)) return !value(a) - !value(b);
      return direction * (isNaN(x) || isNaN(y) ? compare(a, b) : x - y);
    }};
    heading.addEventListener("click", () => {{
      direction = -direction;
      body.append(...rows.sort(order));
    }});
  }});
</script>
</body>
</html>
"""


def _cells(records: Sequence[Record], metrics: Mapping[str, Metric]) -> list[list[str]]:
    """Return a row of headings and a row for each record, without empty columns.

    The column of the CPU is left out if each device has one CPU, which the legend names.
    """
    known = _headings(_used(records, metrics))
    one_cpu = not _cpus_differ(records)
    rows = by_metric(records, metrics)
    columns = [
        key
        for key in known
        if any(row[key] is not None for row in rows) and not (key == "cpu" and one_cpu)
    ]
    headings = [known[key][0] for key in columns]
    return [headings, *([_cell(known[key][1], row[key]) for key in columns] for row in rows)]


def _headings(metrics: Sequence[Metric]) -> dict[str, tuple[str, str]]:
    """Return the heading and the format of each column, with a column for each metric."""
    of_metrics = {_column(metric): (metric.label, f"{{:.{metric.digits}f}}") for metric in metrics}
    items = list(_HEADINGS.items())
    place = list(_HEADINGS).index("accuracy")
    return dict([*items[:place], *of_metrics.items(), *items[place + 1 :]])


def _cell(template: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return template.format(value)
