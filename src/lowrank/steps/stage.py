"""Run the `snakemake` command of a DVC stage, which makes the output of the stage.

If a command in dvc.yaml contained names from params.yaml, a shell would run it before the names are
checked. Therefore the commands contain no names. The names come from the name of the stage, which
DVC passes in the environment, and are checked here.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Step

_FIELDS_OF_VARIANT = ("model", "method")


@click.command(cls=Step)
@click.argument("target", required=False)
def stage(target: str | None) -> None:
    """Run Snakemake for the outputs of a DVC stage.

    TARGET is one of its outputs, such as `build/{model}/original/model.onnx`. Without it, the
    outputs are computed from the method.
    """
    from lowrank.errors import UserError
    from lowrank.graph.dvc_stages import running_stage
    from lowrank.graph.pipeline import Graph
    from lowrank.graph.stage_targets import targets_of

    running = running_stage()
    if not running:
        raise UserError(
            "`lowrank stage` only works as the command of a stage in dvc.yaml. Run `dvc repro`, or "
            "`snakemake` with the name of the file."
        )
    graph = Graph.load()
    fields = re.findall(r"{(\w+)}", target) if target else _FIELDS_OF_VARIANT
    names = _names_in(running, list(dict.fromkeys(fields)), graph.params)
    if target:
        targets = [target.format(**names)]
    else:
        targets = targets_of(running.partition("@")[0], **names, graph=graph)
    program = Path(sys.executable).with_name("snakemake")
    command = ["snakemake", "--workflow-profile", "profiles/dvc", "--", *targets]
    sys.stderr.flush()
    if program.exists():
        os.execv(program, command)
    os.execvp("snakemake", command)


def _names_in(running: str, fields: list[str], params: Any) -> dict[str, str]:
    """Return the names in the name of a stage, by field. Raises UserError for an unknown name."""
    from lowrank.errors import UserError

    known: dict[str, Mapping[str, object]] = {
        "model": params.checkpoint,
        "method": params.methods,
        "device": params.benchmark,
    }
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
    return dict(zip(fields, values, strict=True))


if __name__ == "__main__":
    stage()
