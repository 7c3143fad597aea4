"""Quantise an exported network to int8 for each kind of hardware, and measure its accuracy."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Paths, Step, say, use_threads


@click.command(cls=Step)
@click.option("--model", type=Path, required=True, help="The network, ONNX.")
@click.option("--state", type=Path, required=True, help="What it was exported from, safetensors.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option(
    "--devices", type=Paths(), required=True, help="Descriptions of the devices, the main one first"
)
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--ready", default="", help="Such a folder of the same network; empty: none.")
@click.option("--kind", default="", help="methods.<method>.quantize; empty: nothing is done.")
@click.option("--settings", type=Json(), required=True, help="quantize, JSON.")
@click.option(
    "--folder", type=Path, required=True, help="Output: an ONNX file for each kind; report.json."
)
def quantize(
    model: Path,
    state: Path,
    dataset: Path,
    devices: list[Path],
    splits: str,
    ready: str,
    kind: str,
    settings: dict[str, Any],
    folder: Path,
) -> None:
    """Quantise an exported network to int8 for each kind of hardware, and measure its accuracy."""
    from lowrank.files import read_json, write_json
    from lowrank.int8_files import REPORT, copy_folder

    report = folder / REPORT
    if not kind:
        # What DVC keeps must be there, whether a method is quantised or not.
        write_json(report, {"kind": None})
        return
    if ready:
        # The method leaves the network as it was, and the original was quantized for the control.
        copy_folder(Path(ready), folder)
        say(f"the network is the original: {ready} is its int8")
        return
    from lowrank.params import QuantizeSettings

    asked = QuantizeSettings.model_validate(settings)
    use_threads(asked.threads)
    from lowrank.devices.processor import Processor
    from lowrank.networks.int8 import types_for
    from lowrank.networks.states import read_spec
    from lowrank.training.datasets import open_dataset

    types = {path.stem: types_for(Processor.from_json(read_json(path)), asked) for path in devices}
    data = open_dataset(dataset, splits)
    files, before = _quantized(
        model, dict.fromkeys(types.values()), read_spec(state), data, asked, folder
    )
    write_json(
        report,
        {
            "kind": kind,
            "devices": {device: each.file for device, each in types.items()},
            "files": files,
            "float_accuracy": {"validation": before},
        },
    )


class _Inputs(Sequence[dict[str, Any]]):
    """The images of evaluation batches, as the exported network takes them, one batch at a time."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        return {"images": self._batches[number][0].numpy()}


def _quantized(
    model: Path, types: Any, spec: Any, data: Any, asked: Any, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """Write a file of each of the types; what is known of each, and the accuracy in float."""
    from lowrank.devices.processor import Processor, integer_types
    from lowrank.networks.divergence import mean_divergence
    from lowrank.networks.int8 import Quantizer, within_tolerance
    from lowrank.training.batches import EvaluationBatches
    from lowrank.training.exported import exported_percent, log_probabilities

    sample = data.validation.sample(asked.sensitivity_images)
    before = exported_percent(model, data.validation, spec, threads=asked.threads)
    in_float = log_probabilities(model, sample, spec, threads=asked.threads)
    batches = EvaluationBatches(data.train.sample(asked.images), spec)
    files = {}
    with tempfile.TemporaryDirectory() as intermediate:
        quantizer = Quantizer(
            model,
            _Inputs(batches),
            asked,
            Path(intermediate),
        )
        for each in types:
            # Where this machine's products would saturate and the device's do not, float kernels
            # between the conversions answer what the device does.
            saturates = integer_types(Processor.here()).reduce_range and not each.reduce_range
            how = {"spec": spec, "threads": asked.threads, "float_kernels": saturates}
            percent, answers = partial(exported_percent, **how), partial(log_probabilities, **how)
            output = folder / each.file
            kept = within_tolerance(
                quantizer,
                output,
                each,
                lost=lambda path, percent=percent: (
                    before["top1"] - percent(path, data.validation)["top1"]
                ),
                divergence=lambda path, answers=answers: mean_divergence(
                    in_float, answers(path, sample)
                ),
                tolerance=asked.tolerance,
                seconds=asked.search_seconds,
                say=say,
            )
            accuracy = {
                "validation": percent(output, data.validation),
                "test": percent(output, data.test),
            }
            size = output.stat().st_size
            say(
                f"{each.file}: {accuracy['validation']['top1']:.2f} % of the validation split "
                f"(float: {before['top1']:.2f} %), {accuracy['test']['top1']:.2f} % of the test "
                f"split, {size / 1e6:.2f} MB, {len(kept.nodes)} of {len(quantizer.nodes)} nodes in "
                "float"
            )
            files[each.file] = {
                "activations": each.activations,
                "reduce_range": each.reduce_range,
                "accuracy": accuracy,
                "size_bytes": size,
                "nodes": len(quantizer.nodes),
                "kept_in_float": list(kept.nodes),
                "within_tolerance": kept.within,
            }
    return files, before


if __name__ == "__main__":
    quantize()
