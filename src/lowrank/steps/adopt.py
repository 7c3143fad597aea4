"""Hand over from DVC to Snakemake: accept the files that DVC has restored as current."""

import click

from lowrank.errors import UserError
from lowrank.steps.common import Step, run


@click.command(cls=Step)
def adopt() -> None:
    """Mark the files that DVC has pulled or checked out as current for Snakemake.

    Fails if `dvc status` is not clean, because Snakemake would then use files that do not belong to
    the current parameters.
    """
    if run("dvc", "status", "--quiet", check=False):
        raise UserError(
            "`dvc status` is not clean: some outputs are missing or do not belong to params.yaml. "
            "Run `dvc pull`, `dvc checkout` or `dvc repro`, then run this command again."
        )
    # All files that DVC stores. Pictures of single variants are made only by Snakemake.
    run("snakemake", "--cores", "1", "--touch", "--forceall", "--quiet", "--", "overview")


if __name__ == "__main__":
    adopt()
