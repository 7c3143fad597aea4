from pathlib import Path

import pytest
from click.testing import CliRunner

from lowrank.files import read_json
from lowrank.networks import create_network
from lowrank.networks.export import export_onnx
from lowrank.networks.registry import network_spec
from lowrank.networks.states import State, write_state
from lowrank.steps.benchmark import benchmark
from lowrank.steps.quantize import quantize


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    spec, network = network_spec("resnet20"), create_network("resnet20")
    write_state(folder / "model.safetensors", State(spec, network, {}))
    export_onnx(network, spec, folder / "model.onnx")
    return folder


def run(exported: Path, dataset: Path, folder: Path, *, kind: str, settings: str = "{}") -> str:
    arguments = {
        "model": exported / "model.onnx",
        "state": exported / "model.safetensors",
        "dataset": dataset,
        "kind": kind,
        "settings": settings,
        "folder": folder,
    }
    done = CliRunner().invoke(quantize, [f"--{key}={value}" for key, value in arguments.items()])
    assert done.exit_code == 0, done.output
    return done.stderr


def test_a_network_in_int8_and_its_report(exported, tiny_folder, tmp_path, restored_torch):
    settings = '{"images": 30, "tolerance": 100, "threads": 1}'
    said = run(exported, tiny_folder, tmp_path / "int8", kind="int8", settings=settings)
    report = read_json(tmp_path / "int8/report.json")
    assert report["size_bytes"] == (tmp_path / "int8/model.onnx").stat().st_size
    assert report["size_bytes"] < 0.5 * (exported / "model.onnx").stat().st_size
    assert set(report["accuracy"]) == {"validation", "test"}
    assert report["kept_in_float"] == []
    assert report["nodes"] == 20
    assert "0 of 20 nodes in float" in said


def test_without_a_kind_there_is_a_report_alone(exported, tiny_folder, tmp_path):
    run(exported, tiny_folder, tmp_path / "int8", kind="")
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["report.json"]
    assert read_json(tmp_path / "int8/report.json") == {"kind": None}


def test_a_device_without_int8_keeps_the_measurement_in_float(exported, tmp_path, monkeypatch):
    because = "it has no int8 kernels"
    monkeypatch.setattr("lowrank.devices.local.LocalDevice.lacks_int8", lambda *_: because)
    model, output = exported / "model.onnx", tmp_path / "local.json"
    done = CliRunner().invoke(
        benchmark,
        [
            *("--original", model, "--compressed", model, "--quantized", exported),
            *("--device", "local", "--output", output),
            *("--settings", '{"sittings": 1, "repeats": 2, "seconds": 0, "warmup_seconds": 0}'),
        ],
    )
    assert done.exit_code == 0, done.output
    measured = read_json(output)
    assert measured["speedup"] > 0
    assert measured["int8"] == {"not_measured": because}
    assert f"int8 is not measured: {because}" in done.stderr
