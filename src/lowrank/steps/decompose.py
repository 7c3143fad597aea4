"""Decompose the kernel of one layer into factors, with the ranks of the plan."""

from __future__ import annotations

from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    input_path,
    input_paths,
    network_option,
    output_path,
    parameter,
    wildcard,
)


@click.command(cls=Step)
@input_path("state", "The network before the round.")
@input_path("table", "Its layer table, JSON.")
@input_path("plan", "The plan of the round, JSON.")
@wildcard("layer", "Name of the layer.")
@input_path("moments", "For `norm: activation`: moments of the layer's inputs.", optional=True)
@input_path(
    "original",
    "For `sequential`: the original network. Needs --before, --dataset and --images.",
    optional=True,
)
@input_paths("before", "For `sequential`: factors of the layers before this one.")
@network_option
@input_path("dataset", "For `sequential`: folder that the dataset step wrote.", optional=True)
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("images", "For `sequential`: number of calibration images.", int, default=0)
@parameter("threads", "CPU threads of the linear algebra.", int)
@output_path("factors", "Factors, safetensors.")
def decompose(
    state: Path,
    table: Path,
    plan: Path,
    layer: str,
    moments: Path | None,
    original: Path | None,
    before: list[Path],
    network: NetworkSource,
    dataset: Path | None,
    splits: Path | None,
    images: int,
    threads: int,
    factors: Path,
) -> None:
    """Decompose the kernel of one layer into factors."""
    use_threads(threads)
    from lowrank.compression.stored_layers import CalibrationImages, StoredLayers

    calibration = CalibrationImages.of(original, network, dataset, splits, images, threads)
    layers = StoredLayers(state, table, plan, moments, calibration)
    say(layers.decompose(layer, before, factors))


if __name__ == "__main__":
    decompose()
