"""Compress one ONNX file, without a pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.steps.common import Step, say
from lowrank.steps.input_options import input_option, shapes_of

if TYPE_CHECKING:
    import numpy as np

# Samples of one batch.
_BATCH = 32


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
    help="Share of the original's cost to reach: macs=0.5, parameters=0.5 or size_bytes=0.5. "
    "Without a target, the ranks are those of EVBMF.",
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
    inputs: tuple[str, ...],
) -> None:
    """Compress MODEL, an ONNX file, and report what it cost and gained.

    Layers are replaced by factors that keep their outputs on the images; nothing is trained.
    """
    import lowrank
    from lowrank.compression.graph_network import GraphNetwork
    from lowrank.compression.one_file import FileMeasurements, write_int8

    _require_consistent(output, images, samples, target, int8=int8)
    shapes = shapes_of(inputs)
    if images:
        batches = _read_images(model, shapes, images, count, mean, std, resize, bgr=bgr)
    else:
        batches = _read_samples(samples, count) if samples else []
    say(f"{model}: compressing with {sum(map(_length, batches))} samples")
    small = lowrank.compress(
        model,
        inputs=shapes or None,
        factorize=_factorize(bool(target)),
        ranks=_ranks(target) | {"largest_drop": largest_drop},
        images=batches or None,
    )
    small.export(output)
    before, after = (sum(layer.macs[i] for layer in small.layers) for i in (0, 1))
    replaced = sum(not layer.is_dense for layer in small.layers)
    share = 100 * after / before
    say(f"{replaced} of {len(small.layers)} layers replaced; {share:.0f} % of their MACs are left")
    original = GraphNetwork.read(model, shapes, batches)
    with tempfile.TemporaryDirectory() as folder:
        measurements = FileMeasurements(original, threads, Path(folder))
        say(f"original: {original.model.ByteSize() / 1e6:.2f} MB")
        say(measurements.measure("compressed", output).sentence())
        if int8:
            control = Path(folder) / "control.onnx"
            write_int8(original.model, original.batches, control, str(model))
            say(measurements.measure("original in int8", control).sentence())
            quantized = output.with_name(f"{output.stem}_int8.onnx")
            write_int8(small.network, original.batches, quantized, str(output))
            say(measurements.measure("compressed, in int8", quantized).sentence())
            say(f"wrote {quantized}")
    say(f"wrote {output}")


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
        if name not in ("macs", "parameters", "size_bytes") or not 0 < costs[name] < 1:
            raise UserError(
                f"--target {target}: expected macs, parameters or size_bytes and a share of the "
                "original's cost between 0 and 1, such as macs=0.5. Targets of milliseconds need "
                "the pipeline."
            )
    return {"select": "budget", "target": costs} if costs else {"select": "vbmf"}


def _read_images(
    model: Path,
    shapes: Mapping[str, Sequence[int]],
    folder: Path,
    count: int,
    mean: str | None,
    std: str | None,
    resize: int | None,
    *,
    bgr: bool,
) -> list[np.ndarray]:
    """Return the images of a folder in batches. Raises UserError if the input is no image."""
    from lowrank.data.samples import images_in
    from lowrank.errors import UserError
    from lowrank.onnx_networks.model_file import input_shapes, read_model
    from lowrank.zoo.registry import NetworkSpec

    complete = input_shapes(model, read_model(model), shapes)
    (shape, *others) = complete.values()
    if others or len(shape) != 4 or shape[1] not in (1, 3):
        raise UserError(
            f"--images: {model} does not take one image, but inputs of the shapes "
            f"{ {name: list(sizes) for name, sizes in complete.items()} }. Give --samples."
        )
    channels, height, width = shape[1:]
    spec = NetworkSpec(
        str(model),
        (channels, height, width),
        0,
        mean=_numbers("--mean", mean, channels, 0.0),
        std=_numbers("--std", std, channels, 1.0),
        channel_order="bgr" if bgr else "rgb",
        resize=resize,
    )
    stack = images_in(folder, spec, count, "--images")
    return [stack[start : start + _BATCH] for start in range(0, len(stack), _BATCH)]


def _numbers(option: str, text: str | None, channels: int, default: float) -> tuple[float, ...]:
    from lowrank.errors import UserError

    if text is None:
        return (default,) * channels
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) != channels or (option == "--std" and not all(value > 0 for value in values)):
        kind = "positive numbers" if option == "--std" else "numbers"
        raise UserError(f"{option} {text}: expected {channels} {kind}, such as 0.5,0.5,0.5.")
    return values


def _read_samples(path: Path, count: int) -> list[Any]:
    """Return the arrays of a file in batches."""
    from lowrank.data.samples import arrays_in

    arrays = {name: array[:count] for name, array in arrays_in(path, "--samples").items()}
    total = len(next(iter(arrays.values())))
    batches = [
        {name: array[start : start + _BATCH] for name, array in arrays.items()}
        for start in range(0, total, _BATCH)
    ]
    # An .npy file holds a single array, for a network with one input.
    return [batch.get("", batch) for batch in batches]


def _length(batch: Any) -> int:
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch)


if __name__ == "__main__":
    compress()
