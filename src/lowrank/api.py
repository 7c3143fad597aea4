"""Compress a network in Python, without the workflow.

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
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Expected, Losses, PlannedLayer
from lowrank.core.rounds import assign_factorizations
from lowrank.errors import UserError
from lowrank.evaluation.agreement import agreement
from lowrank.factorize import (
    Moments,
    carried_over,
    decompose,
    get_factorization,
    kernel_of,
)
from lowrank.onnx_files.export import export_onnx
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.choice import RankChoice, Replacements
from lowrank.ranks.milder import nearest_that_keeps
from lowrank.ranks.negligible import leave_negligible
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import rule_of
from lowrank.settings.mistakes import described
from lowrank.surgery.divergence import Divergence
from lowrank.surgery.equality import IMAGES, layers_that_must_stay
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import input_moments, shifted_moments
from lowrank.surgery.states import put_factors
from lowrank.tasks import DEFAULT_TASK, get_task
from lowrank.zoo.forward import noise_images
from lowrank.zoo.plain import copied, fold, require_eager, unwrapped
from lowrank.zoo.registry import NetworkSpec

# Kim et al. 2016: the same as the method `tucker` of params.yaml.
TUCKER = {
    "first_conv": "tucker1",
    "conv": "tucker2",
    "pointwise_conv": "svd",
    "flattened_linear": "tucker2",
    "linear": "svd",
}


# Task by which outputs are compared.
_TASK = get_task(DEFAULT_TASK)


@dataclass
class Compressed:
    """Compressed network, with the change of each layer that the method factors.

    `expected` is the agreement of its predictions with the original network, on the images that
    were passed to `compress`. It is None without images, or if the outputs of the network are not
    logits (N, classes).
    """

    network: nn.Module
    layers: tuple[PlannedLayer, ...]
    input_shape: tuple[int, int, int]
    expected: Expected | None = None

    def export(self, path: str | os.PathLike) -> None:
        """Write the network to an ONNX file; see `lowrank.onnx_files.export.export_onnx`."""
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
        Trained network with images as input. It is not changed.
    input_shape
        Shape of one image: (channels, height, width), any size that the network accepts.
    factorize
        Same as `methods.<method>.factorize` in params.yaml: a factorization for each kind of layer,
        `include`, `exclude`, `norm` (default with images: `activation`), `sequential`, and, with a
        target, `alternatives`.
    ranks
        Rank rule and its settings, same as `methods.<method>.ranks`. The default is EVBMF. The
        cheapest layers stay dense, up to a share `negligible` (0.005) of the network. With
        `images`, `{"select": "budget", "target": {"macs": 0.25}}` sets a target for the cost.
    images
        Batches (N, channels, height, width) of a few hundred training images, as the network
        expects them, without labels. With images, the factors approximate the outputs of layers
        rather than their weights. The accuracy drop before fine-tuning is then much smaller, and
        the call takes seconds to minutes. The images are kept in memory. The agreement with the
        original network is printed.
    sequential
        Compensate in each layer for the error of the decomposed layers before it, same as
        `sequential` in `factorize`. This needs images, and runs both networks over the images for
        each layer.

    Returns
    -------
    Compressed
        The compressed network, its layers and its agreement with the original.

    Raises
    ------
    UserError
        If a name is unknown, a setting is out of range or has no effect, weights are not finite,
        the network does not accept the input shape, or `sequential` is set without images. With
        images, also if the drop of agreement is larger than `largest_drop` of the rule; the message
        then names the nearest setting that keeps enough.
    """
    rule = _rank_rule(ranks or {})
    settings = _factorize_settings(
        factorize, rule, images=images is not None, sequential=sequential
    )
    compression = _Compression.of(network, input_shape, settings, images)
    compressed, planned = compression.at(rule)
    expected = _checked_agreement(compression, rule, compressed, planned)
    channels, height, width = input_shape
    return Compressed(compressed, planned, (channels, height, width), expected)


@dataclass
class _Compression:
    """Network to compress, with everything that does not depend on the rank rule."""

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
    ) -> "_Compression":
        """Find the layers, and check which of them factors can replace."""
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
        """Return a copy of the network with its layers decomposed, and the change of each layer."""
        compressed = copied(self.network)
        sequential = self.factorize.sequential and not rule_of(rule).looks_at_all_layers
        if self.factorize.norm == "activation" and not sequential and not self.moments:
            table = leave_negligible(self.table, rule.negligible_share)
            self.moments = input_moments(
                compressed, [table[name] for name in self.assigned], self.images or []
            )
        choice = RankChoice(
            network=_NetworkInMemory(compressed, self.images, self.moments),
            table=self.table,
            layers=self.assigned,
            all_layers=self.assigned,
            alternatives=self.factorize.alternatives,
            losses=self.losses,
        )
        planned = choice.at(rule, say=lambda _: None).layers
        for planned_layer in planned:
            if not planned_layer.is_dense:
                self._replace(compressed, planned_layer)
        return compressed, planned

    def _replace(self, compressed: nn.Module, planned: PlannedLayer) -> None:
        name = planned.name
        module: Any = compressed.get_submodule(name)
        layer, factorization = self.table[name], get_factorization(planned.factorization)
        weight, bias = _parameters(module)
        moments = self.moments.get(name)
        if self.factorize.sequential:
            moments, shift = shifted_moments(self.network, compressed, layer, self.images or [])
            kernel = kernel_of(layer, weight, name=name)
            weight, bias = carried_over(kernel, bias, moments, shift)
        result = decompose(factorization, layer, weight, bias, planned.ranks, moments)
        put_factors(compressed, name, result.sequence, result.tensors, source=name)
        compressed.get_submodule(name).to(module.weight).train(module.training)

    def expected(self, compressed: nn.Module) -> Expected | None:
        """Return the agreement of the predictions, or None without images or logits."""
        if self.images is None:
            return None
        return agreement(_TASK, self.network, compressed, self.images)


def _checked_agreement(
    compression: _Compression,
    rule: RankSettings,
    compressed: nn.Module,
    planned: tuple[PlannedLayer, ...],
) -> Expected | None:
    """Measure and print the agreement with the original. Raises UserError if it drops too far."""
    expected = compression.expected(compressed)
    if expected:
        print(f"lowrank: {expected.sentence()}", file=sys.stderr)
        if expected.exceeds(rule.largest_drop):
            raise UserError(_excessive_drop(compression, rule, expected))
    elif compression.images is None and any(not layer.is_dense for layer in planned):
        print(
            "lowrank: the accuracy drop is not known; pass `images` to measure it",
            file=sys.stderr,
        )
    return expected


def _excessive_drop(compression: _Compression, rule: RankSettings, expected: Expected) -> str:
    """Return a message that the drop is too large, with the nearest setting that is allowed."""

    def keeps_enough(milder: RankSettings) -> bool:
        expected = compression.expected(compression.at(milder)[0])
        return expected is not None and not expected.exceeds(rule.largest_drop)

    nearest = nearest_that_keeps(rule, keeps_enough)
    advice = (
        f"The nearest setting that keeps enough agreement is `{nearest.written}`. "
        if nearest
        else ""
    )
    return (
        f"ranks: at these ranks, the network agrees with the original on {expected.after:.1f} % "
        f"of {expected.images} images (chance: {expected.chance:.1f} %). `largest_drop` allows a "
        f"loss of {rule.largest_drop:.0%} of the agreement above chance before fine-tuning. "
        f"{advice}To continue anyway, set `largest_drop` to 1."
    )


def _rank_rule(ranks: Mapping[str, Any]) -> RankSettings:
    """Check the settings of the rank rule. Raises UserError if one is wrong or not possible."""
    rule = rank_settings(ranks)
    if rule.searches:
        raise UserError(
            "ranks.target.accuracy_drop: the search for this target fine-tunes several networks, "
            "which `compress` does not do. Use the target `macs` or `parameters`, or the pipeline."
        )
    return rule


def _factorize_settings(
    factorize: Mapping[str, Any], rule: RankSettings, *, images: bool, sequential: bool
) -> FactorizeSettings:
    """Check the settings. Raises UserError if one is wrong or has no effect."""
    entries = dict(factorize)
    if "images" in entries:
        raise UserError(
            "factorize.images: not supported here. Pass the images to `compress` as `images`."
        )
    if sequential:
        entries["sequential"] = True
    if not images and entries.get("sequential"):
        raise UserError(
            "sequential: layers are compared on images, but `images` is None. Pass `images`."
        )
    if not images and entries.get("norm") == "activation":
        raise UserError(
            "factorize.norm: 'activation' approximates the outputs of layers on images, but "
            "`images` is None. Pass `images`."
        )
    if images:
        entries.setdefault("norm", "activation")
    try:
        settings = FactorizeSettings.model_validate(entries)
    except ValidationError as error:
        message = described(error, FactorizeSettings, entries, prefix=("factorize",))
        raise UserError(message) from error
    if settings.alternatives and not rule_of(rule).compares_factorizations:
        raise UserError(
            "factorize.alternatives: only `ranks={'select': 'budget', ...}` compares them, but "
            f"`select` is '{rule.select}'. Remove `alternatives`, or use 'budget'."
        )
    return settings


@dataclass(frozen=True)
class _NetworkInMemory:
    """`MeasuredNetwork` in memory."""

    network: nn.Module
    images: list[Tensor] | None
    layer_moments: Mapping[str, Moments]

    @property
    def divergence_unit(self) -> str:
        return _TASK.divergence_unit

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        return _parameters(self.network.get_submodule(name))

    def factored(self, name: str) -> None:
        return None

    def moments(self, name: str) -> Moments | None:
        return self.layer_moments.get(name)

    def losses(self, replacements: Replacements) -> dict[str, float]:
        raise UserError(
            "select: 'sensitivity' measures losses with labels, which `compress` does not have. "
            "Use another rule, or pass the ranks with 'fixed'."
        )

    def divergence(self) -> Divergence:
        if self.images is None:
            raise UserError(
                "select: 'budget' measures the change of outputs on images, but `images` is None. "
                "Pass a few hundred training images, or use another rule."
            )
        images = self.images
        return Divergence(self.network, lambda: images, _TASK.divergence)

    def expected(self, replacements: Replacements) -> Expected | None:
        # Not needed here: `compress` measures the network that it returns.
        return None


def _parameters(layer: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the weight and bias of a convolution or linear layer as float32 arrays."""

    def array(parameter: Tensor) -> np.ndarray:
        return parameter.detach().cpu().float().numpy()

    return array(layer.weight), None if layer.bias is None else array(layer.bias)
