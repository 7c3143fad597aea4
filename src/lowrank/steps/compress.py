"""Compress one ONNX file, without a pipeline."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.steps.common import Step, say
from lowrank.steps.input_options import input_option, shapes_of

if TYPE_CHECKING:
    from lowrank.zoo.registry import NetworkSpec


@click.command(cls=Step)
@click.argument("model", type=Path)
@click.option("--output", type=Path, required=True, help="The ONNX file to write.")
@click.option(
    "--images",
    type=Path,
    help="Folder with some hundred images as the network gets them in use; labels are not needed.",
)
@click.option(
    "--samples",
    type=Path,
    help="Instead of images: a .npy or .npz file with arrays (samples, ...).",
)
@click.option(
    "--count",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Largest number of them.",
)
@click.option("--mean", help="Mean of each channel, for pixels from 0 to 1: 0.485,0.456,0.406.")
@click.option("--std", help="Standard deviation of each channel: 0.229,0.224,0.225.")
@click.option("--bgr", is_flag=True, help="The network takes blue, green, red.")
@click.option("--resize", type=int, help="Shorter side of an image before its center is cut out.")
@click.option(
    "--target",
    multiple=True,
    metavar="COST=SHARE",
    help="Share of the original's cost to reach: macs=0.5, parameters=0.5, size_bytes=0.5 or "
    "latency=0.5 (on this machine, one thread). Without a target, the ranks are those of EVBMF.",
)
@click.option("--int8", is_flag=True, help="Also write the network in int8.")
@click.option(
    "--largest-drop",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the agreement with the original, above chance, that may be lost.",
)
@click.option("--threads", type=int, default=1, show_default=True, help="Threads for the latency.")
@click.option(
    "--write-params",
    is_flag=True,
    help="Add the entries that do the same in the pipeline to params.yaml in this folder.",
)
@input_option
def compress(
    model: Path,
    output: Path,
    images: Path | None,
    samples: Path | None,
    count: int,
    mean: str | None,
    std: str | None,
    bgr: bool,
    resize: int | None,
    target: tuple[str, ...],
    int8: bool,
    largest_drop: float,
    threads: int,
    write_params: bool,
    inputs: tuple[str, ...],
) -> None:
    """Compress MODEL, an ONNX file, and report what it cost and gained.

    Layers are replaced by factors that keep their outputs on the images; nothing is trained.
    """
    from lowrank.compression.file_samples import Preprocessing, image_batches, sample_batches

    _require_consistent(output, images, samples, target, int8=int8)
    shapes, spec = shapes_of(inputs), None
    if images:
        preprocessing = Preprocessing(mean, std, bgr, resize)
        batches, spec = image_batches(model, shapes, images, count, preprocessing)
    else:
        batches = sample_batches(samples, count) if samples else []
    say(f"{model}: compressing with {sum(map(_length, batches))} samples")
    ranks = _ranks(target) | {"largest_drop": largest_drop}
    _compress(model, output, batches, shapes, _factorize(bool(target)), ranks, threads, int8=int8)
    if images and spec:
        _say_entries(
            model, images, shapes, spec, count, bool(target), ranks, int8=int8, write=write_params
        )


def _compress(
    model: Path,
    output: Path,
    batches: list[Any],
    shapes: Mapping[str, Sequence[int]],
    factorize: dict[str, Any],
    ranks: dict[str, Any],
    threads: int,
    *,
    int8: bool,
) -> None:
    """Write the compressed files and the card, and report the measurements."""
    import lowrank
    from lowrank.compression.file_card import write_card
    from lowrank.compression.graph_network import GraphNetwork
    from lowrank.compression.one_file import FileMeasurements, write_int8

    small = lowrank.compress(
        model, inputs=shapes or None, factorize=factorize, ranks=ranks, images=batches or None
    )
    small.export(output)
    before, after = (sum(layer.macs[i] for layer in small.layers) for i in (0, 1))
    replaced = sum(not layer.is_dense for layer in small.layers)
    share = 100 * after / before
    say(f"{replaced} of {len(small.layers)} layers replaced; {share:.0f} % of their MACs are left")
    original = GraphNetwork.read(model, shapes, batches)
    size = f"{original.model.ByteSize() / 1e6:.2f} MB"
    say(f"original: {size}")
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        measurements = FileMeasurements(original, threads, Path(folder))

        def measure(label: str, path: Path) -> None:
            measured.append(measurements.measure(label, path))
            say(measured[-1].sentence())

        measure("compressed", output)
        if int8:
            control = Path(folder) / "control.onnx"
            write_int8(original.model, original.batches, control, str(model))
            measure("original in int8", control)
            quantized = output.with_name(f"{output.stem}_int8.onnx")
            write_int8(small.network, original.batches, quantized, str(output))
            measure("compressed, in int8", quantized)
            say(f"wrote {quantized}")
        card = output.with_suffix(".md")
        words = ["lowrank", *map(shlex.quote, sys.argv[1:])]
        write_card(
            card,
            original=f"`{model}` ({size})",
            command=" ".join(words),
            measured=measured,
            layers=small.layers,
        )
    say(f"wrote {output} and {card}")


def _say_entries(
    model: Path,
    images: Path,
    shapes: Mapping[str, Sequence[int]],
    spec: NetworkSpec,
    count: int,
    with_target: bool,
    ranks: dict[str, Any],
    *,
    int8: bool,
    write: bool,
) -> None:
    """Say which entries of params.yaml do the same in the pipeline, or add them."""
    from lowrank.compression.pipeline_entry import append, command_for, entries_for, text_of

    network: dict[str, Any] = {
        "inputs": {name: list(shape) for name, shape in shapes.items()},
        "mean": list(spec.mean),
        "std": list(spec.std),
        "channel_order": spec.channel_order,
    }
    network = {key: value for key, value in network.items() if value}
    if spec.resize:
        network["resize"] = spec.resize
    factorize = _factorize(with_target) | {"norm": "activation", "images": count}
    entries = entries_for(
        model, images, network=network, factorize=factorize, ranks=ranks, int8=int8
    )
    if write:
        append(entries, Path("params.yaml"))
        say(f"added entries to params.yaml; in the pipeline: {command_for(entries)}")
        return
    say(f"in the pipeline, `{command_for(entries)}` with these entries in params.yaml:")
    click.echo(text_of(entries), err=True)


def _require_consistent(
    output: Path, images: Path | None, samples: Path | None, target: Sequence[str], *, int8: bool
) -> None:
    """Raise UserError for options that exclude or need each other."""
    from lowrank.errors import UserError

    if images and samples:
        raise UserError("--images, --samples: both are given. Give one of them.")
    if not (images or samples) and (target or int8):
        option = "--target" if target else "--int8"
        raise UserError(f"{option}: needs samples of the input. Give --images or --samples.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: {output.parent} is no folder. Create it first.")


def _factorize(with_target: bool) -> dict[str, Any]:
    from lowrank.api import TUCKER

    return {**TUCKER, "alternatives": ["spatial_svd"]} if with_target else dict(TUCKER)


def _ranks(targets: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the rank rule. Raises UserError for a target of another form."""
    from lowrank.errors import UserError

    costs: dict[str, float] = {}
    for target in targets:
        name, _, share = target.partition("=")
        try:
            costs[name] = float(share)
        except ValueError:
            costs[name] = 0.0
        known = ("macs", "parameters", "size_bytes", "latency")
        if name not in known or not 0 < costs[name] < 1:
            raise UserError(
                f"--target {target}: expected macs, parameters, size_bytes or latency and a share "
                "of the original's cost between 0 and 1, such as macs=0.5."
            )
    if not costs:
        return {"select": "vbmf"}
    settings: dict[str, Any] = {name: costs[name] for name in costs if name != "latency"}
    if "latency" in costs:
        settings["latency_ms"] = {"local": costs["latency"]}
    return {"select": "budget", "target": settings}


def _length(batch: Any) -> int:
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch)


if __name__ == "__main__":
    compress()
