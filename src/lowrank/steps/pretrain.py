"""Train a network from scratch, or on from earlier weights: how shipped checkpoints are made."""

import platform
from pathlib import Path
from typing import Any

import click

from lowrank.files import read_json
from lowrank.report.provenance import commit as current_commit
from lowrank.steps.common import Json, Step, reuse_memory, say, sole_builder_of, use_threads


@click.command(cls=Step)
@click.option("--network", required=True, help="A name, or a JSON document.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--settings", type=Json(), required=True, help="pretrain.<network> of params.yaml.")
@click.option("--start", default="", help="Weights to go on from; empty: random ones.")
@click.option("--state", type=Path, required=True, help="Where to keep the state of training.")
@click.option("--weights", type=Path, required=True, help="Output: half-precision safetensors.")
@click.option("--provenance", type=Path, required=True, help="Output: how they were made, JSON.")
def pretrain(
    network: str,
    dataset: Path,
    settings: dict[str, Any],
    start: str,
    state: Path,
    weights: Path,
    provenance: Path,
) -> None:
    """Train a network from scratch, or on from earlier weights."""
    use_threads(settings["threads"])
    reuse_memory()
    import torch

    from lowrank.config.network_source import NetworkSource
    from lowrank.config.training import PretrainSettings
    from lowrank.data.datasets import open_dataset
    from lowrank.files import sha256_of, write_json
    from lowrank.tasks.classification import accuracy_percent
    from lowrank.training.loop import fingerprint_of, train
    from lowrank.zoo.creation import create
    from lowrank.zoo.weight_files import load_weights, read_weights, write_weights

    recipe = PretrainSettings.model_validate(settings)
    data = open_dataset(dataset)
    commit = current_commit()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    source = NetworkSource.parse(network)
    described = source.to_json()
    spec, model = create(source)
    earlier = {}
    if start:
        load_weights(model, read_weights(start, model, say=say), source=start, say=say)
        earlier = {"weights_sha256": sha256_of(start), **_provenance_of(Path(start))}
    with sole_builder_of(state.with_suffix(".lock")):
        report = train(
            model,
            spec,
            data,
            recipe,
            state_path=state,
            fingerprint=fingerprint_of(
                network, recipe, sha256_of(dataset / "dataset.json"), earlier
            ),
            say=say,
        )
        write_weights(weights, model, dtype=torch.float16)
    # What ships is the rounded file: its accuracy is the one to state.
    load_weights(model.cpu(), read_weights(weights), source=str(weights))
    accuracy = accuracy_percent(model, data, spec)
    say(f"validation {accuracy['validation']:.2f} %, test {accuracy['test']:.2f} %")
    write_json(
        provenance,
        {
            "network": source.network if described.keys() == {"network"} else described,
            "dataset": data.name,
            "recipe": recipe.model_dump(mode="json"),
            "seed": recipe.seed,
            "steps": report.steps,
            "seconds": round(report.seconds, 1),
            "accuracy": accuracy,
            "commit": commit,
            **({"start": earlier} if start else {}),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
    )


def _provenance_of(weights: Path) -> dict[str, Any]:
    """How earlier weights were made, where the file beside them says so."""
    beside = weights.with_suffix(".json")
    return {"provenance": read_json(beside)} if beside.is_file() else {}


if __name__ == "__main__":
    pretrain()
