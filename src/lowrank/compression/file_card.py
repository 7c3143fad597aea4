"""A page beside a compressed network that says what was done and what it cost and gained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowrank.compression.one_file import MeasuredFile
from lowrank.core.plans import PlannedLayer
from lowrank.devices.processor import Processor
from lowrank.files import write_text


def write_card(
    path: Path,
    *,
    original: str,
    command: str,
    macs: str,
    measured: Sequence[MeasuredFile],
    warnings: Sequence[str],
    layers: Sequence[PlannedLayer],
) -> None:
    """Write the page in Markdown.

    Parameters
    ----------
    path
        The page.
    original
        The original network and its size.
    command
        The command that made the file.
    macs
        A sentence about the MACs that are left.
    measured
        The files that were measured against the original.
    warnings
        Why one of them should not be used.
    layers
        The layers that the method factors.
    """
    replaced = [layer for layer in layers if not layer.is_dense]
    rows = [
        f"| {layer.name} | {layer.factorization} | {', '.join(map(str, layer.ranks))} "
        f"| {layer.macs[0] / 1e6:.2f} | {layer.macs[1] / 1e6:.2f} |"
        for layer in replaced
    ]
    kept = [f"- {layer.name}: {layer.dense_because}" for layer in layers if layer.is_dense]
    lines = [
        f"# {path.stem}",
        "",
        f"Made from {original} by low-rank decomposition, without training: `{command}`",
        "",
        f"{macs}.",
        "",
        f"Measured with ONNX Runtime on {Processor.here().cpu}:",
        "",
        *(f"- {file.sentence()}" for file in measured),
        *(f"- {warning}" for warning in warnings),
        "",
        "## Replaced layers",
        "",
        "| layer | factorization | ranks | M MACs before | after |",
        "|---|---|---|---:|---:|",
        *rows,
        *(["", "Considered, but unchanged:", "", *kept] if kept else []),
    ]
    write_text(path, "\n".join(lines) + "\n")
