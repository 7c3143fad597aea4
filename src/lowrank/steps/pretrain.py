"""Train a network from scratch or from earlier weights. The shipped checkpoints are made so."""

import platform
from pathlib import Path
from typing import Any

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.training import PretrainSettings
from lowrank.files import read_json
from lowrank.report.provenance import commit as current_commit
from lowrank.steps.common import (
    Step,
    ran_in_copies,
    reuse_memory,
    say,
    sole_builder_of,
    use_threads,
)
from lowrank.steps.options import (
    Json,
    input_path,
    kept_path,
    network_option,
    output_path,
    parameter,
    task_option,
)


@click.command(cls=Step)
@network_option
@task_option
@input_path("dataset", "Folder that the dataset step wrote.")
@parameter("settings", "pretrain.<network> of params.yaml.", Json(PretrainSettings))
@input_path("start", "Weights to start from.", optional=True)
@kept_path(
    "state", "build/resume/pretrain/{wildcards.model}.pt", "State of training, to resume it."
)
@output_path("weights", "The weights, half-precision safetensors.")
@output_path("provenance", "How the weights were made, JSON.")
def pretrain(
    network: NetworkSource,
    task: str,
    dataset: Path,
    settings: PretrainSettings,
    start: Path | None,
    state: Path,
    weights: Path,
    provenance: Path,
) -> None:
    """Train a network from scratch or from earlier weights."""
    threads = use_threads(settings.threads)
    reuse_memory()
    import torch

    from lowrank.data.datasets import open_dataset
    from lowrank.evaluation.network import measure_splits, text_by_split, values_by_split
    from lowrank.files import sha256_of, write_json
    from lowrank.tasks import get_task
    from lowrank.training.loop import train
    from lowrank.training.several_processes import joined
    from lowrank.training.state_file import fingerprint_of
    from lowrank.zoo.creation import create
    from lowrank.zoo.weight_files import load_weights, read_weights, write_weights

    lock = state.with_suffix(".lock")
    if ran_in_copies(settings, lock):
        return
    data, measured_task, commit = open_dataset(dataset), get_task(task), current_commit()
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    inputs = (network.to_json(), task, settings, sha256_of(dataset / "dataset.json"))
    spec, model = create(network)
    earlier = {"weights_sha256": sha256_of(start), **_provenance_of(start)} if start else {}
    if start:
        load_weights(model, read_weights(start, model, say=say), source=str(start), say=say)
    with joined(settings.device) as processes, sole_builder_of(lock):
        report = train(
            measured_task,
            model,
            spec,
            data,
            settings,
            state_path=state,
            fingerprint=fingerprint_of(*inputs, processes.count, earlier),
            processes=processes,
            say=say,
        )
        if not processes.is_first:
            return
        write_weights(weights, model, dtype=torch.float16)
    # Measure the rounded weights, because these are shipped.
    load_weights(model.cpu(), read_weights(weights), source=str(weights))
    accuracy = values_by_split(measured_task, measure_splits(measured_task, model, data, spec))
    say(text_by_split(measured_task, accuracy))
    document = _recipe_of(network.to_json(), data.name, settings)
    document |= {"steps": report.steps, "seconds": round(report.seconds, 1), "accuracy": accuracy}
    document |= {"commit": commit} | ({"start": earlier} if start else {})
    write_json(provenance, document | {"versions": _versions()})


def _versions() -> dict[str, str]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__}


def _recipe_of(
    description: dict[str, Any], dataset: str, settings: PretrainSettings
) -> dict[str, Any]:
    """Return the network, the dataset and the settings. A network with only a name is its name."""
    return {
        "network": description["network"] if description.keys() == {"network"} else description,
        "dataset": dataset,
        "recipe": settings.model_dump(mode="json"),
        "seed": settings.seed,
    }


def _provenance_of(weights: Path) -> dict[str, Any]:
    """Return how earlier weights were made, from the JSON file next to them if it exists."""
    path = weights.with_suffix(".json")
    return {"provenance": read_json(path)} if path.is_file() else {}


if __name__ == "__main__":
    pretrain()
