"""The ONNX files of one result that are measured, in the form in which they are measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lowrank.config.network_source import NetworkSource
from lowrank.files import sha256_of
from lowrank.onnx_networks.fixed_batch import write_fixed_batch


@dataclass(frozen=True)
class Models:
    """The ONNX files to measure.

    `quantized` is None without an int8 network. `control` is the original in int8. `named` are
    copies of the original and the compressed network with the names of layers, if they differ.
    `counted` are copies with the shapes of inner tensors, which counting needs, by their file.
    """

    original: Path
    compressed: Path
    quantized: Path | None
    control: Path
    named: tuple[Path, Path] | None = None
    counted: Mapping[Path, Path] = field(default_factory=dict)

    @contextmanager
    def in_measured_form(self, state: Path, source: NetworkSource) -> Iterator[Models]:
        """Provide the files as they are measured inside the block; see `measured_form`."""
        if not source.onnx:
            yield self
            return
        from lowrank.onnx_files.measured_form import measured_form
        from lowrank.surgery.states import read_spec

        spec = read_spec(state)
        with ExitStack() as stack:

            def fixed(path: Path, **options: bool) -> Path:
                return stack.enter_context(measured_form(path, spec, source, **options))

            in_float = (self.original, self.compressed)
            original, compressed = map(fixed, in_float)
            named = tuple(fixed(path, named_after_layers=True) for path in in_float)
            counted = (fixed(path, for_counting=True) for path in in_float)
            yield Models(
                original,
                compressed,
                fixed(self.quantized) if self.quantized else None,
                fixed(self.control),
                (named[0], named[1]),
                dict(zip((original, compressed), counted, strict=True)),
            )

    @contextmanager
    def with_batch(self, size: int | None) -> Iterator[Models]:
        """Provide the twins of the files with a fixed batch inside the block; `self` for None."""
        if size is None:
            yield self
            return
        with tempfile.TemporaryDirectory() as folder:

            def fixed(path: Path, place: str) -> Path:
                # Names are kept, because records contain them, and may occur twice.
                subfolder = Path(folder) / place
                subfolder.mkdir()
                return write_fixed_batch(path, subfolder / path.name, size)

            original = fixed(self.original, "original")
            compressed = fixed(self.compressed, "compressed")
            named = self.named and (
                fixed(self.named[0], "named_original"),
                fixed(self.named[1], "named_compressed"),
            )
            # Counting needs files with the batch that they have.
            yield Models(
                original,
                compressed,
                fixed(self.quantized, "quantized") if self.quantized else None,
                fixed(self.control, "control"),
                named,
                {
                    original: self.counted.get(self.original, self.original),
                    compressed: self.counted.get(self.compressed, self.compressed),
                },
            )

    @property
    def is_control(self) -> bool:
        """Whether the delivered network is the control, the original in int8."""
        return self.quantized is not None and sha256_of(self.quantized) == sha256_of(self.control)
