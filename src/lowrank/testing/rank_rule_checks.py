"""Check that a rank rule keeps the contract of `lowrank.ranks.rule.RankRule`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import PlannedLayer
from lowrank.factorize import Decomposition, get_factorization, one_group
from lowrank.ranks.choice import ChosenRanks, RankChoice
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import RULES, Candidate, RankRule, mistake_in
from lowrank.testing.contract import Check, require

# Layers of the checked network, and the factorization of each.
LAYERS = {
    "wide": Layer(16, 24, kernel=(3, 3), padding=(1, 1), input_map=(8, 8), name="wide"),
    "narrow": Layer(24, 16, kernel=(3, 3), padding=(1, 1), input_map=(8, 8), name="narrow"),
    "grouped": Layer(
        32, 32, kernel=(3, 3), padding=(1, 1), input_map=(8, 8), name="grouped", groups=2
    ),
    "matrix": Layer(64, 40, name="matrix", kind="linear"),
}
FACTORIZATIONS = {
    "wide": "tucker2",
    "narrow": "spatial_svd",
    "grouped": "tucker2",
    "matrix": "svd",
}
_TABLE = LayerTable("network", (16, 8, 8), tuple(LAYERS.values()))


def check_rank_rule(
    rule: RankRule[Any],
    settings: Mapping[str, Any] | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Check that a rank rule keeps its contract, on a network with four small layers.

    The layers are the convolutions `wide`, `narrow` and `grouped`, and the linear layer `matrix`.

    Parameters
    ----------
    rule
        Rule to check.
    settings
        Entries of `ranks`, for a rule that cannot do without, such as `{"ratio": 3.0}`.
    expected_failures
        Checks that this rule cannot pass, by their name, with the reason.

    Raises
    ------
    AssertionError
        With a line for each thing that is wrong: the check, the layer, what was found, and what was
        expected. Also for a check that is expected to fail and passes.
    """
    name = getattr(rule, "name", type(rule).__name__)
    sample = _Sample(rule, dict(settings or {}))
    require(f"rank rule '{name}'", CHECKS, sample, expected_failures)


@dataclass
class _Sample:
    """A rule, and the entries of its settings."""

    rule: RankRule[Any]
    entries: dict[str, Any]

    @cached_property
    def settings(self) -> RankSettings:
        return self.rule.settings.model_validate(self.entries)

    def chosen(self, settings: RankSettings | None = None) -> ChosenRanks:
        """Choose the ranks of all layers, as a round does."""
        choice = RankChoice(_Network(), _TABLE, FACTORIZATIONS, FACTORIZATIONS)
        with RULES.added(self.rule):
            return choice.at(settings or self.settings, say=lambda _: None)

    def candidates(self, kernel_of: Callable[[str], np.ndarray]) -> Iterator[Candidate]:
        """Yield each layer, for a rule that looks at one layer at a time."""
        if self.rule.looks_at_all_layers:
            return
        for name, layer in LAYERS.items():
            method = get_factorization(FACTORIZATIONS[name])
            yield Candidate(layer, kernel_of(name), method, method.full_ranks(one_group(layer)))


class _Network:
    """A network whose loss is the relative error of the one layer that is decomposed."""

    divergence_unit = "nats"

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        return kernel_of(name), None

    def factored(self, name: str) -> None:
        return None

    def moments(self, name: str) -> None:
        return None

    def losses(self, replacements: Iterable[tuple[str, Decomposition]]) -> dict[str, float]:
        return {name: result.relative_error + 0.01 for name, result in replacements}

    def divergence(self) -> Callable[[Iterable[tuple[str, Decomposition]]], Iterable[float]]:
        return lambda replacements: [result.relative_error**2 for _, result in replacements]

    def expected(self, replacements: Iterable[tuple[str, Decomposition]]) -> None:
        return None


def kernel_of(name: str) -> np.ndarray:
    """Return a kernel of low rank with noise, float32, (T, S / g, D_h, D_w)."""
    layer = LAYERS[name]
    outputs, inputs, height, width = layer.weight_shape
    generator = np.random.default_rng(len(name))
    left, right = generator.standard_normal((outputs, 4)), generator.standard_normal((4, inputs))
    low_rank = np.einsum("tr,rs,ij->tsij", left, right, generator.standard_normal((height, width)))
    noise = generator.standard_normal(layer.weight_shape)
    return (low_rank + 0.1 * noise).astype(np.float32)


def attributes(sample: _Sample) -> Iterator[str]:
    """Check the name and the model of the settings."""
    name = getattr(sample.rule, "name", None)
    if not (isinstance(name, str) and name.isidentifier()):
        yield f"`name` is {name!r}; expected letters, digits and underscores"
    elif mistake := mistake_in(sample.rule):
        yield f"it {mistake}"


def settings(sample: _Sample) -> Iterator[str]:
    """Check that settings are described, and can be written and read again."""
    model = sample.rule.settings
    for name, field in model.model_fields.items():
        nested = hasattr(field.annotation, "model_fields")
        if not field.description and not nested:
            yield f"the setting `{name}` has no description; expected one, for the schema"
    again = model.model_validate_json(sample.settings.model_dump_json())
    if again != sample.settings:
        yield f"the settings are {again!r} after writing and reading; expected {sample.settings!r}"


def ranks_of_layers(sample: _Sample) -> Iterator[str]:
    """Check that there is a rank for each name of the factorization, or None."""
    for candidate in sample.candidates(kernel_of):
        ranks = sample.rule.ranks(candidate, sample.settings)
        yield from _mistakes_in(ranks, candidate, "")


def kernels_of_zeros(sample: _Sample) -> Iterator[str]:
    """Check that a kernel of zeros gives ranks, too: zeros, or None."""
    for candidate in sample.candidates(lambda name: 0 * kernel_of(name)):
        ranks = sample.rule.ranks(candidate, sample.settings)
        yield from _mistakes_in(ranks, candidate, " of zeros")


def _mistakes_in(ranks: Any, candidate: Candidate, kind: str) -> Iterator[str]:
    names = candidate.factorization.rank_names
    whole = isinstance(ranks, tuple) and all(isinstance(rank, int) and rank >= 0 for rank in ranks)
    if ranks is not None and not (whole and len(ranks) == len(names)):
        yield (
            f"layer '{candidate.layer.name}'{kind}, {candidate.factorization.name}: `ranks` "
            f"returns {ranks!r}; expected None or a whole number from 0 for each of {names}"
        )


def kernel_is_kept(sample: _Sample) -> Iterator[str]:
    """Check that the rule does not write into the kernel."""
    for candidate in sample.candidates(kernel_of):
        sample.rule.ranks(candidate, sample.settings)
        name = candidate.layer.name
        if candidate.kernel.tobytes() != kernel_of(name).tobytes():
            yield f"layer '{name}': `ranks` changes the kernel; expected it as before"


def deterministic(sample: _Sample) -> Iterator[str]:
    """Check that the same network gives the same ranks."""
    first, second = (_ranks(sample.chosen().layers) for _ in range(2))
    if first != second:
        yield f"two choices give different ranks: {first} and {second}"


def plan(sample: _Sample) -> Iterator[str]:
    """Check the plan of a round: admissible ranks, and savings where a layer is replaced."""
    chosen = sample.chosen()
    if all(layer.is_dense for layer in chosen.layers):
        reasons = {layer.name: layer.dense_because for layer in chosen.layers}
        yield f"no layer is replaced: {reasons}; expected some, or other `settings` for this check"
    for layer in chosen.layers:
        full = get_factorization(layer.factorization).full_ranks(one_group(LAYERS[layer.name]))
        if layer.is_dense:
            continue
        if not all(1 <= rank <= most for rank, most in zip(layer.ranks, full, strict=True)):
            yield f"layer '{layer.name}': the ranks are {layer.ranks}; expected 1 to {full}"
        if not layer.macs[1] < layer.macs[0]:
            yield f"layer '{layer.name}': {layer.macs[1]} MACs; expected fewer than {layer.macs[0]}"


def shares(sample: _Sample) -> Iterator[str]:
    """Check that a rule that looks at all layers shares out ranks to layers of the method."""
    if not sample.rule.looks_at_all_layers:
        return
    given = sample.chosen().shares
    if not given:
        yield "`share_out` returns no shares; expected ranks for some layers"
    for name, share in given.items():
        if name not in FACTORIZATIONS:
            yield f"`share_out` returns a share of '{name}'; expected layers of the method"
        elif share.ranks and len(share.ranks) != len(
            get_factorization(share.factorization).rank_names
        ):
            yield f"layer '{name}': the share is {share.ranks}; expected a rank for each name"


def milder(sample: _Sample) -> Iterator[str]:
    """Check that milder settings can be written, and compress less."""
    macs: dict[float, int] = {}
    for ease in (0.0, 0.5, 0.9):
        easier = sample.rule.milder(sample.settings, ease)
        if easier is None:
            return
        written = easier.settings.model_dump(exclude_unset=True)
        if sample.rule.settings.model_validate(written) != easier.settings:
            yield f"`milder` at {ease} gives {written}, which is read as other settings"
        planned = sample.chosen(easier.settings).layers
        macs[ease] = sum(layer.macs[1] for layer in planned)
    if not macs[0.0] <= macs[0.5] <= macs[0.9] or macs[0.0] == macs[0.9]:
        yield f"MACs by the ease of `milder` are {macs}; expected more at a larger ease"


def _ranks(planned: Iterable[PlannedLayer]) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.ranks for layer in planned}


CHECKS: dict[str, Check[_Sample]] = {
    check.__name__: check
    for check in (
        attributes,
        settings,
        ranks_of_layers,
        kernels_of_zeros,
        kernel_is_kept,
        deterministic,
        plan,
        shares,
        milder,
    )
}
