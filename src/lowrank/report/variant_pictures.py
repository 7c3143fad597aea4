"""Draw one variant: its ranks, the times of its layers, and its fine-tuning."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from lowrank.core.metric import Metric
from lowrank.report.style import BLUE, COLOURS, GREY, MARKERS, ORANGE, save

# Height of a layer's row, in inches.
_ROW = 0.27


def ranks_picture(path: str | os.PathLike, layers: Sequence[dict[str, Any]], *, title: str) -> None:
    """Draw each layer's ranks and their upper bounds, and its MACs before and after.

    Parameters
    ----------
    path
        Where to write the SVG file.
    layers
        The records of `layers.json`.
    title
        The title of the picture.
    """
    figure, (ranks, macs) = _rows(len(layers), title)
    names = []
    for position, layer in enumerate(layers):
        chosen, full = (_numbers(layer[key]) for key in ("ranks", "full_ranks"))
        for index, (rank, largest) in enumerate(zip(chosen, full, strict=True)):
            # Each rank has its own height, so that no rank covers another.
            height = position + 0.16 * (2 * index - len(chosen) + 1)
            ranks.plot([rank, largest], [height, height], color=GREY, linewidth=0.8, zorder=1)
            ranks.plot(largest, height, "|", color=GREY, markersize=7)
            name = layer["rank_names"].split(" x ")[index]
            if name not in names:
                names.append(name)
            style = names.index(name)
            ranks.plot(rank, height, MARKERS[style], color=COLOURS[style], markersize=5)
        if not chosen:
            ranks.annotate(
                "not replaced",
                (0.02, position),
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
        [layer["macs_original"] / 1e6 for layer in layers],
        [layer["macs_compressed"] / 1e6 for layer in layers],
    )
    macs.set_xlabel("multiply-accumulates for one image, millions")
    macs.legend(**_ABOVE)
    _label_rows(ranks, [f"{layer['layer']} ({layer['form']})" for layer in layers])
    save(figure, path)


def times_picture(
    path: str | os.PathLike,
    times: Sequence[dict[str, Any]],
    layers: Sequence[dict[str, Any]],
    *,
    title: str,
) -> None:
    """Draw each layer's time before and after, and its speedup next to the ratio of its MACs.

    Parameters
    ----------
    path
        Where to write the SVG file.
    times
        The records of `times.json` for one device.
    layers
        The records of `layers.json`.
    title
        The title of the picture.
    """
    times = [time for time in times if time["original_ms"] or time["compressed_ms"]]
    figure, (milliseconds, ratios) = _rows(len(times), title)
    _before_and_after(
        milliseconds,
        [time["original_ms"] for time in times],
        [time["compressed_ms"] for time in times],
        [time["pointwise_ms"] for time in times],
    )
    milliseconds.set_xlabel("ms of one run")
    milliseconds.legend(**_ABOVE)
    macs_ratio = {layer["layer"]: layer["macs_ratio"] for layer in layers}
    for position, time in enumerate(times):
        if macs_ratio.get(time["layer"]):
            ratios.plot(macs_ratio[time["layer"]], position, "|", color="black", markersize=11)
        if time["speedup"]:
            ratios.plot(time["speedup"], position, "o", color=BLUE, markersize=5)
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
    _label_rows(milliseconds, [time["layer"] for time in times])
    save(figure, path)


def curve_picture(
    path: str | os.PathLike, curve: Sequence[dict[str, Any]], metric: Metric, *, title: str
) -> None:
    """Draw the metric during fine-tuning, with the ends of the rounds.

    Parameters
    ----------
    path
        Where to write the SVG file.
    curve
        The records of `curve.json`.
    metric
        Main metric of the task.
    title
        The title of the picture.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=12)
    if not curve:
        figure.text(0.5, 0.45, "No fine-tuning.", ha="center", fontsize=10)
        save(figure, path)
        return
    axes = figure.subplots()
    # Without values of the metric on batches, the curve shows the loss.
    has_metric = any(point["train_percent"] is not None for point in curve)
    trained = "train_percent" if has_metric else "loss"
    rounds = dict.fromkeys(point["round"] for point in curve)
    for number in rounds:
        points = [point for point in curve if point["round"] == number]
        axes.plot(
            [point["step"] for point in points],
            [point[trained] for point in points],
            color=BLUE,
            linewidth=1,
            marker="o",
            markersize=2.5,
            label="training images, since the last point" if number == min(rounds) else None,
        )
    validated = [point for point in curve if point["validation_percent"] is not None]
    if validated and has_metric:
        axes.plot(
            [point["step"] for point in validated],
            [point["validation_percent"] for point in validated],
            "D",
            color=ORANGE,
            markeredgecolor="black",
            label="validation images",
        )
    _mark_rounds(axes, curve)
    axes.set_xlabel("fine-tuning step")
    axes.set_ylabel(metric.label if has_metric else "loss")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    save(figure, path)


def _mark_rounds(axes: Axes, curve: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line at the end of each round except the last."""
    ends = {point["round"]: point["step"] for point in curve}
    for number, step in list(ends.items())[:-1]:
        is_first = number == min(ends)
        axes.axvline(
            step,
            color=GREY,
            linewidth=0.8,
            linestyle="--",
            label="end of a round" if is_first else None,
        )


_ABOVE: dict[str, Any] = {
    "fontsize": 8,
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
    "ncols": 3,
    "frameon": False,
}


def _rows(count: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    """Create two panels side by side with a row for each layer, the first layer at the top."""
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
    """Draw two bars for each row. The second bar shows its share of 1 x 1 convolutions."""
    rows = range(len(before))
    above, below = ([row + shift for row in rows] for shift in (-0.2, 0.2))
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
            label="share of 1 x 1 convolutions",
        )


def _numbers(listed: str) -> list[int]:
    return [int(number) for number in listed.split(" x ")] if listed else []
