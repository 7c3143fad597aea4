"""Compress one network, an ONNX file or a PyTorch function, without a pipeline."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.steps.common import Step, say, share_processor
from lowrank.steps.input_options import input_option, shapes_of
from lowrank.steps.target_options import ranks_of

if TYPE_CHECKING:
    from lowrank.api import Compressed
    from lowrank.compression.named_network import NamedNetwork
    from lowrank.compression.one_file import MeasuredFile
    from lowrank.zoo.registry import NetworkSpec


@dataclass(frozen=True)
class _Wanted:
    """What the options ask for.

    Parameters
    ----------
    output
        File to write.
    ranks
        Settings of the rank rule, as in params.yaml; None for the recommended target.
    int8
        Whether the network is also written in int8.
    threads
        Threads of ONNX Runtime for the latency.
    """

    output: Path
    ranks: dict[str, Any] | None
    int8: bool
    threads: int

    @property
    def factorize(self) -> dict[str, Any]:
        """Factorizations, as in params.yaml: the recommended ones if there is a target."""
        from lowrank.compression.recommended import RECOMMENDED, TUCKER

        has_target = self.ranks is None or self.ranks["select"] == "budget"
        return dict(RECOMMENDED if has_target else TUCKER)


@click.command(cls=Step)
@click.argument("model")
@click.option(
    "--output",
    type=Path,
    required=True,
    help="The ONNX file to write. For a PyTorch function, a .safetensors file is also possible: "
    "the weights and factors, for further training.",
)
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
    "latency=0.5 (on this machine, one thread). Or accuracy_drop=0.5: the largest accuracy drop in "
    "points, estimated without labels. The default with samples is accuracy_drop=1, or 10 for the "
    "error of outputs that are not classes, in percent. Without samples, the ranks are those of "
    "EVBMF.",
)
@click.option(
    "--int8/--no-int8",
    default=None,
    help="Also write the network in int8. The default is --int8 if there are samples.",
)
@click.option(
    "--largest-drop",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="With a target of costs: share of the agreement with the original, above chance, that may "
    "be lost.",
)
@click.option("--threads", type=int, default=1, show_default=True, help="Threads for the latency.")
@click.option(
    "--write-params",
    is_flag=True,
    help="Add the entries that do the same in the pipeline to params.yaml in this folder.",
)
@input_option
def compress(
    model: str,
    output: Path,
    images: Path | None,
    samples: Path | None,
    count: int,
    mean: str | None,
    std: str | None,
    bgr: bool,
    resize: int | None,
    target: tuple[str, ...],
    int8: bool | None,
    largest_drop: float,
    threads: int,
    write_params: bool,
    inputs: tuple[str, ...],
) -> None:
    """Compress MODEL, and report what it cost and gained.

    MODEL is an ONNX file, or a function package.module:function in the current folder that returns
    a trained PyTorch network.

    Layers are replaced by factors that keep their outputs on the images, or lose input channels;
    nothing is trained. By default, the result is the fastest network on this machine that loses at
    most one point of accuracy.
    """
    share_processor()
    from lowrank.compression.file_samples import Preprocessing, image_batches, sample_batches
    from lowrank.compression.named_network import open_network

    has_samples = bool(images or samples)
    _require_consistent(images, samples, target, int8=bool(int8), write_params=write_params)
    ranks = ranks_of(target, largest_drop) if target or not has_samples else None
    wanted = _Wanted(output, ranks, has_samples if int8 is None else int8, threads)
    batches = sample_batches(samples, count) if samples else []
    with tempfile.TemporaryDirectory() as name:
        network = open_network(model, shapes_of(inputs), batches, Path(name))
        _require_output(output, network)
        spec = None
        if images:
            preprocessing = Preprocessing(mean, std, bgr, resize)
            batches, spec = image_batches(
                network.file, network.shapes, images, count, preprocessing
            )
        say(f"{model}: compressing with {sum(map(_length, batches))} samples")
        small = _compressed(network, batches, wanted)
        _measure(network, small, batches, wanted, Path(name))
        if images and spec:
            _say_entries(network, small, images, spec, count, wanted, write=write_params)


def _compressed(network: NamedNetwork, batches: list[Any], wanted: _Wanted) -> Compressed:
    """Return the compressed network, which is also written to a file."""
    import lowrank

    settings: dict[str, Any] = {"ranks": wanted.ranks, "int8": wanted.int8}
    if network.built is None:
        inputs = network.shapes or None
        small = lowrank.compress(network.file, inputs=inputs, images=batches or None, **settings)
        small.export(wanted.output)
        return small
    import torch

    built = network.built
    arrays = [
        next(iter(batch.values())) if isinstance(batch, Mapping) else batch for batch in batches
    ]
    images = [torch.tensor(array, dtype=torch.float32) for array in arrays] or None
    small = lowrank.compress(built.module, built.spec.input_shape, images=images, **settings)
    if wanted.output.suffix == ".safetensors":
        from lowrank.surgery.states import State, write_state

        state = State(built.spec, small.network, dict(small.factored), built.source)
        write_state(wanted.output, state)
    else:
        small.export(wanted.output)
    return small


def _measure(
    network: NamedNetwork, small: Compressed, batches: list[Any], wanted: _Wanted, folder: Path
) -> None:
    """Measure the compressed network, write it in int8 if wanted, and write the card."""
    from lowrank.compression.file_card import write_card
    from lowrank.compression.graph_network import GraphNetwork
    from lowrank.compression.int8_file import write_int8
    from lowrank.compression.one_file import FileMeasurements, warnings_about

    macs = _sentence_of_macs(small)
    say(macs)
    original = GraphNetwork.read(network.file, network.shapes, batches)
    size = f"{original.model.ByteSize() / 1e6:.2f} MB"
    say(f"original: {size}")
    measurements = FileMeasurements(original, wanted.threads, folder)
    measured: list[MeasuredFile] = []

    def measure(label: str, path: Path, **known: Any) -> MeasuredFile:
        measured.append(measurements.measure(label, path, **known))
        say(measured[-1].sentence())
        return measured[-1]

    def quantize(label: str, unquantized: GraphNetwork, path: Path) -> MeasuredFile:
        count = len(write_int8(unquantized, path))
        nodes = "node" if count == 1 else "nodes"
        return measure(f"{label} ({count} {nodes} in float)" if count else label, path)

    output, warnings, written = wanted.output, [], [wanted.output]
    path = output
    if output.suffix != ".onnx":
        path = folder / f"{output.stem}.onnx"
        small.export(path)
    # The outputs of a file have been compared when it was compressed.
    known = {} if network.built else {"change": small.expected}
    in_float = measure("compressed", path, **known)
    if wanted.int8:
        quantize("original in int8", original, folder / "control.onnx")
        quantized = output.with_name(f"{output.stem}_int8.onnx")
        factored = GraphNetwork.read(path, original.shapes, original.batches)
        warnings = warnings_about(quantize("compressed, in int8", factored, quantized), in_float)
        written.append(quantized)
        for warning in warnings:
            say(warning)
    card = output.with_suffix(".md")
    write_card(
        card,
        original=f"`{network.label}` ({size})",
        command=" ".join(["lowrank", *map(shlex.quote, sys.argv[1:])]),
        macs=macs,
        measured=measured,
        warnings=warnings,
        layers=small.layers,
    )
    say(f"wrote {', '.join(map(str, written))} and {card}")


def _sentence_of_macs(small: Compressed) -> str:
    before, after = small.macs
    replaced = [layer for layer in small.layers if not layer.is_dense]
    sentence = (
        f"{len(replaced)} of {len(small.layers)} layers replaced: {before / 1e6:.1f} M -> "
        f"{after / 1e6:.1f} M MACs, {100 * after / before:.0f} % of the network's are left"
    )
    if not replaced:
        return sentence
    dense, factored = (sum(layer.macs[i] for layer in replaced) for i in (0, 1))
    return f"{sentence} ({100 * factored / dense:.0f} % in the replaced layers)"


def _say_entries(
    network: NamedNetwork,
    small: Compressed,
    images: Path,
    spec: NetworkSpec,
    count: int,
    wanted: _Wanted,
    *,
    write: bool,
) -> None:
    """Say which entries of params.yaml do the same in the pipeline, or add them."""
    from lowrank.compression.pipeline_entry import (
        append,
        command_for,
        entries_for,
        name_from,
        text_of,
    )
    from lowrank.zoo.weight_files import write_weights

    entry: dict[str, Any] = {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "channel_order": spec.channel_order,
    }
    if spec.resize:
        entry["resize"] = spec.resize
    name, weights = network.file.stem, network.label
    if network.built:
        name = name_from(network.label)
        weights = f"{name}.safetensors"
        shape = list(network.built.spec.input_shape)
        entry = {"factory": network.label, "input_shape": shape} | entry
    elif network.shapes:
        entry = {"inputs": {key: list(shape) for key, shape in network.shapes.items()}} | entry
    factorize = wanted.factorize | {"norm": "activation", "images": count}
    entries = entries_for(
        name,
        weights,
        images,
        network=entry,
        factorize=factorize,
        ranks=small.ranks,
        int8=wanted.int8,
    )
    if write:
        append(entries, Path("params.yaml"))
        if network.built:
            write_weights(weights, network.built.module)
            say(f"wrote the weights of the original to {weights}")
        say(f"added entries to params.yaml; in the pipeline: {command_for(entries)}")
        return
    say(f"in the pipeline, `{command_for(entries)}` with these entries in params.yaml:")
    click.echo(text_of(entries), err=True)
    if network.built:
        say(f"--write-params adds them, and writes the weights to {weights}")


def _require_consistent(
    images: Path | None,
    samples: Path | None,
    target: Sequence[str],
    *,
    int8: bool,
    write_params: bool,
) -> None:
    """Raise UserError for options that exclude or need each other."""
    from lowrank.errors import UserError

    if images and samples:
        raise UserError("--images, --samples: both are given. Give one of them.")
    if not (images or samples) and (target or int8):
        option = "--target" if target else "--int8"
        raise UserError(f"{option}: needs samples of the input. Give --images or --samples.")
    if write_params and not images:
        raise UserError("--write-params: the pipeline needs a folder of images. Give --images.")
    if write_params and not Path("params.yaml").is_file():
        raise UserError("--write-params: no params.yaml here. Run it in the folder of a project.")


def _require_output(output: Path, network: NamedNetwork) -> None:
    """Raise UserError if the output cannot be written, or would replace the original."""
    from lowrank.errors import UserError

    suffixes = (".onnx", ".safetensors") if network.built else (".onnx",)
    if output.suffix not in suffixes:
        raise UserError(
            f"--output {output}: expected a file name that ends with {' or '.join(suffixes)}."
        )
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: {output.parent} is no folder. Create it first.")
    if output.exists() and output.samefile(network.file):
        raise UserError(f"--output {output}: is the original. Give another file name.")


def _length(batch: Any) -> int:
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch)


if __name__ == "__main__":
    compress()
