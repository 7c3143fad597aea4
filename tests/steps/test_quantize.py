"""The step that quantizes networks, and the measurement of int8 networks."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from photos import write_flat_photos

from lowrank.config.checkpoint import ValidationSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.core.plans import Plan
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import open_dataset
from lowrank.data.splits import write_splits
from lowrank.devices.device import NodeTime
from lowrank.devices.processor import Processor, integer_types
from lowrank.errors import UserError
from lowrank.files import read_json, write_json
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.int8_files import all_files, copy_folder, file_for
from lowrank.onnx_files.int8_times import NodeCost, decision, slower_in_int8
from lowrank.ranks.latency_model import Latencies
from lowrank.steps.benchmark import benchmark
from lowrank.steps.profile_draft import profile_draft
from lowrank.steps.profile_layers import profile_layers
from lowrank.steps.quantize import quantize
from lowrank.surgery.finding import layer_table
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
    """Write descriptions of devices and return their paths."""
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
    splits: Path | str = "",
    **processors: Processor,
) -> str:
    devices = described(folder.parent, **(processors or {"local": Processor.here()}))
    arguments = {
        "network": "resnet20",
        "devices": " ".join(map(str, devices)),
        "model": exported / "model.onnx",
        "state": exported / "model.safetensors",
        "dataset": dataset,
        "splits": splits,
        "kind": kind,
        "settings": settings,
        "connections": connections,
        "folder": folder,
    }
    done = CliRunner().invoke(quantize, [f"--{key}={value}" for key, value in arguments.items()])
    assert done.exit_code == 0, done.output
    return done.stderr


def test_a_network_in_int8_and_its_report(exported, tiny_folder, tmp_path, restored_torch):
    output = run(exported, tiny_folder, tmp_path / "int8", kind="int8", settings=SETTINGS)
    report = read_json(tmp_path / "int8/report.json")
    name = integer_types(Processor.here()).file
    assert report["devices"] == {"local": name}
    assert list(report["files"]) == [name]
    record, path = report["files"][name], file_for(tmp_path / "int8", "local")
    assert path == tmp_path / "int8" / name
    assert record["size_bytes"] == path.stat().st_size
    assert record["size_bytes"] < 0.5 * (exported / "model.onnx").stat().st_size
    assert set(record["accuracy"]) == {"validation", "test"}
    assert record["kept_in_float"] == []
    assert record["nodes"] == 20
    assert "0 of 20 nodes in float" in output


def test_ranges_come_from_the_users_calibration_images(
    exported, tiny_folder, tmp_path, restored_torch
):
    photos, splits = write_flat_photos(tmp_path / "photos", 10), tmp_path / "splits"
    validation, decoding = ValidationSettings(), DatasetSettings()
    place = "checkpoint.resnet20"
    write_splits(splits, tiny_folder, validation, decoding, calibration=str(photos), place=place,
                 say=lambda line: None)  # fmt: skip
    scales = []
    for own in ("", splits):
        folder = tmp_path / f"int8{bool(own)}"
        run(exported, tiny_folder, folder, kind="int8", settings=SETTINGS, splits=own)
        model = onnx.load(file_for(folder, "local"))
        arrays = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        scales.append(float(arrays["images_scale"]))
    own_images = open_dataset(tiny_folder, splits).calibration
    images = EvaluationBatches(own_images, network_spec("resnet20"))[0][0]
    limits = [min(0.0, float(images.min())), max(0.0, float(images.max()))]
    steps = 127 if integer_types(Processor.here()).reduce_range else 255
    assert scales[1] == pytest.approx((limits[1] - limits[0]) / steps, rel=1e-3)
    assert scales[0] != pytest.approx(scales[1], rel=1e-3)


def test_each_kind_of_hardware_has_a_file(exported, tiny_folder, tmp_path, restored_torch):
    """Devices of one kind share a file. The user's choice of types applies to all of them."""
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
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        for value in (onnx.numpy_helper.to_array(tensor).astype(int).max(),)
    )


def activation_types(path: Path) -> set[int]:
    """Return the types of quantized activations, from the zero points of their conversions."""
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {stored[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"}


def nodes_in_float(path: Path) -> set[str]:
    """Return the nodes whose weights are stored in float."""
    graph = onnx.load(path).graph
    in_float = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    products = [n for n in graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
    return {node.name for node in products if node.input[1] in in_float}


@pytest.mark.seconds
def test_nodes_are_kept_in_float_according_to_their_times(
    exported, tiny_folder, tmp_path, restored_torch
):
    folder = tmp_path / "int8"
    connections = '{"local": {"kind": "local"}}'
    output = run(
        exported, tiny_folder, folder, kind="int8", settings=BY_TIME, connections=connections
    )
    report, times = read_json(folder / "report.json"), read_json(folder / "times.json")
    name = report["devices"]["local"]
    assert list(times) == [name]
    timing = times[name]
    assert timing["device"] == "local"
    assert timing["environment"]["cpu"] == Processor.here().cpu
    nodes = [NodeCost.from_json(node) for node in timing["nodes"]]
    assert len(nodes) == 20
    assert nodes[0].name == "conv"
    assert nodes[0].after == ()
    assert nodes[2].after == ("blocks.0.conv1",)
    assert all(min(n.float_us, n.int8_us, n.quantize_us, n.dequantize_us) > 0 for n in nodes)
    # The input of the network is quantized, and its output is converted back.
    assert nodes[0].conversions_us > 0
    assert nodes[-1].conversions_us > 0
    assert tuple(timing["candidates"]) == slower_in_int8(nodes, timing["margin"])
    assert (timing["whole"] is None) == (not timing["candidates"])
    assert tuple(timing["kept_in_float"]) == decision(timing)
    record = report["files"][name]
    assert record["slower_in_int8"] == record["kept_in_float"] == timing["kept_in_float"]
    assert nodes_in_float(folder / name) == set(timing["kept_in_float"])
    assert "slower in int8 than in float" in output
    copy_folder(folder, tmp_path / "copy")
    assert read_json(tmp_path / "copy/times.json") == times


@pytest.mark.seconds
def test_nodes_that_a_device_runs_slower_in_int8_stay_in_float(
    exported, tiny_folder, tmp_path, restored_torch, monkeypatch
):
    """The profile is scaled to simulate a device with slow integer kernels, except for one node."""
    from lowrank.devices.local import LocalDevice

    profile, measure = LocalDevice.node_times, LocalDevice.measure

    def slow_but_one(self, model, settings):
        factors = {"QLinearConv": 100, "QGemm": 100}
        return {
            name: NodeTime(
                node.operator,
                node.milliseconds
                * (1 if name == "blocks.4.conv1" else factors.get(node.operator, 1)),
            )
            for name, node in profile(self, model, settings).items()
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
        output = run(exported, tiny_folder, folder, **options)
        timing = read_json(folder / "times.json")[name]
        kept = read_json(folder / "report.json")["files"][name]["kept_in_float"]
        assert len(timing["candidates"]) == 19
        assert "blocks.4.conv1" not in timing["candidates"]
        assert kept == (timing["candidates"] if stay else [])
        assert nodes_in_float(folder / name) == set(kept)
        assert ("they are kept in float" if stay else "they stay in int8") in output


def test_nodes_that_cannot_be_timed_stay_in_int8(exported, tiny_folder, tmp_path, restored_torch):
    connections = '{"local": {"kind": "ssh", "host": "nowhere.invalid"}}'
    folder = tmp_path / "int8"
    output = run(
        exported, tiny_folder, folder, kind="int8", settings=BY_TIME, connections=connections
    )
    name = integer_types(Processor.here()).file
    timing = read_json(folder / "times.json")[name]
    assert set(timing) == {"device", "not_measured"}
    reason = timing["not_measured"]
    assert "nowhere.invalid" in reason
    assert f"warning: local: nodes are not timed and stay in int8: {reason}" in output
    assert decision(timing) == ()
    assert read_json(folder / "report.json")["files"][name]["kept_in_float"] == []


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    write_json(tmp_path / "int8/report.json", {"kind": "int8", "size_bytes": 3})
    with pytest.raises(UserError, match=r"int8/report\.json: written by an earlier version"):
        file_for(tmp_path / "int8", "local")


def test_without_a_kind_only_a_report_is_written(exported, tiny_folder, tmp_path):
    run(exported, tiny_folder, tmp_path / "int8", kind="")
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["report.json"]
    assert read_json(tmp_path / "int8/report.json") == {"kind": None}


def test_a_device_without_int8_kernels_measures_only_in_float(
    exported, tiny_folder, tmp_path, monkeypatch
):
    reason = "it has no int8 kernels"
    monkeypatch.setattr("lowrank.devices.local.LocalDevice.lacks_int8", lambda *_: reason)
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
            *(
                "--network",
                "resnet20",
                "--dataset",
                tiny_folder,
                "--state",
                exported / "model.safetensors",
            ),
            *("--settings", '{"sittings": 1, "repeats": 2, "seconds": 0, "warmup_seconds": 0}'),
        ],
    )
    assert done.exit_code == 0, done.output
    measured = read_json(output)
    assert measured["speedup"] > 0
    assert measured["int8"] == {"not_measured": reason}
    assert measured["agreement"]["relative_error"] < 1e-4
    assert measured["agreement"]["changed_percent"] == 0
    assert measured["agreement"]["warning"] is None
    assert f"original in int8: not measured: {reason}" in done.stderr


def test_a_processor_other_than_the_described_one_is_an_error(exported, tmp_path):
    """Files that were made for one processor may be wrong on another."""
    (processor,) = described(tmp_path, local=Processor("x86_64", "another", ("avx2",)))
    model = exported / "model.onnx"
    done = CliRunner().invoke(
        benchmark,
        [
            *("--original", model, "--compressed", model, "--device", "local"),
            *("--control", tmp_path / "int8"),
            *("--processor", processor, "--output", tmp_path / "out.json", "--settings", "{}"),
            *(
                "--network",
                "resnet20",
                "--dataset",
                tmp_path,
                "--state",
                exported / "model.safetensors",
            ),
        ],
    )
    assert done.exit_code == 1
    assert "the device 'local' is described as another (x86_64), but it is" in done.output
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("profile", ["layers", "draft"])
def test_latencies_of_another_processor_are_refused(exported, tmp_path, profile):
    (processor,) = described(tmp_path, local=Processor("x86_64", "another", ("avx2",)))
    write_json(tmp_path / "table.json", layer_table("resnet20").to_json())
    write_json(tmp_path / "latencies.json", Latencies(1.0, 0.0, {}).to_json())
    write_json(tmp_path / "draft.json", Plan(()).to_json())
    settings = {"select": "budget", "target": {"latency_ms": {"local": 0.5}}}
    options = {
        "layers": ["--layers", "{}", "--settings", json.dumps(settings), "--cache", "cache.json"],
        "draft": ["--draft", tmp_path / "draft.json", "--latencies", tmp_path / "latencies.json"],
    }
    done = CliRunner().invoke(
        {"layers": profile_layers, "draft": profile_draft}[profile],
        [
            *("--original", exported / "model.onnx", "--state", exported / "model.safetensors"),
            *("--network", "resnet20", "--table", tmp_path / "table.json"),
            *("--device", "local", "--device-settings", "{}", "--quantize-settings", "{}"),
            *("--processor", processor, "--output", tmp_path / "out.json", *options[profile]),
        ],
    )
    assert done.exit_code == 1, done.output
    assert "the device 'local' is described as another (x86_64), but it is" in done.output
    assert not (tmp_path / "out.json").exists()


def measured_int8(exported, dataset, folder, types):
    """Quantize and measure with some types; return the measurement in int8 and all output."""
    output_of_quantize = run(
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
            *(
                "--network",
                "resnet20",
                "--dataset",
                dataset,
                "--state",
                exported / "model.safetensors",
            ),
            *("--settings", '{"sittings": 1, "repeats": 2, "seconds": 0, "warmup_seconds": 0}'),
        ],
    )
    assert done.exit_code == 0, done.output
    return read_json(output)["int8"], output_of_quantize + done.stderr


@pytest.mark.seconds
@pytest.mark.skipif(not Processor.here().is_x86, reason="only x86 runs these nodes in float")
def test_the_measurement_counts_the_nodes_that_run_in_integer_kernels(
    exported, tiny_folder, tmp_path, restored_torch
):
    """On x86 with int8 activations, the convolutions of residual blocks run in float."""
    suitable, output = measured_int8(exported, tiny_folder, tmp_path / "suits", "uint8")
    assert suitable["file"] == "u8_reduced.onnx"
    assert suitable["integer_kernels"]["total"] == 20
    assert suitable["integer_kernels"]["nodes"] == 20
    assert suitable["integer_kernels"]["macs_share"] == 1
    assert suitable["integer_kernels"]["warning"] is None
    assert "20 of 20 convolutions and matrix products, 100.0 % of the MACs" in output
    other, output = measured_int8(exported, tiny_folder, tmp_path / "other", "int8")
    assert other["file"] == "s8_reduced.onnx"
    assert 0 < other["integer_kernels"]["macs_share"] < 2 / 3
    assert "of the MACs, run in float on this device" in other["integer_kernels"]["warning"]
    assert "warning: local: " in output
    for measured in (suitable, other):
        assert measured["agreement"]["images"] == 64
        assert measured["agreement"]["relative_error"] < 0.05
        assert measured["agreement"]["warning"] is None
