"""The console command `lowrank`."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
from click.testing import CliRunner

from lowrank import steps
from lowrank.cli import main

MODULES = {path.stem for path in Path(steps.__path__[0]).glob("*.py")}


def test_every_step_is_a_command():
    names = main.list_commands(click.Context(main))
    assert set(names) == MODULES - {
        "__init__",
        "common",
        "ending",
        "input_options",
        "options",
        "target_options",
    }
    for name in names:
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert "--log" in result.stdout


def test_the_version_is_that_of_the_package():
    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout.strip().endswith(f"version {version('lowrank')}")


def test_an_unknown_step_is_an_error():
    result = CliRunner().invoke(main, ["finetun"])
    assert result.exit_code == 2
    assert "No such command 'finetun'" in result.stderr


def test_help_does_not_import_pytorch():
    code = (
        "import sys; from click.testing import CliRunner; from lowrank.cli import main\n"
        "for step in ('finetune', 'decompose', 'select_ranks', 'benchmark'):\n"
        "    assert CliRunner().invoke(main, [step, '--help']).exit_code == 0\n"
        "assert not {'torch', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_graph_does_not_import_pytorch():
    code = "import sys, lowrank.graph.pipeline; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
