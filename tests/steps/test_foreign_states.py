"""Steps that open the file of a network whose header names a command to run.

Such files may come from DVC remotes. The steps must only build networks that params.yaml describes.
"""

import json
import subprocess
import sys

import pytest
from toy import toy

from lowrank.config.network_source import NetworkSource
from lowrank.files import write_json
from lowrank.surgery.finding import layer_table
from lowrank.surgery.states import State, write_state
from lowrank.zoo.registry import network_spec

OURS = {"factory": "toy:toy", "input_shape": [3, 32, 32]}
THEIRS = {"factory": "subprocess:getoutput", "arguments": {"cmd": "touch pwned"}}
LAYERS = json.dumps({"conv1": "tucker1"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    foreign = NetworkSource.parse(THEIRS | {"input_shape": [3, 32, 32]})
    write_state("state.safetensors", State(network_spec("resnet20"), toy(), {}, foreign))
    write_json("table.json", layer_table(NetworkSource.parse(OURS), "toy").to_json())
    return tmp_path


def steps(dataset):
    """Return the arguments of each step that builds the network of a file."""
    data, table = {"dataset": dataset}, {"table": "table.json"}
    state, threads = {"state": "state.safetensors"}, {"threads": 1}
    budget = {"select": "budget", "target": {"macs": 0.5}, "images": 20}
    recipe = {"steps": 0, "batch_size": 40, "learning_rate": 0.01, "threads": 1, "device": "cpu"}
    return {
        "calibrate": state | table | data | threads | {"layers": LAYERS, "images": 20}
        | {"moments": "out"},
        "teacher_outputs": state | data | {"settings": '{"threads": 1}', "output": "out"},
        "export_onnx": state | data | threads | {"images": 10, "model": "out", "report": "out"},
        "finetune": data
        | {"previous": "state.safetensors", "factors": "", "method": "tucker", "round": 1}
        | {"settings": json.dumps(recipe), "resume": "r.pt", "state": "out", "metrics": "out"}
        | {"curve": "out", "timing": "out"},
        "select_ranks": state | table | data | threads
        | {"layers": LAYERS, "all-layers": LAYERS, "settings": json.dumps(budget), "plan": "out"},
    }  # fmt: skip


@pytest.mark.seconds
@pytest.mark.parametrize("step", steps(""))
def test_a_step_does_not_run_commands_that_a_file_names(folder, tiny_folder, step):
    arguments = {"network": json.dumps(OURS)} | steps(tiny_folder)[step]
    command = [f"--{name}={value}" for name, value in arguments.items()]
    search_path = [str(folder) for folder in sys.path if folder]
    code = f"import sys; sys.path[:0] = {search_path!r}; from lowrank.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, step, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "error: state.safetensors: holds the network" in done.stderr
    assert "getoutput" in done.stderr
    assert not (folder / "pwned").exists()
    assert not (folder / "out").exists()
