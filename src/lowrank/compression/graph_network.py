"""A network in the form of an ONNX graph, while it is compressed in memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lowrank.compression.graph_moments import graph_moments, graph_shift
from lowrank.compression.loss_samples import divided, enough, held_out, spread
from lowrank.core.background import in_background
from lowrank.core.layers import LayerTable
from lowrank.core.output_change import OutputChange, OutputSums, ReferenceOutputs
from lowrank.core.plans import Expected
from lowrank.core.tensors import length, pieces
from lowrank.errors import UserError
from lowrank.evaluation.comparison import change_of_outputs
from lowrank.factorize import Decomposition, Moments, Shift
from lowrank.onnx_networks.channel_removal import remove_unread_channels
from lowrank.onnx_networks.graph_divergence import GraphDivergence
from lowrank.onnx_networks.graph_factors import put_factors
from lowrank.onnx_networks.graph_layers import (
    Constants,
    Site,
    find_sites,
    table_of,
    weight_and_bias,
)
from lowrank.onnx_networks.model_file import input_shapes, inputs_of, read_model
from lowrank.onnx_networks.model_run import (
    Feed,
    ModelRun,
    leaves_batch_open,
    samples_per_run,
    workers_for,
)


def _feed(label: str, names: Sequence[str], batch: Any) -> dict[str, Any]:
    """Return a batch by the name of its input."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if len(names) != 1:
        raise UserError(
            f"{label}: has {len(names)} inputs, {', '.join(map(repr, names))}, but one value was "
            "given. Give a mapping from their names."
        )
    return {names[0]: batch}


# Size of the inputs of all layers up to which samples run together. With several times more, the
# processor waits for memory: a text recognition network is half as fast with 32 lines as with 4.
_INPUT_BYTES = 80e6


def _bytes_of_inputs(sites: Sequence[Site]) -> float:
    """Return the size of the inputs of all layers for one sample, in float32."""
    layers = [site.layer for site in sites]
    return 4.0 * sum(prod(layer.input_map) * layer.in_channels for layer in layers) or 1.0


@dataclass
class GraphNetwork:
    """An ONNX network, its layers, and samples of its inputs.

    Parameters
    ----------
    model
        The network. `replace` changes it.
    sites
        Its layers, from `find_sites`.
    shapes
        Shape of each input for one sample.
    label
        Name of the network for messages.
    batches
        Inputs by name, as the network expects them, in pieces that run fast; empty without samples.
    obstacles
        Reasons why further layers must stay, by name. There are none: a node computes the same
        whatever its neighbors are.
    """

    model: onnx.ModelProto
    sites: Sequence[Site]
    shapes: Mapping[str, Sequence[int]]
    label: str
    batches: Sequence[Feed] = ()
    obstacles: Mapping[str, str] = field(default_factory=dict)
    _by_name: dict[str, Site] = field(init=False)

    def __post_init__(self) -> None:
        self._by_name = {site.layer.name: site for site in self.sites}

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        shapes: Mapping[str, Sequence[int]] | tuple[int, ...] | None,
        batches: Sequence[np.ndarray | Feed],
    ) -> GraphNetwork:
        """Read an ONNX file, and find the layers that factors can replace.

        Parameters
        ----------
        path
            The file.
        shapes
            Shape of each input for one sample, where the file leaves sizes open; a tuple is the
            shape of the only input. By default, the shapes in the first batch.
        batches
            Samples of the inputs: arrays for a network with one input, else mappings from names.

        Raises
        ------
        UserError
            If the file cannot be used (see `read_model`), if a size is neither in the file nor
            given, if a batch does not name its inputs, or if ONNX Runtime cannot run the network.
        """
        label, model = os.fspath(path), read_model(path)
        names = [entry.name for entry in inputs_of(model)]
        feeds = [_feed(label, names, batch) for batch in batches]
        if isinstance(shapes, tuple):
            shapes = _feed(label, names, shapes)
        if not shapes and feeds:
            batch_sizes = {
                entry.name: entry.type.tensor_type.shape.dim[0].dim_value
                for entry in inputs_of(model)
                if entry.type.tensor_type.shape.dim
            }
            shapes = {
                name: (max(batch_sizes.get(name, 1), 1), *array.shape[1:])
                for name, array in feeds[0].items()
            }
        complete = input_shapes(label, model, shapes)
        sites = find_sites(model, complete, label)
        if leaves_batch_open(model, complete):
            size = max(int(_INPUT_BYTES // _bytes_of_inputs(sites)), 1)
            feeds = [piece for feed in feeds for piece in pieces(feed, size)]
        return cls(model, sites, complete, label, feeds)

    @property
    def table(self) -> LayerTable:
        """The layer table."""
        return table_of(self.sites, self.shapes, self.label)

    def copy(self) -> GraphNetwork:
        """Return a network that `replace` can change, with the same samples."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return GraphNetwork(model, self.sites, self.shapes, self.label, self.batches)

    @property
    def divergence_unit(self) -> str:
        """Unit of the divergence: none, because outputs of several kinds are averaged."""
        return ""

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the kernel and the bias of a layer in float32."""
        return weight_and_bias(self._by_name[name], Constants(self.model.graph))

    def replace(self, name: str, factors: Decomposition) -> None:
        """Replace a layer by its factors."""
        put_factors(self.model, self._by_name[name], factors.sequence, factors.tensors)

    def remove_unread_channels(self) -> None:
        """Remove channels that no layer reads any more; `replace` must not be called afterwards."""
        remove_unread_channels(self.model)

    def moments(self, names: Iterable[str]) -> dict[str, Moments]:
        """Return the moments of the inputs of some layers. Raises UserError without samples."""
        sites = [self._by_name[name] for name in names]
        return graph_moments(self.model, sites, self.batches, self.shapes, self.label)

    def drifts(
        self, original: GraphNetwork, names: Iterable[str]
    ) -> Generator[tuple[str, Moments, Shift]]:
        """Yield layers in the order of the graph, with the moments and the shift of their inputs.

        The caller replaces a layer before it takes the next one.
        """
        wanted = set(names)
        for site in self.sites:
            if (name := site.layer.name) in wanted:
                moments, shift = graph_shift(
                    original.model, self.model, site, self.batches, self.shapes, self.label
                )
                yield name, moments, shift

    def divergence(self) -> Callable[[Iterable[tuple[str, Decomposition]]], Iterable[float]]:
        """Return a function that measures how much each replaced layer changes the outputs.

        The result is the mean of `OutputChange.divergence` over the outputs, for a part of the
        samples that is spread evenly over them.
        """
        samples = self._part(enough([site.layer for site in self.sites]))
        return GraphDivergence(self.model, self._by_name, samples, self.shapes, self.label)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(map(length, self.batches))

    def with_samples_of(self, other: GraphNetwork) -> GraphNetwork:
        """Return this network with the samples of another one."""
        return dataclasses.replace(self, batches=other.batches)

    def divided(self, count: int | None = None) -> tuple[GraphNetwork, GraphNetwork]:
        """Return the network with samples for factors, and with other samples for their losses.

        `count` is the number of the other samples; by default, losses are measured on enough. With
        few samples, or batches of a fixed size, both have all samples.
        """
        lengths = [length(batch) for batch in self.batches]
        if count is None:
            count = held_out([site.layer for site in self.sites], sum(lengths))
        if not count or not leaves_batch_open(self.model, self.shapes):
            return self, self
        others = [
            {name: array[rows] for name, array in batch.items()}
            for batch, (_, rows) in zip(self.batches, divided(lengths, count), strict=True)
            if len(rows)
        ]
        return (
            dataclasses.replace(self, batches=others),
            dataclasses.replace(self, batches=spread(self.batches, count)),
        )

    def changes_from(
        self, original: GraphNetwork, most: int | None = None
    ) -> dict[str, OutputChange]:
        """Return the change of each output from the original network on the samples.

        `most` limits the number of samples.
        """
        samples = self._pieces() if most is None else self._part(most)
        workers, threads = workers_for(len(samples))
        before, now = (
            ModelRun(network.model, network.label, threads=threads) for network in (original, self)
        )

        def compared(piece: Feed) -> tuple[Feed, ReferenceOutputs]:
            return now(piece), ReferenceOutputs(before(piece))

        sums = OutputSums()
        for outputs, reference in in_background(compared, samples, workers):
            sums.add(outputs, reference)
        return sums.changes()

    def write_fixed(self, path: Path) -> None:
        """Write the network with the sizes of one sample."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        for entry in inputs_of(copy):
            dimensions = entry.type.tensor_type.shape.dim
            for dimension, size in zip(dimensions, self.shapes[entry.name], strict=True):
                dimension.dim_value = size
        path.write_bytes(copy.SerializeToString())

    def expected_from(self, original: GraphNetwork, most: int | None = None) -> Expected | None:
        """Return the change of the outputs; None without samples. `most` as in `changes_from`."""
        if not self.batches:
            return None
        count = sum(map(length, self.batches))
        return change_of_outputs(self.changes_from(original, most), min(count, most or count))

    def in_int8(self) -> GraphNetwork:
        """Return the network with all nodes in int8, to measure its outputs."""
        # Only here, because ONNX Runtime's quantization takes seconds to import.
        from lowrank.compression.int8_file import in_int8

        return dataclasses.replace(self, model=in_int8(self))

    def _part(self, count: int) -> list[Feed]:
        """Return a subset of the samples, taken at even distances.

        It has `count` samples, or a few more if the network only takes batches of a fixed size.
        """
        is_open = leaves_batch_open(self.model, self.shapes)
        multiple = 1 if is_open else max(shape[0] for shape in self.shapes.values())
        return spread(self._pieces(), count, multiple=multiple)

    def _pieces(self) -> list[Feed]:
        """Return the samples in pieces that fit in one run. Raises UserError without samples."""
        if not self.batches:
            raise UserError(
                f"{self.label}: measuring the change of outputs needs samples of the inputs, but "
                "`images` is None. Pass some, or use another rank rule."
            )
        size = samples_per_run(ModelRun(self.model, self.label), self.model, self.shapes)
        return [piece for batch in self.batches for piece in pieces(batch, size)]
