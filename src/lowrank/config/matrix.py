"""`matrix`: what is built if the user names no target."""

from pydantic import Field

from lowrank.settings.section import Name, Section


class Matrix(Section):
    """The default build of `snakemake` and `dvc repro`: every network with every method."""

    models: tuple[Name, ...] = Field(
        min_length=1, description="Networks: names under `checkpoint`."
    )
    methods: tuple[Name, ...] = Field(min_length=1, description="Methods: names under `methods`.")
    devices: tuple[Name, ...] = Field(
        min_length=1,
        description="Devices on which each result is measured: names under `benchmark`.",
    )
