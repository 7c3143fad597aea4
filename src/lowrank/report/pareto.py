"""Draw the metric of all variants against their cost, and their energy."""

import math
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from lowrank.core.metric import Metric
from lowrank.report.style import BLUE, GREEN, GREY, ORANGE, save
from lowrank.report.table import ORIGINAL, place_of

CONTROL = "original, int8"
# With more networks in a panel, only the most important ones have names, and the other points are
# small. Names of hundreds of points would hide them, and take minutes to place.
_NAMED = 24
# With more bars for a device, only the most important networks have one.
_BARS = 60
# With more networks than this and one device, several panels share a row.
_ROWS, _COLUMNS = 4, 3
# Plot style by kind of network: the originals, and the compressed networks by precision.
_STYLES: dict[str, dict[str, Any]] = {
    ORIGINAL: {"marker": "*", "color": GREY, "markersize": 13},
    CONTROL: {"marker": "D", "color": GREEN, "markersize": 8, "markeredgecolor": "black"},
    "float32": {"marker": "o", "color": BLUE, "markersize": 7},
    "int8": {"marker": "s", "color": ORANGE, "markersize": 7, "markeredgecolor": "black"},
}


def _kind(record: dict[str, Any]) -> str:
    """Return the key of a network's plot style."""
    if record["method"] != ORIGINAL:
        return record["precision"]
    return CONTROL if record["precision"] == "int8" else ORIGINAL


def is_important(record: dict[str, Any], front: str = "on_front_by_latency") -> bool:
    """Return whether a network is an original, the control, or on a Pareto front."""
    return record["method"] == ORIGINAL or bool(record[front])


def accuracy_picture(
    path: str | os.PathLike,
    records: Sequence[dict[str, Any]],
    metrics: Mapping[str, Metric],
    *,
    cost: str,
    label: str,
    front: str,
    unit: float = 1,
) -> None:
    """Draw the metric against a cost with its Pareto front, a panel for each network and device.

    In a panel with many networks, only those on the front, the original and the control have names.

    Parameters
    ----------
    path
        Where to write the SVG file.
    records
        The records that `lowrank.report.table.overview` returns.
    metrics
        Main metric of the task of each model.
    cost
        The column of the cost.
    label
        The label of the cost axis, with its unit.
    front
        The column that says whether a network is on the front.
    unit
        The unit of the axis. Costs are divided by it.
    """
    records = [row | {cost: row[cost] / unit} for row in records if row[cost] is not None]
    models = list(dict.fromkeys(record["network"] for record in records))
    places = list(dict.fromkeys((record["device"], record["cpu"]) for record in records))
    names = {place: _device_name(*place, places) for place in places}
    columns = _COLUMNS if len(places) == 1 and len(models) > _ROWS else max(len(places), 1)
    rows = math.ceil(max(len(models) * len(places), 1) / columns)
    figure = Figure(figsize=(0.6 + 7.4 * columns, 0.7 + 4.0 * rows), layout="constrained")
    if not records:
        _write_message(figure, "No variant has been measured.")
        save(figure, path)
        return
    panels = []
    contents = [(model, *place) for model in models for place in places]
    for panel, content in zip_longest(figure.subplots(rows, columns, squeeze=False).flat, contents):
        panel_records = [record for record in records if place_of(record) == content]
        if not panel_records:
            panel.set_axis_off()
            continue
        panels.append((panel, panel_records))
        _draw_panel(panel, panel_records, metrics[content[0]], cost, front)
        title = f"{content[0]} on {names[content[1:]]}" if len(places) > 1 else content[0]
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(label)
    _draw_legend(figure)
    _keep_layout(figure)
    for panel, panel_records in panels:
        _write_names(panel, _named(panel_records, front), cost)
    save(figure, path)


def _named(records: Sequence[dict[str, Any]], front: str) -> list[dict[str, Any]]:
    """Return the networks of a panel whose names are written."""
    is_crowded = len(records) > _NAMED
    return [record for record in records if not is_crowded or is_important(record, front)]


def _keep_layout(figure: Figure) -> None:
    """Compute the layout and keep it, because the positions of names depend on it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _draw_legend(figure: Figure) -> None:
    figure.legend(
        handles=[
            *(
                Line2D([], [], linestyle="none", label=name, **style)
                for name, style in _STYLES.items()
            ),
            Line2D([], [], color=GREY, linewidth=1, label="best at its cost (Pareto front)"),
        ],
        loc="outside upper center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )


def _device_name(device: str, cpu: str | None, places: Sequence[tuple[str, str | None]]) -> str:
    """Return the name of a device, with its CPU if several CPUs have measured under that name."""
    has_several_cpus = sum(name == device for name, _ in places) > 1
    return f"{device} ({cpu})" if has_several_cpus else device


def _draw_panel(
    axes: Axes, records: Sequence[dict[str, Any]], metric: Metric, cost: str, front: str
) -> None:
    best = sorted((record for record in records if record[front]), key=lambda record: record[cost])
    axes.step(
        [record[cost] for record in best],
        [record["accuracy"] for record in best],
        where="post",
        color=GREY,
        linewidth=1,
        zorder=1,
    )
    for record in records:
        style = dict(_STYLES[_kind(record)])
        if len(records) > _NAMED and not is_important(record, front):
            style |= {"markersize": 4, "alpha": 0.6, "markeredgecolor": "none"}
        axes.plot(record[cost], record["accuracy"], linestyle="none", zorder=3, **style)
        if _kind(record) == CONTROL and cost == "relative_latency":
            # Networks to the right of this line cost more than the control.
            axes.axvline(record[cost], color=GREEN, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xscale("log")
    lowest, highest = _span([record[cost] for record in records])
    # Leave space on the right for names.
    axes.set_xlim(lowest / 1.25, highest * (highest / lowest) ** 0.25 * 1.25)
    axes.set_ylabel(metric.reported_axis())
    values = [record["accuracy"] for record in records]
    # Some space even if all values are equal.
    margin = 0.12 * (max(values) - min(values)) + 10.0 ** (1 - metric.digits)
    limits = (min(values) - margin, max(values) + margin)
    # Better networks are further up.
    axes.set_ylim(limits if metric.higher_is_better else limits[::-1])
    is_wide = highest > 5 * lowest
    subs = (1, 2, 5) if is_wide else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def _span(values: Sequence[float]) -> tuple[float, float]:
    lowest, highest = min(values), max(values)
    return (lowest, highest) if highest > 1.5 * lowest else (lowest / 1.3, highest * 1.3)


def _write_names(axes: Axes, records: Sequence[dict[str, Any]], cost: str) -> None:
    """Write the name of each method next to its point, away from other names and points."""
    x = [record[cost] for record in records]
    y = [record["accuracy"] for record in records]
    adjust_text(
        [
            axes.text(
                across, up, CONTROL if _kind(record) == CONTROL else record["method"], fontsize=8
            )
            for across, up, record in zip(x, y, records, strict=True)
        ],
        x,
        y,
        ax=axes,
        expand=(1.2, 1.7),
        iter_lim=500,  # A limit of iterations instead of time, so that pictures are reproducible.
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5},
    )


def energy_picture(
    path: str | os.PathLike, records: Sequence[dict[str, Any]], reasons: Sequence[str]
) -> None:
    """Draw the energy of one run of each network, a panel for each device.

    If no device measured energy, write the `reasons` that the devices gave instead. `path` and
    `records` are those of `accuracy_picture`. With many networks, only the originals and those that
    are best at their latency are drawn.
    """
    measured = [record for record in records if record["energy_mj"] is not None]
    devices = list(dict.fromkeys(record["device"] for record in measured))
    if not measured:
        figure = Figure(figsize=(8, 1.6), layout="constrained")
        lines = ["No device measured energy.", *dict.fromkeys(reasons)]
        _write_message(figure, "\n".join(lines))
        save(figure, path)
        return
    most = max(sum(record["device"] == device for record in measured) for device in devices)
    if most > _BARS:
        measured = [record for record in measured if is_important(record)]
        most = max(sum(record["device"] == device for record in measured) for device in devices)
    figure = Figure(figsize=(8, len(devices) * (1.2 + 0.3 * most)), layout="constrained")
    for device, row in zip(devices, figure.subplots(len(devices), 1, squeeze=False), strict=True):
        axes = row[0]
        device_records = [record for record in measured if record["device"] == device]
        for position, record in enumerate(device_records):
            is_original = record["method"] == ORIGINAL
            axes.barh(
                position,
                record["energy_mj"],
                color="white" if _kind(record) == ORIGINAL else _STYLES[_kind(record)]["color"],
                edgecolor="black",
                hatch="///" if is_original else "",
                height=0.7,
            )
            axes.annotate(
                f"{record['energy_mj']:.2f}",
                (record["energy_mj"], position),
                (4, -3),
                textcoords="offset points",
                fontsize=8,
            )
        names = [
            f"{record['network']} {record['method']}, {record['precision']}"
            for record in device_records
        ]
        axes.set_yticks(range(len(device_records)), labels=names, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(device, fontsize=11)
        axes.set_xlabel("energy of one run above idle, mJ")
        axes.set_xlim(0, 1.15 * max(record["energy_mj"] for record in device_records))
    save(figure, path)


def _write_message(figure: Figure, text: str) -> None:
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
