"""`studies`: comparisons of methods that differ in one aspect."""

from typing import Any, Literal

from pydantic import Field

from lowrank.settings.merging import merged
from lowrank.settings.section import Name, Section


class StudySettings(Section):
    """A comparison of methods that differ in one aspect, on the same networks.

    Each variant is the base with entries replaced; see `lowrank.settings.merging.merged`.
    """

    title: str = Field(description="Title of the table and of the picture.")
    models: tuple[Name, ...] = Field(
        min_length=1, description="Networks: names under `checkpoint`."
    )
    x: Literal["variant", "steps"] = Field(
        "variant",
        description="X axis of the picture. `variant`: one bar for each variant. `steps`: "
        "training steps.",
    )
    base: dict[str, Any] = Field(
        description="Method on which all variants are based, with the settings of an entry under "
        "`methods`."
    )
    variants: dict[Name, dict[str, Any]] = Field(
        min_length=1,
        description="Entries of the base that each variant replaces, by the name of the variant.",
    )

    def methods(self, study: str) -> dict[str, dict[str, Any]]:
        """Return the variants as entries of `methods`; names combine the study and the variant."""
        return dict(self.methods_of_variants(study).values())

    def methods_of_variants(self, study: str) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return the method name and the method entry of each variant."""
        return {
            variant: (f"{study}_{variant}", merged(self.base, entries))
            for variant, entries in self.variants.items()
        }
