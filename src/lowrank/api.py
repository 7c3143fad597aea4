"""Compress a network in a notebook, without the workflow around it.

import lowrank

small = lowrank.compress(network, input_shape=(3, 224, 224))
small.network          # fine-tune it, then small.export("small.onnx")
small.layers           # ranks, MACs and parameters of each layer, before and after
"""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn

from lowrank.config.factorize import FactorizeSettings
from lowrank.config.mistakes import described
from lowrank.config.ranks import RankSettings
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Expected, PlannedLayer
from lowrank.core.rounds import assign_factorizations
from lowrank.errors import UserError
from lowrank.factorize import (
    Moments,
    carried_over,
    decompose,
    get_factorization,
    kernel_of,
)
from lowrank.onnx_files.export import export_onnx
from lowrank.ranks import Losses, leave_negligible
from lowrank.ranks.choice import RankChoice, Replacements
from lowrank.ranks.milder import nearest_that_keeps
from lowrank.ranks.rule import rank_settings
from lowrank.surgery.divergence import Divergence
from lowrank.surgery.equality import IMAGES, layers_that_must_stay
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import input_moments, shifted_moments
from lowrank.surgery.prediction import answers, percent_equal
from lowrank.surgery.states import put_factors
from lowrank.zoo.forward import noise_images
from lowrank.zoo.plain import copied, fold, require_eager, unwrapped
from lowrank.zoo.registry import NetworkSpec

# Kim et al. 2016: as the method `tucker` of params.yaml.
TUCKER = {
    "first_conv": "tucker1",
    "conv": "tucker2",
    "pointwise_conv": "svd",
    "flattened_linear": "tucker2",
    "linear": "svd",
}


@dataclass
class Compressed:
    """A compressed network, and what was done to each layer that the method takes.

    `expected` says how often it answers as the original does, on the images that `compress` was
    given; None without images, or where the network gives no logits (N, classes).
    """

    network: nn.Module
    layers: tuple[PlannedLayer, ...]
    input_shape: tuple[int, int, int]
    expected: Expected | None = None

    def export(self, path: str | os.PathLike) -> None:
        """Write the network as ONNX; see `lowrank.onnx_files.export.export_onnx`."""
        name = type(self.network).__name__
        export_onnx(self.network, NetworkSpec(name, self.input_shape, num_classes=0), path)


def compress(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    factorize: Mapping[str, Any] = TUCKER,
    ranks: Mapping[str, Any] | None = None,
    images: Iterable[Tensor] | None = None,
    sequential: bool = False,
) -> Compressed:
    """Decompose the layers of a copy of a network, without fine-tuning.

    Parameters
    ----------
    network
        A trained network that takes images; it is left as it is.
    input_shape
        Of one image: (channels, height, width), of any size that the network takes.
    factorize
        As `methods.<method>.factorize` in params.yaml: a factorization for each kind of layer,
        `include`, `exclude`, `norm` (by default `activation` with images), `sequential`, and with a
        target `alternatives`.
    ranks
        Rank rule and its settings, as `methods.<method>.ranks`; by default EVBMF. As there, the
        cheapest layers stay dense, at most `negligible` (0.005) of the network. With `images`,
        `{"select": "budget", "target": {"macs": 0.25}}` asks for a cost instead.
    images
        Batches (N, channels, height, width) of a few hundred training images, as the network takes
        them; no labels. With them the factors keep the layers' outputs rather than their weights,
        which loses far less before fine-tuning, and takes seconds to minutes. They are kept in
        memory. And how often the network still answers as the original does is printed.
    sequential
        With images: each layer makes up for what the decomposed ones before it lost, as
        `sequential` in `factorize`. Both networks run over the images for each layer.

    Raises
    ------
    UserError
        For an unknown name, a setting out of range or without effect, weights that are not finite,
        an input shape that the network cannot take, `sequential` without images, or, with images,
        ranks at which more is lost than `largest_drop` of the rule allows (with the nearest that
        keep enough).
    """
    rule = rank_settings(ranks or {})
    if rule.searches:
        raise UserError(
            "ranks.target.accuracy_drop: a search fine-tunes several networks, which `compress` "
            "does not do. Take `macs` or `parameters` here, or the pipeline."
        )
    taken = _factorize_settings(factorize, rule, images=images is not None, sequential=sequential)
    work = _Work.of(network, input_shape, taken, images)
    small, planned = work.at(rule)
    expected = work.expected(small)
    if expected:
        print(f"lowrank: {expected.sentence()}", file=sys.stderr)
        if expected.exceeds(rule.largest_drop):
            raise UserError(_ruined(work, rule, expected))
    elif images is None and any(not each.is_dense for each in planned):
        print(
            "lowrank: what this costs in accuracy is not known; pass `images` to see it",
            file=sys.stderr,
        )
    return Compressed(small, planned, tuple(input_shape), expected)


@dataclass
class _Work:
    """A network to be compressed, by one rule or another."""

    network: nn.Module
    table: LayerTable
    factorize: FactorizeSettings
    assigned: dict[str, str]
    images: list[Tensor] | None
    moments: dict[str, Moments] = field(default_factory=dict)
    losses: Losses = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        network: nn.Module,
        input_shape: tuple[int, int, int],
        factorize: FactorizeSettings,
        images: Iterable[Tensor] | None,
    ) -> "_Work":
        """Find the layers, and which of them factors can replace."""
        network = unwrapped(network)
        require_eager(network, type(network).__name__)
        network = copied(network)
        fold(network)
        table = find_layers(network, input_shape, type(network).__name__)
        assigned = assign_factorizations(
            table, factorize.by_kind(), include=factorize.include, exclude=factorize.exclude
        )
        batches = None if images is None else list(images)
        sample = batches[0][:IMAGES] if batches else noise_images(network, input_shape, IMAGES)
        table = table.with_obstacles(layers_that_must_stay(network, table, sample))
        return cls(network, table, factorize, assigned, batches)

    def at(self, rule: RankSettings) -> tuple[nn.Module, tuple[PlannedLayer, ...]]:
        """Return a copy of the network with its layers decomposed, and what was done to each."""
        small = copied(self.network)
        in_turn = self.factorize.sequential and rule.select != "budget"
        if self.factorize.norm == "activation" and not in_turn and not self.moments:
            table = leave_negligible(self.table, rule.negligible)
            self.moments = input_moments(
                small, [table[name] for name in self.assigned], self.images
            )
        choice = RankChoice(
            network=_LiveNetwork(small, self.images, self.moments),
            table=self.table,
            layers=self.assigned,
            all_layers=self.assigned,
            alternatives=self.factorize.alternatives,
            losses=self.losses,
        )
        planned = choice.at(rule, say=lambda _: None).layers
        for chosen in planned:
            if not chosen.is_dense:
                self._replace(small, chosen)
        return small, planned

    def _replace(self, small: nn.Module, chosen: PlannedLayer) -> None:
        name, module = chosen.name, small.get_submodule(chosen.name)
        layer, method = self.table[name], get_factorization(chosen.factorization)
        weight, bias = _parameters(module)
        of_inputs = self.moments.get(name)
        if self.factorize.sequential:
            of_inputs, shift = shifted_moments(self.network, small, layer, self.images)
            kernel = kernel_of(layer, weight, name=name)
            weight, bias = carried_over(kernel, bias, of_inputs, shift)
        result = decompose(method, layer, weight, bias, chosen.ranks, of_inputs)
        put_factors(small, name, result.sequence, result.tensors, source=name)
        small.get_submodule(name).to(module.weight).train(module.training)

    def expected(self, small: nn.Module) -> Expected | None:
        """How often the copy answers as the network does; None where there are no answers."""
        if self.images is None:
            return None
        before, after = (answers(each, self.images) for each in (self.network, small))
        if before is None or after is None:
            return None
        most_frequent = int(before.bincount().max())
        chance = 100.0 * most_frequent / len(before)
        return Expected(len(before), 100.0, percent_equal(after, before), chance, of_labels=False)


def _ruined(work: _Work, rule: RankSettings, expected: Expected) -> str:
    """Say that the network would be ruined, and what the nearest setting is that keeps enough."""

    def keeps_enough(milder: RankSettings) -> bool:
        found = work.expected(work.at(milder)[0])
        return found is not None and not found.exceeds(rule.largest_drop)

    nearest = nearest_that_keeps(rule, keeps_enough)
    advice = f"The nearest setting that keeps enough is `{nearest.written}`. " if nearest else ""
    return (
        f"ranks: at these ranks the network answers {expected.after:.1f} % of {expected.images} "
        f"images as the original does (chance: {expected.chance:.1f} %). `largest_drop` allows "
        f"{rule.largest_drop:.0%} of what is above chance to be lost before fine-tuning. {advice}"
        "To go on all the same, set `largest_drop` to 1."
    )


def _factorize_settings(
    factorize: Mapping[str, Any], rule: RankSettings, *, images: bool, sequential: bool
) -> FactorizeSettings:
    """The settings, checked. Raises UserError for one that is wrong, or would have no effect."""
    entries = dict(factorize)
    if "images" in entries:
        raise UserError("factorize.images: pass the images themselves to `compress`, as `images`.")
    if sequential:
        entries["sequential"] = True
    if not images and entries.get("sequential"):
        raise UserError(
            "sequential: layers are compared on images, and `images` is None. Pass some."
        )
    if not images and entries.get("norm") == "activation":
        raise UserError(
            "factorize.norm: 'activation' keeps what layers answer on images, and `images` is "
            "None. Pass some."
        )
    if images:
        entries.setdefault("norm", "activation")
    try:
        settings = FactorizeSettings.model_validate(entries)
    except ValidationError as error:
        found = described(error, FactorizeSettings, entries, prefix=("factorize",))
        raise UserError(found) from error
    if settings.alternatives and rule.select != "budget":
        raise UserError(
            "factorize.alternatives: only `ranks={'select': 'budget', ...}` compares them, and "
            f"`select` is '{rule.select}'."
        )
    return settings


@dataclass(frozen=True)
class _LiveNetwork:
    """A `MeasuredNetwork` in memory."""

    network: nn.Module
    images: list[Tensor] | None
    layer_moments: Mapping[str, Moments]

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        return _parameters(self.network.get_submodule(name))

    def factored(self, name: str) -> None:
        return None

    def moments(self, name: str) -> Moments | None:
        return self.layer_moments.get(name)

    def losses(self, replacements: Replacements) -> dict[str, float]:
        raise UserError(
            "select: 'sensitivity' measures losses by labels, which `compress` does not have. Take "
            "another rule, or pass ranks as 'fixed'."
        )

    def divergence(self) -> Divergence:
        if self.images is None:
            raise UserError(
                "select: 'budget' measures how far the answers move, and `images` is None. Pass "
                "some training images, or take another rule."
            )
        images = self.images
        return Divergence(self.network, lambda: images)

    def expected(self, replacements: Replacements) -> Expected | None:
        # `compress` measures the network that it returns.
        return None


def _parameters(layer: nn.Module) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and bias, float32."""
    weight, bias = (
        None if each is None else each.detach().cpu().float().numpy()
        for each in (layer.weight, layer.bias)
    )
    return weight, bias
