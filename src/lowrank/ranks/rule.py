"""Interface of all rank rules, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

import numpy as np

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import Share
from lowrank.core.registries import Registry, entries_in
from lowrank.factorize import Factorization
from lowrank.ranks.rank_settings import RankSettings

if TYPE_CHECKING:
    from lowrank.ranks.choice import RankChoice


@dataclass(frozen=True)
class Candidate:
    """A layer whose ranks are to be chosen.

    Parameters
    ----------
    layer
        The layer, as in the layer table.
    kernel
        Shape (T, S / g, D_h, D_w), any float type, finite.
    factorization
        The factorization to use.
    full_ranks
        Largest useful ranks of one group: those of the factorization, or the current ranks of a
        layer that is already factored.
    is_factored
        Whether the kernel is the product of factors that have already replaced the layer.
    shared
        Ranks of each layer by its name, from `RankRule.share_out`. None if nothing was shared out.
    """

    layer: Layer
    kernel: np.ndarray
    factorization: Factorization
    full_ranks: tuple[int, ...]
    is_factored: bool = False
    shared: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Milder:
    """Settings that compress less, and their text for params.yaml."""

    settings: RankSettings
    written: str

    @classmethod
    def of(cls, settings: RankSettings, name: str, value: float) -> Milder:
        """Return the settings with another number for `name`."""
        return cls(settings.model_copy(update={name: value}), f"{name}: {value:g}")


Settings = TypeVar("Settings", bound=RankSettings)


class RankRule(ABC, Generic[Settings]):
    """A way to choose the ranks of layers.

    Attributes
    ----------
    name
        Name in params.yaml, the value of `select`.
    settings
        Settings of the rule: a subclass of `RankSettings`, of `AdjustedSettings` for most rules.
        Its field `select` is a literal of the rule's name.
    is_goal
        True if the ranks are the goal of several stages, whose ranks decrease by the same factor.
        False if the rule analyzes the result of each stage.
    looks_at_all_layers
        True if the rule chooses the ranks of all layers before the first round, in `share_out`.
    compares_factorizations
        True if `share_out` also chooses among the alternative factorizations of a method.
    no_ranks
        Reason for the report why a layer stays as it is for which `ranks` returned None.
    """

    name: ClassVar[str]
    settings: ClassVar[type[RankSettings]]
    is_goal: ClassVar[bool] = True
    looks_at_all_layers: ClassVar[bool] = False
    compares_factorizations: ClassVar[bool] = False
    no_ranks: ClassVar[str] = "the rule has no ranks for it"

    @abstractmethod
    def ranks(self, candidate: Candidate, settings: Settings) -> tuple[int, ...] | None:
        """Return the ranks of one group of a layer, in the order of the factorization's ranks.

        A rank of 0 means that the layer stays as it is. None means that the rule has no ranks for
        the layer. Ranks that are too high are lowered afterwards. Raises UserError if the settings
        or the factorization do not fit the layer.
        """

    def share_out(
        self,
        choice: RankChoice,
        table: LayerTable,
        settings: Settings,
        say: Callable[[str], object],
    ) -> tuple[dict[str, float], dict[str, Share]]:
        """Choose the ranks of all layers, for a rule with `looks_at_all_layers`.

        By default, none are chosen. A rule with `looks_at_all_layers` and without this method is
        refused when it is registered.

        Parameters
        ----------
        choice
            The layers, their factorizations, and the network that can be measured.
        table
            Layers of the network, without those that stay dense as too cheap.
        settings
            Settings of the rule.
        say
            Receives a message about what was found.

        Returns
        -------
        tuple
            Sensitivities for the report, and shares with the ranks, both by layer name.
        """
        return {}, {}

    def milder(self, settings: Settings, ease: float) -> Milder | None:
        """Return the settings moved toward no compression, or None if there is no such setting.

        Parameters
        ----------
        settings
            Settings of the rule.
        ease
            Share of the distance to no compression, from 0 (the settings themselves) to 1.
        """
        if "weaken" not in type(settings).model_fields:
            return None
        value = round(settings.weakening + ease * (1 - settings.weakening), 2)
        return Milder.of(settings, "weaken", value)


def mistake_in(rule: RankRule[Any]) -> str | None:
    """Return what is wrong with a rule from an installed package."""
    if rule.looks_at_all_layers and type(rule).share_out is RankRule.share_out:
        return "has `looks_at_all_layers = True` and no `share_out`; expected that method"
    settings = getattr(rule, "settings", None)
    if not (isinstance(settings, type) and issubclass(settings, RankSettings)):
        return f"has `settings = {settings!r}`; expected a subclass of `{_PATH}.RankSettings`"
    names = get_args(settings.model_fields["select"].annotation)
    if names != (rule.name,) or settings.model_fields["select"].default != rule.name:
        return (
            f"has settings with `select` for {', '.join(map(repr, names)) or 'any text'}; expected "
            f"`select: Literal[{rule.name!r}] = {rule.name!r}`"
        )
    return None


_PATH = RankSettings.__module__

# All rank rules, by name.
RULES: Registry[RankRule[Any]] = Registry(
    "rank rule",
    RankRule,  # type: ignore[type-abstract]  # Only for `isinstance`.
    group="lowrank.rank_rules",
    built_in=partial(entries_in, "lowrank.ranks.rules."),
    mistake_in=mistake_in,
)


def rule_of(settings: RankSettings) -> RankRule[Any]:
    """Return the rule that the settings select."""
    return RULES.get(settings.select)
