"""The handover from DVC to Snakemake: take what DVC put there as current."""

import click

from lowrank.errors import UserError
from lowrank.steps.common import Step, run


@click.command(cls=Step)
def adopt() -> None:
    """Tell Snakemake that the files which DVC pulled or checked out are current.

    Refused where `dvc status` is not clean: Snakemake would trust files that do not belong to
    these parameters.
    """
    if run("dvc", "status", "--quiet", check=False):
        raise UserError(
            "`dvc status` is not clean: some outputs are missing or do not belong to params.yaml. "
            "Run `dvc pull`, `dvc checkout` or `dvc repro`, then this command again."
        )
    # All that DVC has; pictures of single variants are Snakemake's alone.
    run("snakemake", "--cores", "1", "--touch", "--forceall", "--quiet", "--", "overview")


if __name__ == "__main__":
    adopt()
