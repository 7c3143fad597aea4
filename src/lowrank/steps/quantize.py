"""Quantise an exported network to int8, and measure its accuracy."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, say, use_threads


@click.command(cls=Step)
@click.option("--model", type=Path, required=True, help="The network, ONNX.")
@click.option("--state", type=Path, required=True, help="What it was exported from, safetensors.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--kind", default="", help="methods.<method>.quantize; empty: nothing is done.")
@click.option("--settings", type=Json(), required=True, help="quantize, JSON.")
@click.option(
    "--folder", type=Path, required=True, help="Output: model.onnx, where asked for; report.json."
)
def quantize(
    model: Path, state: Path, dataset: Path, kind: str, settings: dict[str, Any], folder: Path
) -> None:
    """Quantise an exported network to int8, and measure its accuracy."""
    from lowrank.files import write_json

    report = folder / "report.json"
    if not kind:
        # What DVC keeps must be there, whether a method is quantised or not.
        write_json(report, {"kind": None})
        return
    from lowrank.params import QuantizeSettings

    asked = QuantizeSettings.model_validate(settings)
    use_threads(asked.threads)
    from lowrank.networks.divergence import mean_divergence
    from lowrank.networks.int8 import Quantizer, within_tolerance
    from lowrank.networks.states import read_spec
    from lowrank.training.batches import EvaluationBatches
    from lowrank.training.datasets import open_dataset
    from lowrank.training.exported import exported_percent, log_probabilities

    spec, data = read_spec(state), open_dataset(dataset)
    percent = partial(exported_percent, spec=spec, threads=asked.threads)
    answers = partial(
        log_probabilities,
        split=data.validation.sample(asked.sensitivity_images),
        spec=spec,
        threads=asked.threads,
    )
    before = percent(model, data.validation)
    batches = EvaluationBatches(data.train.sample(asked.images), spec)
    output = folder / "model.onnx"
    with tempfile.TemporaryDirectory() as intermediate:
        quantizer = Quantizer(
            model,
            [{"images": batches[number][0].numpy()} for number in range(len(batches))],
            asked,
            Path(intermediate),
        )
        in_float = answers(model)
        kept = within_tolerance(
            quantizer,
            output,
            lost=lambda path: before["top1"] - percent(path, data.validation)["top1"],
            divergence=lambda path: mean_divergence(in_float, answers(path)),
            tolerance=asked.tolerance,
            say=say,
        )
    accuracy = {"validation": percent(output, data.validation), "test": percent(output, data.test)}
    size = output.stat().st_size
    say(
        f"int8: {accuracy['validation']['top1']:.2f} % of the validation split (float: "
        f"{before['top1']:.2f} %), {accuracy['test']['top1']:.2f} % of the test split, "
        f"{size / 1e6:.2f} MB, {len(kept)} of {len(quantizer.nodes)} nodes in float"
    )
    write_json(
        report,
        {
            "kind": kind,
            "accuracy": accuracy,
            "float_accuracy": {"validation": before},
            "size_bytes": size,
            "nodes": len(quantizer.nodes),
            "kept_in_float": list(kept),
        },
    )


if __name__ == "__main__":
    quantize()
