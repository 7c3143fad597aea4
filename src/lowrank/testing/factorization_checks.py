"""Check that a factorization keeps the contract of `lowrank.factorize.Factorization`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch

from lowrank.core.layers import PlainLayer, sequence_macs, sequence_parameters
from lowrank.factorize import (
    Decomposition,
    Factorization,
    Moments,
    decompose,
    grouped_sequence,
    one_group,
)
from lowrank.factorize.factorization import mistake_in
from lowrank.testing.contract import Check, require
from lowrank.testing.sample_layers import (
    LAYERS,
    LAYERS_WITH_MOMENTS,
    MAP,
    bias_of,
    convolved,
    described,
    images_for,
    kernel_of,
    moments_of,
    output_error,
    outputs_of,
)

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
# Rounding to float32 in several products.
_ROUNDING = 1e-6
_OUTPUT_ROUNDING = 1e-4


def check_factorization(
    factorization: Factorization, *, expected_failures: Mapping[str, str] | None = None
) -> None:
    """Check that a factorization keeps its contract, on small layers of each of its kinds.

    Parameters
    ----------
    factorization
        Factorization to check.
    expected_failures
        Checks that this factorization cannot pass, by their name, with the reason.

    Raises
    ------
    AssertionError
        With a line for each thing that is wrong: the check, the layer, the ranks, what was found,
        and what was expected. Also for a check that is expected to fail and passes.
    """
    name = getattr(factorization, "name", type(factorization).__name__)
    require(f"factorization '{name}'", CHECKS, _Sample(factorization), expected_failures)


class _Sample:
    """A factorization, and the layers on which it is checked."""

    def __init__(self, factorization: Factorization) -> None:
        self.method = factorization

    @cached_property
    def layers(self) -> list[PlainLayer]:
        """Layers that the factorization accepts."""
        kinds = [kind for kind in self.method.layer_kinds if kind in LAYERS]
        layers = [layer for kind in kinds for layer in LAYERS[kind]]
        return [layer for layer in layers if self.method.applies_to(layer) is None]

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        return self.method.full_ranks(one_group(layer))

    def ranks_at(self, layer: PlainLayer, share: float) -> tuple[int, ...]:
        """Return that share of the full ranks, adjusted to ranks that the factorization allows."""
        ranks = (max(1, round(share * rank)) for rank in self.full_ranks(layer))
        return self.method.consistent(one_group(layer), tuple(ranks))

    def ranks(self, layer: PlainLayer) -> list[tuple[int, ...]]:
        """Return several increasing choices of ranks, the full ranks last."""
        return list(dict.fromkeys(self.ranks_at(layer, share) for share in _SHARES))

    def decomposed(
        self,
        layer: PlainLayer,
        ranks: tuple[int, ...],
        kernel: np.ndarray | None = None,
        moments: Moments | None = None,
    ) -> Decomposition:
        """Decompose a layer with a kernel, by default one of normally distributed weights."""
        kernel = kernel_of(layer) if kernel is None else kernel
        return decompose(self.method, layer, kernel, bias_of(layer), ranks, moments)


def attributes(sample: _Sample) -> Iterator[str]:
    """Check the name, the names of the ranks and the kinds of layer."""
    name = getattr(sample.method, "name", None)
    if not (isinstance(name, str) and name.isidentifier()):
        yield f"`name` is {name!r}; expected letters, digits and underscores"
    if mistake := mistake_in(sample.method):
        yield f"it {mistake}"
    elif not sample.layers:
        layer = LAYERS[sample.method.layer_kinds[0]][0]
        yield (
            f"`applies_to` refuses every layer of the kinds {sample.method.layer_kinds}, such as "
            f"{described(layer)}: {sample.method.applies_to(layer)}; expected None for some"
        )


def full_ranks(sample: _Sample) -> Iterator[str]:
    """Check that there is a full rank for each name, which `consistent` keeps."""
    for layer in sample.layers:
        ranks, names = sample.full_ranks(layer), sample.method.rank_names
        if len(ranks) != len(names) or not all(isinstance(r, int) and r >= 1 for r in ranks):
            yield (
                f"{described(layer)}: `full_ranks` is {ranks}; expected a positive whole number "
                f"for each of {names}"
            )
        elif sample.method.consistent(one_group(layer), ranks) != ranks:
            changed = sample.method.consistent(one_group(layer), ranks)
            yield f"{described(layer)}: `consistent` changes the full ranks {ranks} to {changed}"


def consistent_ranks(sample: _Sample) -> Iterator[str]:
    """Check that `consistent` gives allowed ranks, and changes them no further."""
    for layer in sample.layers:
        group, full = one_group(layer), sample.full_ranks(layer)
        multiple = sample.method.rank_multiple
        for ranks in itertools.product(*({1, (rank + 1) // 2, rank} for rank in full)):
            once = sample.method.consistent(group, ranks)
            where = f"{described(layer)}: `consistent` gives {once} for {ranks}"
            if (twice := sample.method.consistent(group, once)) != once:
                yield f"{where}, and then {twice}; expected the same again"
            if not all(1 <= rank <= highest for rank, highest in zip(once, full, strict=True)):
                yield f"{where}; expected ranks from 1 to {full}"
            if any(rank % multiple for rank in once) and once != full:
                yield f"{where}; expected multiples of {multiple}"


def sequence(sample: _Sample) -> Iterator[str]:
    """Check that each plain layer fits the next one, and that only the last one has the bias."""
    for layer in sample.layers:
        group = one_group(layer)
        ranks = sample.ranks_at(layer, 0.5)
        plain = sample.method.sequence(group, ranks)
        where = f"{described(layer)} at ranks {ranks}"
        channels = [group.in_channels, *(p.out_channels for p in plain)]
        if channels[:-1] != [p.in_channels for p in plain] or channels[-1] != group.out_channels:
            pairs = ", ".join(f"{p.in_channels} to {p.out_channels}" for p in plain)
            yield (
                f"{where}: the layers have the channels {pairs}; expected a chain from "
                f"{group.in_channels} to {group.out_channels}"
            )
        biases = [p.bias for p in plain]
        if biases != [False] * (len(plain) - 1) + [group.bias]:
            yield f"{where}: the layers have biases {biases}; expected only that of the last layer"
        output_map = MAP
        for p in plain:
            output_map = p.output_map(output_map)
        if output_map != group.output_map(MAP):
            yield (
                f"{where}: a map of {MAP} becomes {output_map}; expected "
                f"{group.output_map(MAP)}, as in the layer"
            )


def factors(sample: _Sample) -> Iterator[str]:
    """Check that the kernels fit the plain layers and are finite."""
    for layer, ranks in _layers_with_ranks(sample):
        group = one_group(layer)
        expected = [plain.weight_shape for plain in sample.method.sequence(group, ranks)]
        kernel = kernel_of(group).astype(np.float64)
        found = sample.method.factors(kernel, ranks)
        where = f"{described(layer)} at ranks {ranks}"
        if [factor.shape for factor in found] != expected:
            shapes = [factor.shape for factor in found]
            yield f"{where}: the factors have the shapes {shapes}; expected {expected}"
        if any(factor.dtype.kind != "f" for factor in found):
            dtypes = [str(factor.dtype) for factor in found]
            yield f"{where}: the factors are {dtypes}; expected floating-point numbers"
        if not all(np.isfinite(factor).all() for factor in found):
            yield f"{where}: a factor has NaN or infinity; expected finite numbers"


def costs(sample: _Sample) -> Iterator[str]:
    """Check that the factors store, and their layers compute, what the sequence says."""
    for layer, ranks in _layers_with_ranks(sample):
        result = sample.decomposed(layer, ranks)
        plain = grouped_sequence(sample.method, layer, ranks)
        # Some weights cost nothing, because the exported file does not have them.
        free = sum(
            weight.size
            for one, weight in zip(plain, result.weights, strict=True)
            if not one.is_exported
        )
        stored = sum(tensor.size for tensor in result.tensors.values()) - free
        where = f"{described(layer)} at ranks {ranks}"
        if stored != sequence_parameters(plain):
            yield (
                f"{where}: the factors have {stored} numbers; expected "
                f"{sequence_parameters(plain)}, the parameters of the sequence"
            )
        maps = outputs_of(result, layer)
        macs = sum(
            weight.size * output.shape[2] * output.shape[3]
            for one, weight, output in zip(plain, result.weights, maps, strict=True)
            if one.is_exported
        )
        if macs != sequence_macs(plain, MAP):
            yield f"{where}: {macs} MACs are computed; expected {sequence_macs(plain, MAP)}"


def exact_at_full_rank(sample: _Sample) -> Iterator[str]:
    """Check that the factors compute what the layer computes, at full rank."""
    for layer in sample.layers:
        ranks = sample.full_ranks(layer)
        result = sample.decomposed(layer, ranks)
        where = f"{described(layer)} at full rank {ranks}"
        if not result.relative_error < _ROUNDING:
            yield f"{where}: the relative error is {result.relative_error:.2g}; expected 0"
        output = outputs_of(result, layer)[-1]
        exact = convolved(images_for(layer), layer, kernel_of(layer), bias_of(layer))
        if output.shape != exact.shape:
            shape = tuple(exact.shape)
            yield f"{where}: outputs have the shape {tuple(output.shape)}; expected {shape}"
        elif not torch.allclose(output, exact, rtol=0, atol=_OUTPUT_ROUNDING):
            difference = float((output - exact).abs().max())
            yield f"{where}: outputs differ by up to {difference:.2g} from those of the layer"


def error_falls_with_rank(sample: _Sample) -> Iterator[str]:
    """Check that higher ranks give a smaller error, which is below 1 from the start."""
    for layer in sample.layers:
        errors = {
            ranks: sample.decomposed(layer, ranks).relative_error for ranks in sample.ranks(layer)
        }
        for (lower, before), (higher, after) in itertools.pairwise(errors.items()):
            if not (after < before or max(before, after) < _ROUNDING):
                yield (
                    f"{described(layer)}: the relative error is {before:.3g} at ranks {lower} and "
                    f"{after:.3g} at {higher}; expected a smaller one at higher ranks"
                )
        lowest, error = next(iter(errors.items()))
        # A factorization without widths may keep nothing at its lowest rank.
        if not (0 <= error < 1 or (error == 1 and not sample.method.ranks_are_widths)):
            where = f"{described(layer)} at ranks {lowest}"
            yield f"{where}: the relative error is {error:.3g}; expected 0 to 1"


def degenerate_kernels(sample: _Sample) -> Iterator[str]:
    """Check that kernels of zeros, of one value, tiny and huge ones give bounded factors."""
    for layer in _one_of_each(sample):
        dense = kernel_of(layer).astype(np.float64)
        one_value, half = np.zeros_like(dense), dense.copy()
        one_value[0, 0, 0, 0] = 1
        half[::2] = 0
        kernels = {"zeros": 0 * dense, "equal values": np.ones_like(dense), "one value": one_value}
        kernels |= {"half of zeros": half, "tiny": dense * 1e-30, "huge": dense * 1e30}
        for (kind, kernel), share in itertools.product(kernels.items(), (0.1, 1.0)):
            ranks = sample.ranks_at(layer, share)
            result = sample.decomposed(layer, ranks, kernel.astype(np.float32))
            where = f"{described(layer)} at ranks {ranks}, kernel: {kind}"
            largest = max(1.0, 2 * float(np.linalg.norm(kernel)))
            if not all(np.isfinite(weight).all() for weight in result.weights):
                yield f"{where}: a factor has NaN or infinity; expected finite numbers"
            elif max(float(np.abs(weight).max()) for weight in result.weights) > largest:
                yield f"{where}: a factor exceeds twice the norm of the kernel"
            elif not 0 <= result.relative_error <= 1:
                yield f"{where}: the relative error is {result.relative_error:.3g}; expected 0 to 1"


def deterministic(sample: _Sample) -> Iterator[str]:
    """Check that the same kernel gives the same bytes."""
    for layer in _one_of_each(sample):
        ranks = sample.ranks_at(layer, 0.5)
        first, second = (sample.decomposed(layer, ranks) for _ in range(2))
        if any(
            one.tobytes() != other.tobytes()
            for one, other in zip(first.weights, second.weights, strict=True)
        ):
            yield f"{described(layer)} at ranks {ranks}: two calls give different factors"


def spectra(sample: _Sample) -> Iterator[str]:
    """Check that there is a spectrum for each rank, in descending order, or none at all."""
    for layer in _one_of_each(sample):
        group = one_group(layer)
        found, names = sample.method.spectra(kernel_of(group)), sample.method.rank_names
        if not found:
            continue
        if len(found) != len(names):
            yield f"{described(layer)}: {len(found)} spectra; expected one for each of {names}"
            continue
        for name, spectrum, full in zip(names, found, sample.full_ranks(layer), strict=True):
            values = spectrum.singular_values
            where = f"{described(layer)}: the spectrum of the rank '{name}'"
            if not len(values) == min(spectrum.rows, spectrum.columns) <= full:
                yield (
                    f"{where} has {len(values)} values for {spectrum.rows} x {spectrum.columns}; "
                    f"expected the smaller number, and at most the full rank {full}"
                )
            if (np.diff(values) > 0).any() or (values < 0).any():
                yield f"{where} is {values[:4]}...; expected singular values in descending order"


def kept_norm(sample: _Sample) -> Iterator[str]:
    """Check that `kept` promises no more than the factors keep, and all at full rank."""
    for layer in _one_of_each(sample):
        group = one_group(layer)
        kernel = kernel_of(group)
        kept, full = sample.method.kept(kernel), sample.full_ranks(layer)
        if kept is None:
            continue
        where, norm = described(group), float(np.square(kernel, dtype=np.float64).sum())
        if kept.shape != full:
            yield f"{where}: `kept` has the shape {kept.shape}; expected {full}, the full ranks"
            continue
        if not np.isclose(kept.flat[-1], norm, rtol=1e-5):
            yield f"{where}: `kept` is {kept.flat[-1]:.5g} at full rank; expected {norm:.5g}"
        for ranks in sample.ranks(group):
            error = sample.decomposed(group, ranks).relative_error
            promised, true = kept[tuple(rank - 1 for rank in ranks)], norm * (1 - error**2)
            if promised > true * (1 + 1e-5) + _ROUNDING * norm:
                yield (
                    f"{where} at ranks {ranks}: `kept` is {promised:.5g}; expected at most "
                    f"{true:.5g}, the squared norm that the factors keep"
                )


def moments(sample: _Sample) -> Iterator[str]:
    """Check that the moments of the inputs lower the error of the outputs, for both forms."""
    layers = [
        layer
        for kind in sample.method.layer_kinds
        for layer in LAYERS_WITH_MOMENTS[kind]
        if sample.method.applies_to(layer) is None
    ]
    for layer, in_patches in itertools.product(layers, (True, False)):
        ranks = sample.ranks_at(layer, 0.3)
        inputs = moments_of(layer, in_patches=in_patches)
        fitted = sample.decomposed(layer, ranks, moments=inputs)
        plain = sample.decomposed(layer, ranks)
        form = "patches" if in_patches else "channels"
        where = f"{described(layer)} at ranks {ranks}, moments of {form}"
        if not all(np.isfinite(weight).all() for weight in fitted.weights):
            yield f"{where}: a factor has NaN or infinity; expected finite numbers"
            continue
        after, before = (output_error(layer, result, inputs) for result in (fitted, plain))
        # A factorization without widths may keep nothing at its lowest rank.
        if not (after < before or (after == before and not sample.method.ranks_are_widths)):
            yield (
                f"{where}: the squared error of the outputs is {after:.3g}; expected less than "
                f"{before:.3g}, that of factors without moments"
            )


def _layers_with_ranks(sample: _Sample) -> Iterator[tuple[PlainLayer, tuple[int, ...]]]:
    for layer in sample.layers:
        for share in (0.1, 0.5, 1.0):
            yield layer, sample.ranks_at(layer, share)


def _one_of_each(sample: _Sample) -> list[PlainLayer]:
    """Return a layer of each kind, and a grouped one."""
    plain = {layer.kernel: layer for layer in reversed(sample.layers) if layer.groups == 1}
    grouped = [layer for layer in sample.layers if layer.groups > 1]
    return [*plain.values(), *grouped[:1]]


CHECKS: dict[str, Check[_Sample]] = {
    check.__name__: check
    for check in (
        attributes,
        full_ranks,
        consistent_ranks,
        sequence,
        factors,
        costs,
        exact_at_full_rank,
        error_falls_with_rank,
        degenerate_kernels,
        deterministic,
        spectra,
        kept_norm,
        moments,
    )
}
