"""One variant: its ranks, where its time goes, its fine-tuning."""

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from lowrank.report.style import BLUE, COLOURS, GREY, MARKERS, ORANGE, save

# Height of a layer's row, in inches.
_ROW = 0.27


def ranks_picture(path: str | os.PathLike, layers: Sequence[dict[str, Any]], *, title: str) -> None:
    """Draw each layer's ranks beside the largest possible ones, and its MACs before and after.

    Parameters
    ----------
    layers
        The records of `layers.json`.
    """
    figure, (ranks, macs) = _rows(len(layers), title)
    names = []
    for place, each in enumerate(layers):
        chosen, full = (_numbers(each[key]) for key in ("ranks", "full_ranks"))
        for index, (rank, largest) in enumerate(zip(chosen, full, strict=True)):
            # One line for each rank, so that none hides another.
            line = place + 0.16 * (2 * index - len(chosen) + 1)
            ranks.plot([rank, largest], [line, line], color=GREY, linewidth=0.8, zorder=1)
            ranks.plot(largest, line, "|", color=GREY, markersize=7)
            name = each["rank_names"].split(" x ")[index]
            if name not in names:
                names.append(name)
            look = names.index(name)
            ranks.plot(rank, line, MARKERS[look], color=COLOURS[look], markersize=5)
        if not chosen:
            ranks.annotate(
                "stays as it is",
                (0.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
                color=GREY,
            )
    ranks.set_xscale("log", base=2)
    ranks.xaxis.set_major_formatter(ScalarFormatter())
    ranks.xaxis.set_minor_formatter(NullFormatter())
    ranks.set_xlabel("rank")
    ranks.legend(
        handles=[
            *(
                Line2D([], [], linestyle="none", marker=MARKERS[i], color=COLOURS[i], label=name)
                for i, name in enumerate(names)
            ),
            Line2D([], [], linestyle="none", marker="|", color=GREY, label="largest possible"),
        ],
        **_ABOVE,
    )
    _before_and_after(
        macs,
        [each["macs_original"] / 1e6 for each in layers],
        [each["macs_compressed"] / 1e6 for each in layers],
    )
    macs.set_xlabel("multiply-accumulates of one image, millions")
    macs.legend(**_ABOVE)
    _label_rows(ranks, [f"{each['layer']} ({each['form']})" for each in layers])
    save(figure, path)


def times_picture(
    path: str | os.PathLike,
    times: Sequence[dict[str, Any]],
    layers: Sequence[dict[str, Any]],
    *,
    title: str,
) -> None:
    """Draw each layer's milliseconds before and after, and its speed-up beside its MACs' ratio.

    Parameters
    ----------
    times
        The records of `times.json`, of one device.
    layers
        Those of `layers.json`.
    """
    times = [each for each in times if each["original_ms"] or each["compressed_ms"]]
    figure, (milliseconds, ratios) = _rows(len(times), title)
    _before_and_after(
        milliseconds,
        [each["original_ms"] for each in times],
        [each["compressed_ms"] for each in times],
        [each["pointwise_ms"] for each in times],
    )
    milliseconds.set_xlabel("ms of one run")
    milliseconds.legend(**_ABOVE)
    macs_ratio = {each["layer"]: each["macs_ratio"] for each in layers}
    for place, each in enumerate(times):
        if each["layer"] in macs_ratio:
            ratios.plot(macs_ratio[each["layer"]], place, "|", color="black", markersize=11)
        if each["speedup"]:
            ratios.plot(each["speedup"], place, "o", color=BLUE, markersize=5)
    ratios.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
    ratios.set_xscale("log")
    ratios.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    ratios.xaxis.set_major_formatter(ScalarFormatter())
    ratios.xaxis.set_minor_formatter(NullFormatter())
    ratios.set_xlabel("original / compressed")
    ratios.legend(
        handles=[
            Line2D([], [], linestyle="none", marker="o", color=BLUE, label="faster, measured"),
            Line2D([], [], linestyle="none", marker="|", color="black", label="fewer MACs"),
        ],
        **_ABOVE,
    )
    _label_rows(milliseconds, [each["layer"] for each in times])
    save(figure, path)


def curve_picture(path: str | os.PathLike, curve: Sequence[dict[str, Any]], *, title: str) -> None:
    """Draw the accuracy during fine-tuning, with the ends of its rounds.

    Parameters
    ----------
    curve
        The records of `curve.json`.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=12)
    if not curve:
        figure.text(0.5, 0.45, "No fine-tuning.", ha="center", fontsize=10)
        save(figure, path)
        return
    axes = figure.subplots()
    rounds = dict.fromkeys(each["round"] for each in curve)
    for number in rounds:
        of_round = [each for each in curve if each["round"] == number]
        axes.plot(
            [each["step"] for each in of_round],
            [each["train_percent"] for each in of_round],
            color=BLUE,
            linewidth=1,
            marker="o",
            markersize=2.5,
            label="training images, since the last point" if number == min(rounds) else None,
        )
    validated = [each for each in curve if each["validation_percent"] is not None]
    if validated:
        axes.plot(
            [each["step"] for each in validated],
            [each["validation_percent"] for each in validated],
            "D",
            color=ORANGE,
            markeredgecolor="black",
            label="validation images",
        )
    ends = {each["round"]: each["step"] for each in curve}
    for number, step in list(ends.items())[:-1]:
        first = number == min(ends)
        axes.axvline(
            step,
            color=GREY,
            linewidth=0.8,
            linestyle="--",
            label="a round ends" if first else None,
        )
    axes.set_xlabel("step of fine-tuning")
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    save(figure, path)


_ABOVE = {
    "fontsize": 8,
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
    "ncols": 3,
    "frameon": False,
}


def _rows(count: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    """Two panels side by side with a row for each layer, the first one on top."""
    figure = Figure(figsize=(10, 1.5 + _ROW * count), layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(1, 2)
    for axes in panels:
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_yticks(range(count), labels=[])
        axes.grid(axis="y", alpha=0.25)
    return figure, panels


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels=labels, fontsize=8)


def _before_and_after(
    axes: Axes,
    before: Sequence[float],
    after: Sequence[float],
    pointwise: Sequence[float] | None = None,
) -> None:
    """Two bars for each row, the second one with what 1 x 1 convolutions are of it."""
    places = range(len(before))
    above, below = ([place + shift for place in places] for shift in (-0.2, 0.2))
    axes.barh(
        above, before, height=0.38, color="white", edgecolor=GREY, hatch="///", label="original"
    )
    axes.barh(below, after, height=0.38, color=ORANGE, label="compressed")
    if pointwise is not None:
        axes.barh(
            below,
            pointwise,
            height=0.38,
            color=ORANGE,
            edgecolor="black",
            hatch="xxxx",
            linewidth=0,
            label="of it in 1 x 1 convolutions",
        )


def _numbers(listed: str) -> list[int]:
    return [int(each) for each in listed.split(" x ")] if listed else []
