"""`studies`: comparisons of methods that differ in one thing."""

from typing import Any, Literal

from pydantic import Field

from lowrank.config.merging import merged
from lowrank.config.section import Name, Section


class StudySettings(Section):
    """A comparison: methods that differ in one thing, on the same networks.

    Each variant is the base with entries replaced; see `lowrank.config.merging.merged`.
    """

    title: str = Field(description="Heading of the table and of the picture.")
    models: tuple[Name, ...] = Field(min_length=1, description="Names under `checkpoint`.")
    x: Literal["variant", "steps"] = Field(
        "variant", description="Axis of the picture: a bar for each variant, or steps of training."
    )
    base: dict[str, Any] = Field(description="A method, as under `methods`.")
    variants: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="What each variant replaces of the base."
    )

    def methods(self, study: str) -> dict[str, dict[str, Any]]:
        """The variants as entries of `methods`, named by the study and themselves."""
        return dict(self.methods_of_variants(study).values())

    def methods_of_variants(self, study: str) -> dict[str, tuple[str, dict[str, Any]]]:
        """The name and the entry of each variant's method."""
        return {
            variant: (f"{study}_{variant}", merged(self.base, entries))
            for variant, entries in self.variants.items()
        }
