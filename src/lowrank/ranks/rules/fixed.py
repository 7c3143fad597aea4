"""Ranks from a table, for example from a paper."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowrank.errors import UserError
from lowrank.ranks.rank_settings import WeakenedSettings
from lowrank.ranks.rule import Candidate, RankRule


class FixedSettings(WeakenedSettings):
    """The ranks in a table. Its layers are named, so there is no `negligible`."""

    select: Literal["fixed"] = Field("fixed", description="The ranks in `table`.")
    table: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = Field(
        description="Ranks of one group, by layer name."
    )

    @model_validator(mode="before")
    @classmethod
    def _has_table(cls, entries: Any) -> Any:
        if isinstance(entries, Mapping) and not entries.get("table"):
            raise ValueError("`select: fixed` needs `table`, ranks by layer")
        return entries

    @property
    def named_layers(self) -> Collection[str]:
        return self.table


class Fixed(RankRule[FixedSettings]):
    """The ranks of the layer in `table`; layers that the table does not name stay as they are.

    A wrong number of ranks, or a rank above full rank, gives a UserError.
    """

    name = "fixed"
    settings = FixedSettings
    no_ranks = "the table of ranks does not name it"

    def ranks(self, candidate: Candidate, settings: FixedSettings) -> tuple[int, ...] | None:
        name, factorization = candidate.layer.name, candidate.factorization
        if (ranks := settings.table.get(name)) is None:
            return None
        if len(ranks) != len(factorization.rank_names):
            raise UserError(
                f"ranks.table.{name}: found {len(ranks)} ranks, but {factorization.name} needs "
                f"{len(factorization.rank_names)} ({', '.join(factorization.rank_names)}). Give "
                "one number for each."
            )
        for rank_name, rank, full in zip(
            factorization.rank_names, ranks, candidate.full_ranks, strict=True
        ):
            if rank > full:
                raise UserError(
                    f"ranks.table.{name}: the {rank_name} rank is {rank}; expected at most {full}, "
                    "the full rank of one group of this layer. Lower it."
                )
        return tuple(ranks)


ENTRIES = (Fixed(),)
