"""Steps in real processes, for each way in which the user's code can end a process."""

import json
import signal

import pytest

from lowrank.errors import UserError
from lowrank.files import read_json
from lowrank.graph.processes import run_step

pytestmark = pytest.mark.seconds

NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
"""


@pytest.fixture
def inspect(tmp_path, monkeypatch):
    """Return a function that makes the layer table of a network from some code, in a process."""
    monkeypatch.chdir(tmp_path)

    def run(code):
        (tmp_path / "theirs.py").write_text(code)
        source = {"factory": "theirs:build", "input_shape": [3, 8, 8]}
        output = tmp_path / "table.json"
        arguments = ["inspect", json.dumps(source), "--output", str(output)]
        run_step(arguments, output=output, about="checkpoint.theirs")
        return read_json(output)

    return run


def test_a_module_that_prints_at_exit_does_not_prevent_the_table(inspect):
    code = "import atexit, sys\natexit.register(print, 'bye', file=sys.stderr)\n" + NETWORK
    assert [layer["name"] for layer in inspect(code)["layers"]] == ["0", "2"]


def test_the_error_of_a_module_that_prints_at_exit_is_reported(inspect):
    code = "import atexit, sys\natexit.register(print, 'bye', file=sys.stderr)\nimport no_such\n"
    with pytest.raises(UserError, match=r"its module cannot be imported: .*'no_such'") as caught:
        inspect(code)
    assert "bye" not in str(caught.value)


def test_a_module_that_parses_arguments_does_not_see_those_of_the_step(inspect):
    code = "import argparse\nargparse.ArgumentParser().parse_args()\n" + NETWORK
    assert len(inspect(code)["layers"]) == 2


def test_a_module_that_requires_arguments(inspect):
    code = "import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\np.parse_args()\n"
    with pytest.raises(UserError, match=r"ends the program \(exit status 2\).*__main__"):
        inspect(code)


def test_a_module_that_exits(inspect):
    with pytest.raises(UserError, match=r"ends the program \(exit status 0\).*__main__"):
        inspect("import sys\nsys.exit(0)\n")


def test_a_function_that_exits(inspect):
    code = "import sys\ndef build():\n    sys.exit('no licence')\n"
    with pytest.raises(UserError, match=r"its function ends the program \(exit status no licence"):
        inspect(code)


def test_a_process_that_ends_with_status_0_without_output_has_failed(inspect):
    with pytest.raises(UserError, match=r"checkpoint\.theirs: .*without writing .*table\.json"):
        inspect("import os\nos._exit(0)\n")


def test_an_old_output_does_not_count_as_success(inspect):
    inspect(NETWORK)
    with pytest.raises(UserError, match=r"without writing .*table\.json"):
        inspect("import os\nos._exit(0)\n")


@pytest.mark.parametrize(
    ("number", "meaning"),
    [(signal.SIGKILL, "SIGKILL .*memory runs out"), (signal.SIGSEGV, "SIGSEGV .*crashed")],
)
def test_the_signal_that_ends_a_process_is_reported(inspect, number, meaning):
    code = "import os, signal, sys\nprint('last words', file=sys.stderr, flush=True)\n"
    code += f"signal.signal({int(number)}, signal.SIG_DFL)\n" if number != signal.SIGKILL else ""
    code += f"os.kill(os.getpid(), {int(number)})\n"
    with pytest.raises(UserError, match=meaning) as caught:
        inspect(code)
    assert "last words" in str(caught.value)
