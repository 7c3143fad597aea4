"""Ranks for the layers of a round, and what they are expected to cost, for `select_ranks`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Expected, PlannedLayer
from lowrank.errors import UserError
from lowrank.steps.common import say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lowrank.config.network_source import NetworkSource
    from lowrank.config.ranks import RankSettings
    from lowrank.core.layers import Layer
    from lowrank.core.plans import Share
    from lowrank.factorize import Decomposition, Factorization, Moments
    from lowrank.ranks import Losses, Trial
    from lowrank.surgery.divergence import Divergence


@dataclass(frozen=True)
class Chosen:
    """What a rule gives the layers of a round; `sensitivity` and `shares` are of every round's."""

    layers: tuple[PlannedLayer, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)


@dataclass
class Choice:
    """The choice of ranks in one round, which can be made by one rule after another.

    Parameters
    ----------
    state
        The network before the round.
    table
        Its layers.
    layers, all_layers
        Factorization by layer: of the round, and of every round.
    alternatives
        Further factorizations, for `budget`.
    original
        The network with images, for rules that measure and to try what was chosen.
    latencies
        Files of what layers take, by device.
    quantized
        Whether the compressed network is in int8.
    losses
        What is known of losses; what is measured is added.
    shares
        What an earlier round shared out; None in the first.
    stages_left
        Rounds in which to come down to the rule's ranks.
    """

    state: Path
    table: LayerTable
    layers: Mapping[str, str]
    all_layers: Mapping[str, str]
    alternatives: Sequence[str]
    original: Original | None
    latencies: Mapping[str, Path]
    quantized: bool
    losses: Losses
    shares: dict[str, Share] | None
    stages_left: int
    _sensitive: dict[str, float] = field(default_factory=dict)

    def at(self, rule: RankSettings, *, say: Callable[[str], object]) -> Chosen:
        """The ranks by a rule."""
        from lowrank.factorize import get_factorization
        from lowrank.ranks import choose_ranks, leave_negligible
        from lowrank.surgery.stored_factors import layer_factored, layer_weight

        table = self.table
        if rule.select != "fixed":
            table = leave_negligible(table, rule.negligible)
        layers, sensitivity, shares = dict(self.layers), {}, {}
        if rule.looks_at_all_layers and layers:
            sensitivity, shares = self._shared_out(table, rule, say)
            ranks = {name: share.ranks for name, share in shares.items()}
            rule = rule.model_copy(update={"table": ranks})
            layers |= {name: shares[name].factorization for name in layers if name in shares}
        planned = tuple(
            choose_ranks(
                table[name],
                layer_weight(self.state, name),
                get_factorization(factorization),
                rule,
                factored=layer_factored(self.state, name),
                stages_left=self.stages_left,
            )
            for name, factorization in layers.items()
        )
        return Chosen(planned, sensitivity, shares)

    def _shared_out(
        self, table: LayerTable, rule: RankSettings, say: Callable[[str], object]
    ) -> tuple[dict[str, float], dict[str, Share]]:
        if self.shares is not None:
            return {}, self.shares
        if self.original is None:
            raise UserError(f"select: '{rule.select}' measures losses on images: pass --dataset.")
        if rule.select == "sensitivity":
            return _by_sensitivity(
                self.original, table, self.all_layers, rule, self._sensitive, say
            )
        return {}, _for_target(self, table, rule, say)

    def expected(self, planned: Sequence[PlannedLayer]) -> Expected | None:
        """What the network keeps with the round's layers decomposed so; None if that is costly."""
        from lowrank.factorize import decompose, get_factorization
        from lowrank.surgery.prediction import is_cheap, sentence

        original, taken = self.original, [each for each in planned if not each.is_dense]
        if original is None or not taken:
            return None
        if not is_cheap(self.table, taken):
            say(
                "what these ranks cost in accuracy is measured before fine-tuning: finding it "
                "here would take as long as the decomposition"
            )
            return None
        say(f"trying these ranks: {len(taken)} layers are decomposed, without fine-tuning")

        def replacements() -> Iterator[tuple[str, Decomposition]]:
            for each in taken:
                weight, bias = original.weight_and_bias(each.name)
                method, moments = get_factorization(each.factorization), original.moments(each.name)
                layer = self.table[each.name]
                yield each.name, decompose(method, layer, weight, bias, each.ranks, moments)

        found = original.expected(replacements())
        say(sentence(found))
        return found


def refuse_what_ruins(choice: Choice, rule: RankSettings, expected: Expected, method: str) -> None:
    """Raise UserError where more is lost than the rule allows, with the nearest milder setting."""
    from lowrank.ranks.milder import nearest_that_keeps, ruined

    if not expected.exceeds(rule.largest_drop):
        return
    say("that is more than `largest_drop` allows; looking for the nearest setting that keeps more")
    tried: list[Expected] = []

    def keeps_enough(milder: RankSettings) -> bool:
        planned = choice.at(milder, say=lambda _: None).layers
        found = choice.expected(planned)
        if found is None:
            # Either nothing is left to decompose, or what is cannot be tried quickly.
            return all(each.is_dense for each in planned)
        if enough := not found.exceeds(rule.largest_drop):
            tried.append(found)
        return enough

    # Ranks that an earlier round shared out are not for this round to change.
    nearest = None if choice.shares is not None else nearest_that_keeps(rule, keeps_enough)
    where = f"methods.{method}.ranks" if method else "ranks"
    advice = "Choose milder settings"
    if nearest:
        advice = f"The nearest setting that keeps enough is `{nearest.written}`"
        if tried:
            advice += f" ({tried[-1].after:.1f} % before fine-tuning)"
        advice += f"; write it under `{where}`, or under its `models` for this network alone"
    raise UserError(ruined(expected, rule.largest_drop, where, advice))


class Original:
    """The network before the round, with images to measure on."""

    def __init__(
        self,
        network: NetworkSource,
        state: Path,
        dataset: Path,
        splits: Path | None,
        rule: RankSettings,
        moments: Path | None,
        threads: int,
    ) -> None:
        import torch

        from lowrank.data.datasets import open_dataset
        from lowrank.surgery.states import read_state

        torch.set_num_threads(threads)
        self._path, self._moments = state, moments
        self._state = read_state(state, network)
        self._validation = open_dataset(dataset, splits).validation
        self._images = self._validation.sample(rule.images)
        self._before: float | None = None

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the kernel of one layer and its bias."""
        from lowrank.surgery.stored_factors import layer_bias, layer_weight

        return layer_weight(self._path, name), layer_bias(self._path, name)

    def moments(self, name: str) -> Moments | None:
        """Return the moments of one layer's inputs, for `norm: activation`."""
        from lowrank.surgery.stored_moments import layer_moments

        return layer_moments(self._moments, name) if self._moments else None

    def losses(self, replacements: Iterable[tuple[str, Decomposition]]) -> dict[str, float]:
        """Measure the loss by labels with one layer at a time replaced."""
        from lowrank.training.layer_losses import losses_by_layer

        network, spec = self._state.network, self._state.spec
        return losses_by_layer(network, spec, self._images, replacements, say=say)

    def divergence(self) -> Divergence:
        """Measures how far such replacements move the network's answers."""
        from lowrank.core.progress import counted
        from lowrank.surgery.divergence import Divergence
        from lowrank.tasks.classification import inputs_of

        network, spec, split = self._state.network, self._state.spec, self._images

        def images() -> Iterator[Tensor]:
            return counted((batch for batch, _ in inputs_of(network, split, spec)), len(split))

        return Divergence(network, images, split.of_classes)

    def expected(self, replacements: Iterable[tuple[str, Decomposition]]) -> Expected:
        """The accuracy before, and with all of these layers replaced."""
        from lowrank.surgery.prediction import with_factors
        from lowrank.training.trying import Trying

        network = self._state.network
        trying = Trying(self._validation, self._state.spec)
        if self._before is None:
            self._before = trying.accuracy(network)
        after = with_factors(network, replacements, lambda: trying.accuracy(network))
        return trying.expected(self._before, after)


def _by_sensitivity(
    original: Original,
    table: LayerTable,
    layers: Mapping[str, str],
    rule: RankSettings,
    losses: dict[str, float],
    say: Callable[[str], object],
) -> tuple[dict[str, float], dict[str, Share]]:
    """Measure what the network loses by each layer, and share out the ranks accordingly."""
    from lowrank.core.plans import Share
    from lowrank.factorize import decompose
    from lowrank.ranks import ranks_within, shared_out, taken_layers
    from lowrank.ranks.scale import dense_cost

    taken = list(taken_layers(table, layers))

    def replacements() -> Iterator[tuple[str, Decomposition]]:
        for layer, method, full_ranks in taken:
            limit = dense_cost(layer, rule.cost) / rule.trial_ratio
            ranks = ranks_within(layer, method, full_ranks, limit=limit, cost=rule.cost)
            moments = original.moments(layer.name)
            weight, bias = original.weight_and_bias(layer.name)
            yield layer.name, decompose(method, layer, weight, bias, ranks, moments)

    if not losses:
        losses |= original.losses(replacements())
    sensitivity, ranks = shared_out(taken, losses, rule)
    order = sorted(sensitivity, key=sensitivity.get, reverse=True)
    say(f"most sensitive first: [{', '.join(order)}]")
    return sensitivity, {name: Share(layers[name], each) for name, each in ranks.items()}


def _for_target(
    choice: Choice, table: LayerTable, rule: RankSettings, say: Callable[[str], object]
) -> dict[str, Share]:
    """Measure what the network loses by each layer, and choose ranks that meet the target."""
    from lowrank.factorize import kernel_of
    from lowrank.files import read_json
    from lowrank.ranks import Candidate, Trial, bounds_of, for_target, taken_layers
    from lowrank.ranks.latency_model import Latencies

    original = choice.original

    def read(layer: Layer, method: Factorization, full_ranks: tuple[int, ...]) -> Trial:
        weight, bias = original.weight_and_bias(layer.name)
        kernel = kernel_of(layer, weight, name=layer.name)
        candidate = Candidate(layer, kernel, method, full_ranks)
        return Trial(candidate, bias, original.moments(layer.name))

    trials = [
        partial(read, *each) for each in taken_layers(table, choice.all_layers, choice.alternatives)
    ]
    bounds = bounds_of(
        rule,
        {name: Latencies.from_json(read_json(path)) for name, path in choice.latencies.items()},
        quantized=choice.quantized,
    )
    shares = for_target(
        table, trials, rule, bounds, original.divergence(), losses=choice.losses, say=say
    )
    total = sum(share.loss for share in shares.values())
    say(f"divergence of the answers by each layer alone, summed: {total:.2g} nats")
    return shares
