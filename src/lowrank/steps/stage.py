"""Run the `snakemake` command of a DVC stage, which makes the output of the stage.

If a command in dvc.yaml contained names from params.yaml, a shell would run it before the names are
checked. Therefore the commands contain no names. The names come from the name of the stage, which
DVC passes in the environment, and are checked here.
"""

import os
import re
import sys
from collections.abc import Mapping

import click

from lowrank.steps.common import Step


@click.command(cls=Step)
@click.argument("target")
@click.argument("options", nargs=-1)
def stage(target: str, options: tuple[str, ...]) -> None:
    """Run Snakemake for TARGET, such as `build/{model}/{method}/model.onnx`, in a DVC stage.

    OPTIONS after `--` are passed to Snakemake.
    """
    from pathlib import Path

    from lowrank.config.reading import load_params
    from lowrank.errors import UserError
    from lowrank.graph.dvc_stages import running_stage

    running = running_stage()
    if not running:
        raise UserError(
            "`lowrank stage` only works as the command of a stage in dvc.yaml. Run `dvc repro`, or "
            "`snakemake` with the name of the file."
        )
    params = load_params()
    known: dict[str, Mapping[str, object]] = {
        "model": params.checkpoint,
        "method": params.methods,
        "device": params.benchmark,
    }
    fields = list(dict.fromkeys(re.findall(r"{(\w+)}", target)))
    values = running.partition("@")[2].split("-")
    # Names contain no hyphens, so a stage name can be split in only one way.
    if len(values) != len(fields) or any(
        value not in known[field] for field, value in zip(fields, values, strict=True)
    ):
        expected = "-".join(f"<{field}>" for field in fields)
        raise UserError(
            f"dvc.yaml: the stage `{running}` has a name that is not in params.yaml. Expected "
            f"`{running.partition('@')[0]}@{expected}` with names of `checkpoint`, `methods` and "
            "`benchmark`. Correct `matrix` in params.yaml."
        )
    path = target.format(**dict(zip(fields, values, strict=True)))
    program = Path(sys.executable).with_name("snakemake")
    command = ["snakemake", "--workflow-profile", "profiles/dvc", *options, "--", path]
    sys.stderr.flush()
    if program.exists():
        os.execv(program, command)
    os.execvp("snakemake", command)


if __name__ == "__main__":
    stage()
