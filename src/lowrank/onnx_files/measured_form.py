"""The form in which the files of a network are measured: with fixed sizes of the input."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank.config.network_source import NetworkSource
from lowrank.onnx_networks.fixed_batch import write_fixed_batch
from lowrank.onnx_networks.fixed_sizes import write_fixed
from lowrank.zoo.registry import NetworkSpec


@contextmanager
def measured_form(
    path: Path,
    spec: NetworkSpec,
    source: NetworkSource,
    *,
    batch: int | None = None,
    **options: bool,
) -> Iterator[Path]:
    """Provide a file for measurements of costs and latency inside the block.

    A file of lowrank is measured as it is, or its twin with a fixed batch. The graph of a user's
    ONNX file may leave sizes open, so a copy with the sizes of `spec` is measured.

    Parameters
    ----------
    path
        ONNX file of the network.
    spec
        Specification of its input.
    source
        How the network is built.
    batch
        Number of samples of a fixed batch axis; None leaves the axis open.
    options
        Options of `write_fixed`.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The name is kept, because messages and records contain it.
        copy = Path(folder) / path.name
        if source.onnx:
            path = write_fixed(path, copy, spec.sizes, **options)
        yield write_fixed_batch(path, copy, batch) if batch else path
