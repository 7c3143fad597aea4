"""Decompose all layers of a round in one job: `decompose.jobs: round`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import input_path, network_option, output_path, parameter


@click.command(cls=Step, name="decompose_round")
@input_path("state", "The network before the round.")
@input_path("table", "Its layer table, JSON.")
@input_path("plan", "The plan of the round, JSON.")
@input_path("moments", "For `norm: activation`: moments of the layers' inputs.", optional=True)
@input_path(
    "original",
    "For `sequential`: the original network. Needs --dataset and --images.",
    optional=True,
)
@network_option
@input_path("dataset", "For `sequential`: folder that the dataset step wrote.", optional=True)
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("images", "For `sequential`: number of calibration images.", int, default=0)
@parameter("threads", "CPU threads of the linear algebra of one layer.", int)
@parameter("layers_at_once", "Layers that are decomposed at the same time.", int, default=1)
@output_path("factors", "Folder of the factors: a safetensors file for each layer.")
def decompose_round(
    state: Path,
    table: Path,
    plan: Path,
    moments: Path | None,
    original: Path | None,
    network: NetworkSource,
    dataset: Path | None,
    splits: Path | None,
    images: int,
    threads: int,
    layers_at_once: int,
    factors: Path,
) -> None:
    """Decompose the kernels of all layers of a round into factors."""
    use_threads(threads)
    from lowrank.compression.stored_layers import CalibrationImages, StoredLayers
    from lowrank.temporary import temporary_folder

    calibration = CalibrationImages.of(original, network, dataset, splits, images, threads)
    layers = StoredLayers(state, table, plan, moments, calibration)
    factors.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(factors.parent) as folder:
        partial = folder / factors.name
        partial.mkdir()
        for line in layers.decompose_all(partial, layers_at_once):
            say(line)
        shutil.rmtree(factors, ignore_errors=True)
        partial.rename(factors)


if __name__ == "__main__":
    decompose_round()
