"""Measure how much the outputs of an ONNX network change when one of its layers is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from lowrank.core.background import in_background
from lowrank.core.output_change import OutputSums, ReferenceOutputs
from lowrank.core.progress import Progress
from lowrank.core.tensors import length
from lowrank.errors import UserError
from lowrank.factorize import Decomposition
from lowrank.onnx_networks.graph_factors import put_factors
from lowrank.onnx_networks.graph_layers import Site
from lowrank.onnx_networks.graph_parts import GraphParts, TensorForm, end_of
from lowrank.onnx_networks.model_run import Feed, ModelRun, only_outputs, workers_for, zeros

# Memory limit for the tensors of the original network that are kept. The layers whose inputs fit
# are measured after one pass over the samples.
_RECORDED_BYTES = 1_000_000_000

# Memory limit for the factors of a group of replacements.
_GROUP_BYTES = 300_000_000

Values = Mapping[str, np.ndarray]
Replacement = tuple[str, Decomposition]


class GraphDivergence:
    """Mean divergence between the outputs of the original and of the changed network.

    A layer only changes what is behind it, so for each replacement only the factors and the nodes
    behind the layer run. What they read from the rest of the network is recorded in one pass for
    several layers.

    Parameters
    ----------
    model
        The network. It is not changed.
    sites
        Its layers by name.
    samples
        Inputs by name, in pieces that fit in one run.
    shapes
        Shape of each input for one sample.
    label
        Name of the network for messages.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        sites: Mapping[str, Site],
        samples: Sequence[Feed],
        shapes: Mapping[str, Sequence[int]],
        label: str,
    ) -> None:
        self._model, self._sites, self._samples = model, sites, samples
        self._shapes, self._label = shapes, label
        self._parts = GraphParts(model)
        self._outputs = [output.name for output in model.graph.output]
        self._one_sample = self._values_of_one_sample()

    def __call__(self, replacements: Iterable[Replacement]) -> Iterator[float]:
        """Yield the divergence for each replacement: the name of a layer and its factors.

        The result is the mean of `OutputChange.divergence` over the outputs.
        """
        group = _Group()
        for name, factors in replacements:
            reads = self._reads(name)
            if group.replacements and not self._fits(group, reads):
                yield from self._measured(group)
                group = _Group()
            group.add(name, factors, reads)
        if group.replacements:
            yield from self._measured(group)

    def _values_of_one_sample(self) -> dict[str, Any]:
        """Return the tensors that may be recorded, from a run on zeros.

        None of them is returned if ONNX Runtime cannot give one of them out.
        """
        inner = [name for site in self._sites.values() for name in self._parts.reads_at(site)]
        inner += map(end_of, self._sites.values())
        feed = zeros(self._model, self._shapes)
        try:
            run = ModelRun(self._model, self._label, inner=[n for n in inner if n not in feed])
            return {**feed, **run(feed)}
        except UserError:
            return {**feed, **ModelRun(self._model, self._label)(feed)}

    def _reads(self, name: str) -> tuple[str, ...]:
        """Return what the parts at a layer read from the rest; nothing if it cannot be recorded."""
        reads = self._parts.reads_at(self._sites[name])
        needed = (*reads, end_of(self._sites[name]))
        # Sequences of tensors are no arrays.
        can_record = all(isinstance(self._one_sample.get(n), np.ndarray) for n in needed)
        return reads if can_record else ()

    def _fits(self, group: _Group, reads: Sequence[str]) -> bool:
        recorded = self._bytes({*group.reads, *reads})
        return group.factor_bytes <= _GROUP_BYTES and recorded <= _RECORDED_BYTES

    def _bytes(self, names: Iterable[str]) -> float:
        """Return the memory of tensors and of the outputs for all samples."""
        # The outputs are kept in the form that comparisons need, at twice their size.
        kept = [*names, *self._outputs, *self._outputs]
        arrays = [self._one_sample[name] for name in kept]
        samples = sum(map(length, self._samples)) / max(length(zeros(self._model, self._shapes)), 1)
        return samples * sum(getattr(array, "nbytes", 0) for array in arrays)

    def _measured(self, group: _Group) -> list[float]:
        sums = [OutputSums(only_divergence=True) for _ in group.replacements]
        names = dict.fromkeys((*group.reads, *self._outputs)).keys() - self._shapes.keys()
        run = ModelRun(only_outputs(self._model, sorted(names)), self._label)
        progress = Progress(len(sums) * len(self._samples), "runs with one layer decomposed")
        for pieces in self._portions(group.reads):
            values = [{**piece, **run(piece)} for piece in pieces]
            references = [
                ReferenceOutputs({name: piece[name] for name in self._outputs}) for piece in values
            ]
            for name, numbers in group.by_layer().items():
                changed = [(sums[number], group.replacements[number][1]) for number in numbers]
                self._add(self._sites[name], changed, values, references)
                progress.advance(len(changed) * len(values))
        return [total.divergence() for total in sums]

    def _portions(self, reads: Iterable[str]) -> Iterator[list[Feed]]:
        """Yield the samples, divided if the recorded tensors of one layer exceed the memory."""
        portions = int(-(-self._bytes(reads) // _RECORDED_BYTES))
        size = -(-len(self._samples) // max(portions, 1))
        for start in range(0, len(self._samples), size):
            yield list(self._samples[start : start + size])

    def _add(
        self,
        site: Site,
        changed: Sequence[tuple[OutputSums, Decomposition]],
        values: Sequence[Values],
        references: Sequence[ReferenceOutputs],
    ) -> None:
        """Add the outputs with a layer replaced in several ways."""
        layer, behind = self._model, None
        workers, threads = workers_for(len(values))
        if self._reads(site.layer.name):
            layer, behind = self._divided(site, values, threads)
        for sums, factors in changed:
            replaced = onnx.ModelProto()
            replaced.CopyFrom(layer)
            put_factors(replaced, site, factors.sequence, factors.tensors)
            run = ModelRun(replaced, self._label, threads=threads)

            def outputs_of(piece: Values, run: ModelRun = run) -> Values:
                tensors = {**piece, **run(piece)}
                if behind is not None:
                    tensors |= behind(tensors)
                return {name: tensors[name] for name in self._outputs}

            outputs = in_background(outputs_of, values, workers)
            for of_piece, reference in zip(outputs, references, strict=True):
                sums.add(of_piece, reference)

    def _divided(
        self, site: Site, values: Sequence[Values], threads: int
    ) -> tuple[onnx.ModelProto, ModelRun | None]:
        """Return the network of a layer alone, and what is behind it."""
        taken = self._reads(site.layer.name)
        batches = [{name: TensorForm.of(piece[name]) for name in taken} for piece in values]
        layer = self._parts.layer(site, batches)
        run, end = ModelRun(layer, self._label), end_of(site)
        for batch, piece in zip(batches, values, strict=True):
            batch[end] = TensorForm.of(run(piece)[end])
        behind = self._parts.behind(site, batches)
        return layer, None if behind is None else ModelRun(behind, self._label, threads=threads)


@dataclass
class _Group:
    """Replacements that are measured together, and what is recorded for them."""

    replacements: list[Replacement] = field(default_factory=list)
    reads: dict[str, None] = field(default_factory=dict)
    factor_bytes: int = 0

    def add(self, name: str, factors: Decomposition, reads: Iterable[str]) -> None:
        self.replacements.append((name, factors))
        self.reads |= dict.fromkeys(reads)
        self.factor_bytes += sum(tensor.nbytes for tensor in factors.tensors.values())

    def by_layer(self) -> dict[str, list[int]]:
        """Return the numbers of the replacements of each layer."""
        numbers: dict[str, list[int]] = {}
        for number, (name, _) in enumerate(self.replacements):
            numbers.setdefault(name, []).append(number)
        return numbers
