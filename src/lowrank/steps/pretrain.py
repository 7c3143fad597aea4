"""Train a network from scratch or from earlier weights. The shipped checkpoints are made so."""

import platform
from pathlib import Path
from typing import Any

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.training import PretrainSettings
from lowrank.files import read_json
from lowrank.report.provenance import commit as current_commit
from lowrank.steps.common import Step, reuse_memory, say, sole_builder_of, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    kept_path,
    network_option,
    output_path,
    parameter,
)


@click.command(cls=Step)
@network_option
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
    dataset: Path,
    settings: PretrainSettings,
    start: Path | None,
    state: Path,
    weights: Path,
    provenance: Path,
) -> None:
    """Train a network from scratch or from earlier weights."""
    use_threads(settings.threads)
    reuse_memory()
    import torch

    from lowrank.data.datasets import open_dataset
    from lowrank.files import sha256_of, write_json
    from lowrank.tasks.classification import accuracy_percent
    from lowrank.training.loop import fingerprint_of, train
    from lowrank.zoo.creation import create
    from lowrank.zoo.weight_files import load_weights, read_weights, write_weights

    data = open_dataset(dataset)
    commit = current_commit()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    description = network.to_json()
    spec, model = create(network)
    earlier = {}
    if start:
        load_weights(model, read_weights(start, model, say=say), source=str(start), say=say)
        earlier = {"weights_sha256": sha256_of(start), **_provenance_of(start)}
    with sole_builder_of(state.with_suffix(".lock")):
        report = train(
            model,
            spec,
            data,
            settings,
            state_path=state,
            fingerprint=fingerprint_of(
                description, settings, sha256_of(dataset / "dataset.json"), earlier
            ),
            say=say,
        )
        write_weights(weights, model, dtype=torch.float16)
    # Measure the rounded weights, because these are shipped.
    load_weights(model.cpu(), read_weights(weights), source=str(weights))
    accuracy = accuracy_percent(model, data, spec)
    say(f"validation {accuracy['validation']:.2f} %, test {accuracy['test']:.2f} %")
    write_json(
        provenance,
        {
            "network": network.network if description.keys() == {"network"} else description,
            "dataset": data.name,
            "recipe": settings.model_dump(mode="json"),
            "seed": settings.seed,
            "steps": report.steps,
            "seconds": round(report.seconds, 1),
            "accuracy": accuracy,
            "commit": commit,
            **({"start": earlier} if start else {}),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
    )


def _provenance_of(weights: Path) -> dict[str, Any]:
    """Return how earlier weights were made, from the JSON file next to them if it exists."""
    path = weights.with_suffix(".json")
    return {"provenance": read_json(path)} if path.is_file() else {}


if __name__ == "__main__":
    pretrain()
