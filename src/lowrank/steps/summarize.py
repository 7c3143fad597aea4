"""Bring what was measured of one variant together: the result, and the tables of its plots."""

import itertools
from pathlib import Path
from typing import Any

import click

from lowrank.files import read_json, write_json
from lowrank.plan import LayerTable, Plan, PlannedLayer
from lowrank.steps.common import Paths, Step, say
from lowrank.stored import read_header


@click.command(cls=Step)
@click.option("--table", type=Path, required=True, help="Layer table of the network, JSON.")
@click.option("--original", type=Path, required=True, help="Accuracy of the original, JSON.")
@click.option("--exports", type=Paths(), required=True, help="Reports of both exports, JSON.")
@click.option("--state", type=Path, required=True, help="The compressed network, safetensors.")
@click.option("--plans", type=Paths(), required=True, help="Plan of every round, JSON.")
@click.option(
    "--rounds", type=Paths(), required=True, help="Metrics, curve and timing of every round, JSON."
)
@click.option("--benchmarks", type=Paths(), required=True, help="One for each device, JSON.")
@click.option("--result", type=Path, required=True, help="Output: nested scalars, JSON.")
@click.option("--layers", type=Path, required=True, help="Output: a record a layer, JSON.")
@click.option("--curve", type=Path, required=True, help="Output: a record a point, JSON.")
def summarize(
    table: Path,
    original: Path,
    exports: list[Path],
    state: Path,
    plans: list[Path],
    rounds: list[Path],
    benchmarks: list[Path],
    result: Path,
    layers: Path,
    curve: Path,
) -> None:
    """Bring what was measured of one variant together."""
    metrics, curves, timings = ([read_json(path) for path in rounds[i::3]] for i in range(3))
    before, after = (read_json(path) for path in exports)
    measured = {path.stem: read_json(path) for path in benchmarks}
    document = {
        "accuracy": {
            "original": read_json(original)["accuracy"]["test"],
            "decomposed": metrics[-1]["accuracy"]["decomposed"]["test"],
            "finetuned": metrics[-1]["accuracy"]["finetuned"]["test"],
            "exported": after["check"]["accuracy_percent"],
            "validation": {
                "original": read_json(original)["accuracy"]["validation"],
                "decomposed": metrics[-1]["accuracy"]["decomposed"]["validation"],
                "finetuned": metrics[-1]["accuracy"]["finetuned"]["validation"],
            },
        },
        **{
            quantity: _before_after(before["counts"][quantity], after["counts"][quantity])
            for quantity in ("parameters", "macs", "size_bytes")
        },
        "latency_ms": {
            device: {
                "original": _percentiles(values["original"]),
                "compressed": _percentiles(values["compressed"]),
                "speedup": values["speedup"],
            }
            for device, values in measured.items()
        },
        "memory_mb": {device: values["memory_mb"] for device, values in measured.items()},
        "environment": {device: values["environment"] for device, values in measured.items()},
        "rounds": len(plans),
        "finetune": {
            "steps": sum(timing["steps"] for timing in timings),
            "seconds": round(sum(timing["seconds"] for timing in timings), 1),
        },
        "export": {"max_abs_error": after["check"]["max_abs_error"]},
    }
    network = LayerTable.from_json(read_json(table))
    planned = {
        layer.name: layer for path in plans for layer in Plan.from_json(read_json(path)).layers
    }
    factored = read_header(state)["factored"]
    write_json(
        layers,
        [
            _layer_record(
                layer.name,
                layer.parameters,
                layer.dense_macs,
                layer.not_factored,
                planned.get(layer.name),
                factored.get(layer.name),
            )
            for layer in network.layers
        ],
    )
    write_json(curve, _joined(curves, timings))
    write_json(result, document)
    accuracy = document["accuracy"]
    say(
        f"{accuracy['original']:.2f} % -> {accuracy['exported']:.2f} % top-1, "
        f"{document['macs']['ratio']:.2f}x fewer MACs, {document['size_bytes']['ratio']:.2f}x "
        "smaller, " + ", ".join(f"{v['speedup']:.2f}x faster on {d}" for d, v in measured.items())
    )


def _joined(
    curves: list[list[dict[str, Any]]], timings: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The curves of all rounds, with steps counted through."""
    before = [0, *itertools.accumulate(timing["steps"] for timing in timings)]
    return [
        {**point, "step": point["step"] + start}
        for points, start in zip(curves, before[:-1], strict=True)
        for point in points
    ]


def _before_after(original: int, compressed: int) -> dict[str, float]:
    return {
        "original": original,
        "compressed": compressed,
        "ratio": round(original / compressed, 4),
    }


def _percentiles(latency: dict[str, float]) -> dict[str, float]:
    return {name: latency[name] for name in ("p50", "p90")}


def _layer_record(
    name: str,
    parameters: int,
    macs: int,
    not_factored: str | None,
    planned: PlannedLayer | None,
    factored: dict[str, Any] | None,
) -> dict[str, Any]:
    """One row of the layer table: the same scalar columns for every layer, dense or not."""
    if planned is None:
        because = not_factored or "the method leaves this kind of layer dense"
    else:
        because = planned.dense_because
    kept = factored is None
    after = (
        (parameters, macs) if kept or planned is None else (planned.parameters[1], planned.macs[1])
    )
    return {
        "layer": name,
        "form": "dense" if kept else factored["factorization"],
        "ranks": "" if kept else " x ".join(map(str, factored["ranks"])),
        "parameters_original": parameters,
        "parameters_compressed": after[0],
        "macs_original": macs,
        "macs_compressed": after[1],
        "macs_ratio": round(macs / after[1], 4),
        "relative_error": 0.0 if kept else round(factored["relative_error"], 6),
        "notes": "; ".join([*([because] if because else []), *(planned.notes if planned else ())]),
    }


if __name__ == "__main__":
    summarize()
