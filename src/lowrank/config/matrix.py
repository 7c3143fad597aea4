"""`matrix`: what is built when no target is named."""

from pydantic import Field

from lowrank.config.section import Name, Section


class Matrix(Section):
    """What `snakemake` and `dvc repro` build when no target is named: every model x method."""

    models: tuple[Name, ...] = Field(min_length=1, description="Names under `checkpoint`.")
    methods: tuple[Name, ...] = Field(min_length=1, description="Names under `methods`.")
    devices: tuple[Name, ...] = Field(min_length=1, description="Names under `benchmark`.")
