"""A study: variants that differ in one thing, side by side."""

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank.report.style import BLUE, COLOURS, GREY, MARKERS, ORANGE, save


def study_picture(
    path: str | os.PathLike, rows: Sequence[dict[str, Any]], *, title: str, x: str
) -> None:
    """Draw a study: for each network the accuracy, and what it bought.

    Parameters
    ----------
    rows
        The records that the step `study` writes.
    x
        `variant`: a bar for each; `steps`: a line for each family of variants, which is their name
        up to the last `_`.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    tallest = max(sum(row["model"] == model for row in rows) for model in models)
    panels, height = (2, 1.2 + 0.32 * tallest) if x == "variant" else (1, 3.4)
    figure = Figure(figsize=(8.5, 0.4 + height * len(models)), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(len(models), panels, squeeze=False)
    for model, row_of_axes in zip(models, axes, strict=True):
        of_model = [row for row in rows if row["model"] == model]
        if x == "variant":
            _accuracy_points(row_of_axes[0], of_model, model)
            _speed_bars(row_of_axes[1], of_model)
        else:
            _lines_over_steps(row_of_axes[0], of_model, model)
    save(figure, path)


def _accuracy_points(axes: Axes, rows: Sequence[dict[str, Any]], model: str) -> None:
    names = [row["variant"] for row in rows]
    values = [row["test_percent"] for row in rows]
    original = rows[0]["original_percent"]
    # Points, not bars: the axis does not start at 0.
    axes.plot(values, names, "o", color=BLUE)
    axes.axvline(original, color=GREY, linestyle="--", linewidth=1)
    lowest, highest = min([*values, original]), max([*values, original])
    room = 0.15 * (highest - lowest) + 0.2
    axes.set_xlim(lowest - room, highest + 2 * room)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for index, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (value, index), (6, -3), textcoords="offset points", size=8)
    axes.grid(axis="y", alpha=0.3)
    axes.invert_yaxis()
    axes.set_title(f"{model}: dashed, the original", fontsize=10)
    axes.set_xlabel("top-1 on the test images after fine-tuning, %")


def _speed_bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    places = range(len(rows))
    axes.barh(
        [place - 0.2 for place in places],
        [row["macs_ratio"] for row in rows],
        height=0.38,
        color="white",
        edgecolor=GREY,
        hatch="///",
        label="fewer MACs",
    )
    axes.barh(
        [place + 0.2 for place in places],
        [row["speedup"] for row in rows],
        height=0.38,
        color=ORANGE,
        label=f"faster, measured ({rows[0]['device']})",
    )
    axes.set_yticks(places, labels=[])
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xlabel("original / compressed")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # Above the bars, where none reaches.
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _lines_over_steps(axes: Axes, rows: Sequence[dict[str, Any]], model: str) -> None:
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["variant"].rpartition("_")[0] or row["variant"], []).append(row)
    for index, (family, members) in enumerate(families.items()):
        members.sort(key=lambda row: row["steps"])
        axes.plot(
            [row["steps"] for row in members],
            [row["test_percent"] for row in members],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            label=family,
        )
    axes.axhline(
        rows[0]["original_percent"], color=GREY, linestyle="--", linewidth=1, label="original"
    )
    steps = sorted({row["steps"] for row in rows})
    axes.set_xscale("symlog", linthresh=max(1, min(filter(None, steps), default=1) / 2))
    axes.set_xticks(steps, labels=[f"{count:,}" for count in steps], minor=False)
    axes.minorticks_off()
    axes.set_xlim(-0.1 * max(1, min(filter(None, steps), default=1)), 1.2 * max(1, steps[-1]))
    axes.set_title(model, fontsize=10)
    axes.set_xlabel("steps of fine-tuning")
    axes.set_ylabel("top-1 on the test images, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
