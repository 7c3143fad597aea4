"""The console command: `lowrank <step> ...`, each step importing no more than it needs."""

import importlib
from typing import Any

import click

STEPS = (
    "dataset",
    "splits",
    "fetch_weights",
    "checkpoint",
    "pretrain",
    "code",
    "inspect",
    "select_ranks",
    "calibrate",
    "profile_draft",
    "profile_layers",
    "next_trial",
    "judge_trial",
    "settle",
    "decompose",
    "teacher_outputs",
    "finetune",
    "export_onnx",
    "describe_device",
    "quantize",
    "benchmark",
    "summarize",
    "overview",
    "draw",
    "study",
    "stage",
    "record",
    "adopt",
    "plots",
    "clean",
    "clean_device",
)


class _Steps(click.Group):
    """Loads a step's module when the step is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(STEPS)

    def get_command(self, context: click.Context, name: str) -> Any:
        if name not in STEPS:
            return None
        return getattr(importlib.import_module(f"lowrank.steps.{name}"), name)


@click.group(cls=_Steps)
def main() -> None:
    """Make trained convolutional networks small and fast by low-rank decomposition.

    The workflow runs these steps in order; each also runs alone.
    """


if __name__ == "__main__":
    main()
