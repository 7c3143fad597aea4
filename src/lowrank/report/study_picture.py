"""Draw a study: a comparison of variants that differ in one choice."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank.core.metric import Metric
from lowrank.report.style import BLUE, COLOURS, GREY, MARKERS, ORANGE, save


def study_picture(
    path: str | os.PathLike,
    rows: Sequence[dict[str, Any]],
    metrics: Mapping[str, Metric],
    *,
    title: str,
    x: str,
) -> None:
    """Draw the metric of each variant of a study, and its gains, with a row for each network.

    Parameters
    ----------
    path
        Where to write the SVG file.
    rows
        The records that the step `study` writes.
    metrics
        Main metric of the task of each model.
    title
        The title of the picture.
    x
        `variant`: a point and bars for each variant. `steps`: a line over the steps of fine-tuning
        for each family of variants, which is the name of a variant up to its last `_`.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    tallest = max(sum(row["model"] == model for row in rows) for model in models)
    panels, height = (2, 1.2 + 0.32 * tallest) if x == "variant" else (1, 3.4)
    figure = Figure(figsize=(8.5, 0.4 + height * len(models)), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(len(models), panels, squeeze=False)
    for model, row_of_axes in zip(models, axes, strict=True):
        model_rows = [row for row in rows if row["model"] == model]
        if x == "variant":
            _metric_points(row_of_axes[0], model_rows, metrics[model], model)
            _speed_bars(row_of_axes[1], model_rows)
        else:
            _lines_over_steps(row_of_axes[0], model_rows, metrics[model], model)
    save(figure, path)


def _metric_points(axes: Axes, rows: Sequence[dict[str, Any]], metric: Metric, model: str) -> None:
    names = [row["variant"] for row in rows]
    values = [row["test_percent"] for row in rows]
    original = rows[0]["original_percent"]
    # Points instead of bars, because the axis does not start at 0.
    axes.plot(values, names, "o", color=BLUE)
    axes.axvline(original, color=GREY, linestyle="--", linewidth=1)
    lowest, highest = min([*values, original]), max([*values, original])
    margin = 0.15 * (highest - lowest) + 0.2 * 10.0 ** (2 - metric.digits)
    axes.set_xlim(lowest - margin, highest + 2 * margin)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for index, value in enumerate(values):
        axes.annotate(
            metric.number(value), (value, index), (6, -3), textcoords="offset points", size=8
        )
    axes.grid(axis="y", alpha=0.3)
    axes.invert_yaxis()
    axes.set_title(f"{model} (dashed line: original)", fontsize=10)
    axes.set_xlabel(metric.reported_axis("after fine-tuning"))


def _speed_bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    positions = range(len(rows))
    axes.barh(
        [position - 0.2 for position in positions],
        [row["macs_ratio"] for row in rows],
        height=0.38,
        color="white",
        edgecolor=GREY,
        hatch="///",
        label="fewer MACs",
    )
    axes.barh(
        [position + 0.2 for position in positions],
        [row["speedup"] for row in rows],
        height=0.38,
        color=ORANGE,
        label=f"faster, measured ({rows[0]['device']})",
    )
    axes.set_yticks(positions, labels=[])
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xlabel("original / compressed")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # Above the panel, so that no bar is covered.
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _lines_over_steps(
    axes: Axes, rows: Sequence[dict[str, Any]], metric: Metric, model: str
) -> None:
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
    axes.set_xlabel("fine-tuning steps")
    axes.set_ylabel(metric.reported_axis())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
