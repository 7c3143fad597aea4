"""Show the layers of one network, where its time goes, and what factors could save."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.steps.common import Step, share_processor
from lowrank.steps.input_options import input_option, shapes_of

if TYPE_CHECKING:
    from lowrank.compression.analysis import Analysis, AnalyzedLayer
    from lowrank.core.layers import Layer

_COLUMNS = ("layer", "shape", "MACs", "%", "ms", "%", "EVBMF ranks", "MACs with factors")


@click.command(cls=Step)
@click.argument("model")
@input_option
@click.option("--threads", type=int, default=1, show_default=True, help="Threads for the latency.")
@click.option(
    "--seconds",
    type=float,
    default=2.0,
    show_default=True,
    help="Time for the measurement of latencies; 0 to skip it.",
)
def analyze(model: str, inputs: tuple[str, ...], threads: int, seconds: float) -> None:
    """Show the layers of MODEL, and what factors could save.

    MODEL is an ONNX file, or a function package.module:function in the current folder that returns
    a PyTorch network, which is exported.

    The ranks are those of EVBMF, an estimate from the weights alone (Nakajima et al. 2013).
    """
    share_processor()
    from lowrank.compression.analysis import analyze_model
    from lowrank.compression.named_network import open_network
    from lowrank.compression.recommended import TUCKER
    from lowrank.devices import DeviceError
    from lowrank.errors import UserError

    with tempfile.TemporaryDirectory() as folder:
        network = open_network(model, shapes_of(inputs), [], Path(folder))
        try:
            analysis = analyze_model(
                network.file, network.shapes, TUCKER, threads=threads, seconds=seconds
            )
        except DeviceError as error:
            raise UserError(str(error)) from error
    click.echo(report(model, analysis))


def report(model: str, analysis: Analysis) -> str:
    """Return the analysis of a network as text: a table, and sentences about the whole."""
    rows = [_COLUMNS, *(_row(entry, analysis) for entry in analysis.layers)]
    if analysis.milliseconds is not None and analysis.rest_milliseconds is not None:
        share = _percent(analysis.rest_milliseconds, analysis.milliseconds)
        rest = ("other nodes", "", "", "", f"{analysis.rest_milliseconds:.3f}", share, "", "")
        rows.append(rest)
    before, after = analysis.macs
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in analysis.shapes.items())
    latency = (
        "" if analysis.milliseconds is None else f", {analysis.milliseconds:.2f} ms for one sample"
    )
    sentences = [
        f"{model}: {analysis.size_bytes / 1e6:.1f} MB, operator set {analysis.opset}, "
        f"{len(analysis.layers)} layers, {before / 1e6:.1f} M MACs{latency}; inputs {shapes}",
        "",
        *_aligned(rows),
        "",
    ]
    if before:
        sentences.append(
            f"At the ranks of EVBMF, factors leave {100 * after / before:.0f} % of the MACs. Fewer "
            "MACs do not guarantee a faster network; compress it and measure."
        )
    return "\n".join(sentences)


def _row(entry: AnalyzedLayer, analysis: Analysis) -> tuple[str, ...]:
    layer, planned = entry.layer, entry.planned
    macs, (total, _) = layer.dense_macs, analysis.macs
    has_latency = entry.milliseconds is not None and analysis.milliseconds is not None
    ranks, saved = "", layer.not_factored or "no factorization for this kind of layer"
    if planned and planned.dense_because:
        saved = planned.dense_because
    elif planned:
        ranks = ", ".join(map(str, planned.ranks))
        saved = f"{100 * planned.macs[1] / macs:.0f} % ({planned.factorization})"
    return (
        layer.name,
        _shape(layer),
        f"{macs / 1e6:.2f} M",
        _percent(macs, total),
        f"{entry.milliseconds:.3f}" if has_latency else "",
        _percent(entry.milliseconds or 0.0, analysis.milliseconds or 0.0) if has_latency else "",
        ranks,
        saved,
    )


def _shape(layer: Layer) -> str:
    """Return channels, window, stride and groups: `64 > 128, 3x3 /2, 4 groups`."""
    text = f"{layer.in_channels} > {layer.out_channels}"
    if layer.kernel != (1, 1):
        text += f", {layer.kernel[0]}x{layer.kernel[1]}"
    if layer.stride != (1, 1):
        text += f" /{layer.stride[0]}" + (
            f"x{layer.stride[1]}" if layer.stride[0] != layer.stride[1] else ""
        )
    return text + (f", {layer.groups} groups" if layer.groups > 1 else "")


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines of aligned columns, numbers at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if 2 <= number <= 5 else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


if __name__ == "__main__":
    analyze()
