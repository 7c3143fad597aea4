import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from lowrank.devices.device import NodeTime
from lowrank.devices.processor import Processor, integer_types
from lowrank.errors import UserError
from lowrank.files import read_json, write_json
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.int8_files import all_files, copy_folder, file_for
from lowrank.onnx_files.int8_times import NodeCost, decision, slower_in_int8
from lowrank.steps.benchmark import benchmark
from lowrank.steps.quantize import quantize
from lowrank.surgery.states import State, write_state
from lowrank.zoo import create_network
from lowrank.zoo.registry import network_spec

SETTINGS = '{"images": 30, "tolerance": 100, "threads": 1, "by_time": false}'
BY_TIME = SETTINGS.replace("false", "true")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    spec, network = network_spec("resnet20"), create_network("resnet20")
    write_state(folder / "model.safetensors", State(spec, network, {}))
    export_onnx(network, spec, folder / "model.onnx")
    return folder


def described(folder: Path, **processors: Processor) -> list[Path]:
    """Descriptions of devices by their names."""
    for name, processor in processors.items():
        write_json(folder / f"{name}.json", processor.to_json())
    return [folder / f"{name}.json" for name in processors]


def run(
    exported: Path,
    dataset: Path,
    folder: Path,
    *,
    kind: str,
    settings: str = "{}",
    connections: str = "{}",
    **processors: Processor,
) -> str:
    devices = described(folder.parent, **(processors or {"local": Processor.here()}))
    arguments = {
        "devices": " ".join(map(str, devices)),
        "model": exported / "model.onnx",
        "state": exported / "model.safetensors",
        "dataset": dataset,
        "kind": kind,
        "settings": settings,
        "connections": connections,
        "folder": folder,
    }
    done = CliRunner().invoke(quantize, [f"--{key}={value}" for key, value in arguments.items()])
    assert done.exit_code == 0, done.output
    return done.stderr


def test_a_network_in_int8_and_its_report(exported, tiny_folder, tmp_path, restored_torch):
    said = run(exported, tiny_folder, tmp_path / "int8", kind="int8", settings=SETTINGS)
    report = read_json(tmp_path / "int8/report.json")
    name = integer_types(Processor.here()).file
    assert report["devices"] == {"local": name}
    assert list(report["files"]) == [name]
    found, path = report["files"][name], file_for(tmp_path / "int8", "local")
    assert path == tmp_path / "int8" / name
    assert found["size_bytes"] == path.stat().st_size
    assert found["size_bytes"] < 0.5 * (exported / "model.onnx").stat().st_size
    assert set(found["accuracy"]) == {"validation", "test"}
    assert found["kept_in_float"] == []
    assert found["nodes"] == 20
    assert "0 of 20 nodes in float" in said


def test_each_kind_of_hardware_has_a_file(exported, tiny_folder, tmp_path, restored_torch):
    """Devices of one kind share a file; what a user names holds for all of them."""
    processors = {
        "board": Processor("aarch64", "Cortex-A76", ("asimd", "asimddp")),
        "old": Processor("x86_64", "Core i7-4770", ("avx2",)),
        "new": Processor("AMD64", "Ryzen 9 7900", ("avx2", "avx512f", "avx512_vnni")),
        "phone": Processor("arm64", "Cortex-A53", ("asimd",)),
    }
    folder = tmp_path / "int8"
    run(exported, tiny_folder, folder, kind="int8", settings=SETTINGS, **processors)
    report = read_json(folder / "report.json")
    assert report["devices"] == {
        "board": "s8.onnx",
        "old": "u8_reduced.onnx",
        "new": "u8.onnx",
        "phone": "s8.onnx",
    }
    assert list(report["files"]) == ["s8.onnx", "u8_reduced.onnx", "u8.onnx"]
    assert all_files(folder) == [folder / name for name in report["files"]]
    assert {path.name for path in folder.iterdir()} == {*report["files"], "report.json"}
    assert largest_weight(folder / "u8_reduced.onnx") == 64
    assert largest_weight(folder / "u8.onnx") == largest_weight(folder / "s8.onnx") == 127
    types = {name: activation_types(folder / name) for name in report["files"]}
    assert types == {
        "s8.onnx": {onnx.TensorProto.INT8},
        "u8_reduced.onnx": {onnx.TensorProto.UINT8},
        "u8.onnx": {onnx.TensorProto.UINT8},
    }
    with pytest.raises(UserError, match="no int8 file for the device 'laptop', only for board"):
        file_for(folder, "laptop")
    chosen = SETTINGS.replace("{", '{"activations": "int8", "reduce_range": false, ', 1)
    run(exported, tiny_folder, tmp_path / "own", kind="int8", settings=chosen, **processors)
    assert list(read_json(tmp_path / "own/report.json")["files"]) == ["s8.onnx"]


def largest_weight(path: Path) -> int:
    return max(
        abs(int(value))
        for each in onnx.load(path).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
        for value in (onnx.numpy_helper.to_array(each).astype(int).max(),)
    )


def activation_types(path: Path) -> set[int]:
    """Types that activations are rounded to, by the zero points of their conversions."""
    graph = onnx.load(path).graph
    stored = {each.name: each.data_type for each in graph.initializer}
    return {stored[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"}


def nodes_in_float(path: Path) -> set[str]:
    """Nodes with weights whose weights are not stored in 8 bits."""
    graph = onnx.load(path).graph
    in_float = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    products = [n for n in graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
    return {node.name for node in products if node.input[1] in in_float}


def test_what_stays_in_float_by_time_follows_from_the_times(
    exported, tiny_folder, tmp_path, restored_torch
):
    folder = tmp_path / "int8"
    connections = '{"local": {"kind": "local"}}'
    said = run(
        exported, tiny_folder, folder, kind="int8", settings=BY_TIME, connections=connections
    )
    report, times = read_json(folder / "report.json"), read_json(folder / "times.json")
    name = report["devices"]["local"]
    assert list(times) == [name]
    found = times[name]
    assert found["device"] == "local"
    assert found["environment"]["cpu"] == Processor.here().cpu
    nodes = [NodeCost.from_json(each) for each in found["nodes"]]
    assert len(nodes) == 20
    assert nodes[0].name == "conv"
    assert nodes[0].after == ()
    assert nodes[2].after == ("blocks.0.conv1",)
    assert all(min(n.float_us, n.int8_us, n.quantize_us, n.dequantize_us) > 0 for n in nodes)
    # The network's input is rounded for its first layer, its output is converted back.
    assert nodes[0].conversions_us > 0
    assert nodes[-1].conversions_us > 0
    assert tuple(found["candidates"]) == slower_in_int8(nodes, found["margin"])
    assert (found["whole"] is None) == (not found["candidates"])
    assert tuple(found["kept_in_float"]) == decision(found)
    record = report["files"][name]
    assert record["slower_in_int8"] == record["kept_in_float"] == found["kept_in_float"]
    assert nodes_in_float(folder / name) == set(found["kept_in_float"])
    assert "slower in int8 than in float" in said
    copy_folder(folder, tmp_path / "copy")
    assert read_json(tmp_path / "copy/times.json") == times


def test_nodes_that_a_device_runs_slower_in_int8_stay_in_float(
    exported, tiny_folder, tmp_path, restored_torch, monkeypatch
):
    """Scale the profile as for a device whose integer kernels are slow, but for one."""
    from lowrank.devices.local import LocalDevice

    profile, measure = LocalDevice.node_times, LocalDevice.measure

    def slow_but_one(self, model, settings):
        factors = {"QLinearConv": 100, "QGemm": 100}
        return {
            name: NodeTime(
                each.operator,
                each.milliseconds
                * (1 if name == "blocks.4.conv1" else factors.get(each.operator, 1)),
            )
            for name, each in profile(self, model, settings).items()
        }

    def faster(self, original, compressed, settings):
        once = {"sittings": 1, "repeats": 2, "seconds": 0, "warmup_seconds": 0}
        return measure(self, original, compressed, settings | once) | gain

    monkeypatch.setattr(LocalDevice, "node_times", slow_but_one)
    monkeypatch.setattr(LocalDevice, "measure", faster)
    name, options = integer_types(Processor.here()).file, {"kind": "int8", "settings": BY_TIME}
    options["connections"] = '{"local": {"kind": "local"}}'
    for lower_end, stay in ((1.2, True), (0.9, False)):
        gain = {"speedup": 1.3, "speedup_low": lower_end, "speedup_high": 1.4}
        folder = tmp_path / str(stay) / "int8"
        said = run(exported, tiny_folder, folder, **options)
        found = read_json(folder / "times.json")[name]
        kept = read_json(folder / "report.json")["files"][name]["kept_in_float"]
        assert len(found["candidates"]) == 19
        assert "blocks.4.conv1" not in found["candidates"]
        assert kept == (found["candidates"] if stay else [])
        assert nodes_in_float(folder / name) == set(kept)
        assert ("they stay in float" if stay else "they stay in int8 all the same") in said


def test_where_nodes_cannot_be_timed_they_stay_in_int8(
    exported, tiny_folder, tmp_path, restored_torch
):
    connections = '{"local": {"kind": "ssh", "host": "nowhere.invalid"}}'
    folder = tmp_path / "int8"
    said = run(
        exported, tiny_folder, folder, kind="int8", settings=BY_TIME, connections=connections
    )
    name = integer_types(Processor.here()).file
    found = read_json(folder / "times.json")[name]
    assert set(found) == {"device", "not_measured"}
    assert "nowhere.invalid" in found["not_measured"]
    assert f"warning: local: nodes are not timed, and stay in int8: {found['not_measured']}" in said
    assert decision(found) == ()
    assert read_json(folder / "report.json")["files"][name]["kept_in_float"] == []


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    write_json(tmp_path / "int8/report.json", {"kind": "int8", "size_bytes": 3})
    with pytest.raises(UserError, match=r"int8/report\.json: written by an earlier version"):
        file_for(tmp_path / "int8", "local")


def test_without_a_kind_there_is_a_report_alone(exported, tiny_folder, tmp_path):
    run(exported, tiny_folder, tmp_path / "int8", kind="")
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["report.json"]
    assert read_json(tmp_path / "int8/report.json") == {"kind": None}


def test_a_device_without_int8_keeps_the_measurement_in_float(
    exported, tiny_folder, tmp_path, monkeypatch
):
    because = "it has no int8 kernels"
    monkeypatch.setattr("lowrank.devices.local.LocalDevice.lacks_int8", lambda *_: because)
    model, output = exported / "model.onnx", tmp_path / "benchmark.json"
    record = {"activations": "uint8", "reduce_range": True}
    write_json(
        tmp_path / "int8/report.json",
        {"kind": "int8", "devices": {"local": "u8.onnx"}, "files": {"u8.onnx": record}},
    )
    shutil.copyfile(model, tmp_path / "int8/u8.onnx")
    (processor,) = described(tmp_path, local=Processor.here())
    done = CliRunner().invoke(
        benchmark,
        [
            *("--original", model, "--compressed", model, "--quantized", tmp_path / "int8"),
            *("--control", tmp_path / "int8"),
            *("--device", "local", "--output", output, "--processor", processor),
            *("--dataset", tiny_folder, "--state", exported / "model.safetensors"),
            *("--settings", '{"sittings": 1, "repeats": 2, "seconds": 0, "warmup_seconds": 0}'),
        ],
    )
    assert done.exit_code == 0, done.output
    measured = read_json(output)
    assert measured["speedup"] > 0
    assert measured["int8"] == {"not_measured": because}
    assert measured["agreement"]["relative_error"] < 1e-4
    assert measured["agreement"]["changed_percent"] == 0
    assert measured["agreement"]["warning"] is None
    assert f"original in int8: not measured: {because}" in done.stderr


def test_another_processor_than_was_described_is_told(exported, tmp_path):
    """Files made for the one may be wrong on the other."""
    (processor,) = described(tmp_path, local=Processor("x86_64", "another", ("avx2",)))
    model = exported / "model.onnx"
    done = CliRunner().invoke(
        benchmark,
        [
            *("--original", model, "--compressed", model, "--device", "local"),
            *("--control", tmp_path / "int8"),
            *("--processor", processor, "--output", tmp_path / "out.json", "--settings", "{}"),
            *("--dataset", tmp_path, "--state", exported / "model.safetensors"),
        ],
    )
    assert done.exit_code == 1
    assert "the device 'local' is described as another (x86_64), but it is" in done.output
    assert not (tmp_path / "out.json").exists()


def measured_int8(exported, dataset, folder, types):
    """What the step `benchmark` finds of the int8 files of some types, and what it says."""
    said = run(
        exported,
        dataset,
        folder / "int8",
        kind="int8",
        settings=SETTINGS.replace("{", f'{{"activations": "{types}", "reduce_range": true, '),
    )
    model, output = exported / "model.onnx", folder / "benchmark.json"
    done = CliRunner().invoke(
        benchmark,
        [
            *("--original", model, "--compressed", model, "--quantized", folder / "int8"),
            *("--control", folder / "int8"),
            *("--device", "local", "--processor", folder / "local.json", "--output", output),
            *("--dataset", dataset, "--state", exported / "model.safetensors"),
            *("--settings", '{"sittings": 1, "repeats": 2, "seconds": 0, "warmup_seconds": 0}'),
        ],
    )
    assert done.exit_code == 0, done.output
    return read_json(output)["int8"], said + done.stderr


@pytest.mark.skipif(not Processor.here().is_x86, reason="what x86 runs in float, ARM does not")
def test_what_really_runs_in_integers_is_in_the_measurement(
    exported, tiny_folder, tmp_path, restored_torch
):
    """On x86, int8 activations leave the convolutions of residual blocks in float."""
    suits, said = measured_int8(exported, tiny_folder, tmp_path / "suits", "uint8")
    assert suits["file"] == "u8_reduced.onnx"
    assert suits["integer_kernels"]["total"] == 20
    assert suits["integer_kernels"]["nodes"] == 20
    assert suits["integer_kernels"]["macs_share"] == 1
    assert suits["integer_kernels"]["warning"] is None
    assert "20 of 20 convolutions and matrix products, 100.0 % of the MACs" in said
    other, said = measured_int8(exported, tiny_folder, tmp_path / "other", "int8")
    assert other["file"] == "s8_reduced.onnx"
    assert 0 < other["integer_kernels"]["macs_share"] < 2 / 3
    assert "of the MACs, run in float on this device" in other["integer_kernels"]["warning"]
    assert "warning: local: " in said
    for each in (suits, other):
        assert each["agreement"]["images"] == 64
        assert each["agreement"]["relative_error"] < 0.05
        assert each["agreement"]["warning"] is None
