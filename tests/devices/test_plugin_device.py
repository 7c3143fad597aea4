"""A kind of device of an installed package: tests/plugin/src/lowrank_example/one_core.py."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from plugin_package import install, run_with

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parents[2]
CORE = max(os.sched_getaffinity(0))
QUICK = {"sittings": 1, "repeats": 4, "seconds": 0.01, "warmup_seconds": 0, "energy_seconds": 0}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def python(installed, tmp_path):
    """Return a function that runs a program beside a params.yaml with some device."""

    def run(code, device=None, *arguments, check=True):
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        if device is not None:
            document["benchmark"]["bench"] = device
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        command = (sys.executable, "-c", code, *arguments)
        return run_with(installed, *command, folder=tmp_path, check=check)

    return run


def test_the_device_keeps_its_contract(python):
    python(
        "import sys\n"
        "from lowrank.config.device_kinds import create_device\n"
        "from lowrank.testing import check_device\n"
        "check_device(create_device('bench', {'kind': 'one_core', 'core': int(sys.argv[1])}))\n",
        None,
        str(CORE),
    )


LOAD = "from lowrank.config.reading import load_params; "
SHOW = LOAD + "print(load_params().benchmark['bench'].connection_json())"


def test_params_yaml_accepts_the_device_and_its_settings(python):
    shown = python(SHOW, {"kind": "one_core", "core": CORE, "threads": [1, 2]})
    assert json.loads(shown) == {"kind": "one_core", "core": CORE}


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"kind": "one_core"}, "`benchmark.bench.core` is missing: `kind: one_core` needs it."),
        (
            {"core": 0},
            "in `benchmark.bench`: `core` belongs to `kind: one_core`, not to `kind: local`, which "
            "has no settings of its own.",
        ),
        (
            {"kind": "one_core", "core": -1},
            "`benchmark.bench.core` is -1, expected at least 0.",
        ),
        (
            {"kind": "one_cor", "core": 0},
            "`benchmark.bench.kind` is 'one_cor', expected one of 'local', 'one_core', 'slurm', "
            "'ssh' or 'unfinished' (did you mean 'one_core'?).",
        ),
        (
            {"kind": "unfinished"},
            "kind of device 'unfinished': the entry point `unfinished = lowrank_example."
            "unfinished_device:UNFINISHED` in the group 'lowrank.devices' of the package "
            "'lowrank-example' 1.0 has a setting `volume` without a description; expected a field "
            "declared with `lowrank.devices.setting`. Correct or update the package, or uninstall "
            "it.",
        ),
    ],
)
def test_a_mistake_in_params_yaml_names_the_line_and_the_setting(python, device, expected):
    output = python(SHOW, device, check=False)
    assert "UserError: params.yaml: line " in output
    assert expected in output


def test_the_schema_offers_the_device(python):
    schema = json.loads(python("import lowrank.config.reading as r; print(r.schema())"))
    kinds = {
        kind["properties"]["kind"]["const"]: kind["properties"]
        for kind in schema["$defs"]["AnyDeviceSettings"]["oneOf"]
    }
    offered = kinds["one_core"]
    assert offered["core"]["description"] == "Number of the core, from 0."
    assert {"threads", "repeats"} <= offered.keys()


def test_the_steps_measure_on_the_device(installed, python, tmp_path, tiny_folder):
    """The commands are those of the rules: describe the device, quantize for it, measure on it."""
    import torch

    from lowrank.onnx_files.export import export_onnx
    from lowrank.surgery.states import State, write_state
    from lowrank.zoo import create_network
    from lowrank.zoo.registry import network_spec

    torch.manual_seed(0)
    spec, network = network_spec("resnet20"), create_network("resnet20")
    write_state(tmp_path / "model.safetensors", State(spec, network, {}))
    export_onnx(network, spec, tmp_path / "model.onnx")
    shown = "device = load_params().benchmark['bench']; print(device.to_json())"
    settings = python(LOAD + shown, {"kind": "one_core", "core": CORE, **QUICK}).strip()
    connection = json.dumps({"kind": "one_core", "core": CORE})

    def step(name, **options):
        words = [f"--{option.replace('_', '-')}={value}" for option, value in options.items()]
        program = (sys.executable, "-m", "lowrank.cli", name, *words)
        return run_with(installed, *program, folder=tmp_path)

    step("describe_device", device="bench", settings=connection, output="bench.json")
    step(
        "quantize",
        network="resnet20",
        model="model.onnx",
        state="model.safetensors",
        dataset=tiny_folder,
        devices="bench.json",
        kind="int8",
        settings='{"images": 20, "tolerance": 100, "threads": 1, "by_time": false}',
        folder="int8",
    )
    step(
        "benchmark",
        network="resnet20",
        original="model.onnx",
        compressed="model.onnx",
        control="int8",
        dataset=tiny_folder,
        state="model.safetensors",
        processor="bench.json",
        device="bench",
        settings=settings,
        output="measured.json",
    )
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["environment"]["core"] == CORE
    assert measured["speedup"] > 0
