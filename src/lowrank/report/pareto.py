"""All variants: accuracy against what they cost, and energy."""

import os
from collections.abc import Sequence
from typing import Any

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from lowrank.report.style import BLUE, GREEN, GREY, ORANGE, save
from lowrank.report.table import ORIGINAL, place_of

CONTROL = "original, int8"
# How the networks of a panel look: the originals, and the compressed ones by precision.
_LOOKS = {
    ORIGINAL: {"marker": "*", "color": GREY, "markersize": 13},
    CONTROL: {"marker": "D", "color": GREEN, "markersize": 8, "markeredgecolor": "black"},
    "float32": {"marker": "o", "color": BLUE, "markersize": 7},
    "int8": {"marker": "s", "color": ORANGE, "markersize": 7, "markeredgecolor": "black"},
}


def _kind(record: dict[str, Any]) -> str:
    """Which of the looks a network has."""
    if record["method"] != ORIGINAL:
        return record["precision"]
    return CONTROL if record["precision"] == "int8" else ORIGINAL


def accuracy_picture(
    path: str | os.PathLike,
    records: Sequence[dict[str, Any]],
    *,
    cost: str,
    label: str,
    front: str,
    unit: float = 1,
) -> None:
    """Draw accuracy against a cost, a panel for each network and device, with its Pareto front.

    Parameters
    ----------
    records
        As `lowrank.report.table.overview` gives them.
    cost
        The column of the cost.
    label
        What the axis says, with its unit.
    front
        The column that says which are on the front.
    unit
        What the axis counts in.
    """
    records = [each | {cost: each[cost] / unit} for each in records if each[cost] is not None]
    models = list(dict.fromkeys(each["network"] for each in records))
    places = list(dict.fromkeys((each["device"], each["cpu"]) for each in records))
    names = [_named(*place, places) for place in places]
    figure = Figure(
        figsize=(0.6 + 7.4 * max(len(places), 1), 0.7 + 4.0 * max(len(models), 1)),
        layout="constrained",
    )
    if not records:
        _say(figure, "No variant has been measured.")
    else:
        axes = figure.subplots(len(models), len(places), squeeze=False)
        panels = []
        for model, row in zip(models, axes, strict=True):
            for place, name, panel in zip(places, names, row, strict=True):
                of_panel = [each for each in records if place_of(each) == (model, *place)]
                if not of_panel:
                    panel.set_axis_off()
                    continue
                panels.append((panel, of_panel))
                _panel(panel, of_panel, cost, front)
                panel.set_title(f"{model} on {name}" if len(places) > 1 else model, fontsize=11)
                panel.set_xlabel(label)
                panel.set_ylabel("top-1 on the test images, %")
        figure.legend(
            handles=[
                *(
                    Line2D([], [], linestyle="none", label=name, **look)
                    for name, look in _LOOKS.items()
                ),
                Line2D([], [], color=GREY, linewidth=1, label="best at its cost (Pareto front)"),
            ],
            loc="outside upper center",
            ncols=5,
            frameon=False,
            fontsize=9,
        )
        # Names are placed by what the layout came to, which must then stay.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for panel, of_panel in panels:
            _names(panel, of_panel, cost)
    save(figure, path)


def _named(device: str, cpu: str | None, places: Sequence[tuple[str, str | None]]) -> str:
    """The name of a device, with its CPU where one of that name had several."""
    several = sum(name == device for name, _ in places) > 1
    return f"{device} ({cpu})" if several else device


def _panel(axes: Axes, records: Sequence[dict[str, Any]], cost: str, front: str) -> None:
    best = sorted((each for each in records if each[front]), key=lambda each: each[cost])
    axes.step(
        [each[cost] for each in best],
        [each["top1_percent"] for each in best],
        where="post",
        color=GREY,
        linewidth=1,
        zorder=1,
    )
    for each in records:
        look = _LOOKS[_kind(each)]
        axes.plot(each[cost], each["top1_percent"], linestyle="none", zorder=3, **look)
        if _kind(each) == CONTROL and cost == "relative_latency":
            # What lies to the right of the line costs more than the control.
            axes.axvline(each[cost], color=GREEN, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xscale("log")
    lowest, highest = _span([each[cost] for each in records])
    # Room on the right for names.
    axes.set_xlim(lowest / 1.25, highest * (highest / lowest) ** 0.25 * 1.25)
    accuracies = [each["top1_percent"] for each in records]
    room = 0.12 * (max(accuracies) - min(accuracies)) + 0.1
    axes.set_ylim(min(accuracies) - room, max(accuracies) + room)
    wide = highest > 5 * lowest
    subs = (1, 2, 5) if wide else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def _span(values: Sequence[float]) -> tuple[float, float]:
    lowest, highest = min(values), max(values)
    return (lowest, highest) if highest > 1.5 * lowest else (lowest / 1.3, highest * 1.3)


def _names(axes: Axes, records: Sequence[dict[str, Any]], cost: str) -> None:
    """Write each method beside its point, away from other names and points."""
    x = [each[cost] for each in records]
    y = [each["top1_percent"] for each in records]
    adjust_text(
        [
            axes.text(*place, CONTROL if _kind(each) == CONTROL else each["method"], fontsize=8)
            for *place, each in zip(x, y, records, strict=True)
        ],
        x,
        y,
        ax=axes,
        expand=(1.2, 1.7),
        iter_lim=500,  # and no limit of time: the same picture each time
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5},
    )


def energy_picture(
    path: str | os.PathLike, records: Sequence[dict[str, Any]], reasons: Sequence[str]
) -> None:
    """Draw the energy of one run of each network, a panel for each device; or why there is none.

    Parameters
    ----------
    records
        As `lowrank.report.table.overview` gives them.
    reasons
        What devices said that have no counter.
    """
    measured = [each for each in records if each["energy_mj"] is not None]
    devices = list(dict.fromkeys(each["device"] for each in measured))
    if not measured:
        figure = Figure(figsize=(8, 1.6), layout="constrained")
        _say(figure, "\n".join(["No device counted energy.", *dict.fromkeys(reasons)]))
        save(figure, path)
        return
    most = max(sum(each["device"] == device for each in measured) for device in devices)
    figure = Figure(figsize=(8, len(devices) * (1.2 + 0.3 * most)), layout="constrained")
    for device, row in zip(devices, figure.subplots(len(devices), 1, squeeze=False), strict=True):
        axes = row[0]
        of_device = [each for each in measured if each["device"] == device]
        for place, each in enumerate(of_device):
            original = each["method"] == ORIGINAL
            axes.barh(
                place,
                each["energy_mj"],
                color="white" if _kind(each) == ORIGINAL else _LOOKS[_kind(each)]["color"],
                edgecolor="black",
                hatch="///" if original else "",
                height=0.7,
            )
            axes.annotate(
                f"{each['energy_mj']:.2f}",
                (each["energy_mj"], place),
                (4, -3),
                textcoords="offset points",
                fontsize=8,
            )
        names = [f"{each['network']} {each['method']}, {each['precision']}" for each in of_device]
        axes.set_yticks(range(len(of_device)), labels=names, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(device, fontsize=11)
        axes.set_xlabel("energy of one run above idle, mJ")
        axes.set_xlim(0, 1.15 * max(each["energy_mj"] for each in of_device))
    save(figure, path)


def _say(figure: Figure, text: str) -> None:
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
