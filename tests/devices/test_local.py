"""Measurements on this machine."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import reader_of_words

import lowrank.devices
from lowrank.config.device_kinds import create_device
from lowrank.devices import DeviceError, combinations, main_settings
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.runtime import fixed_inputs, load_model, load_runner
from lowrank.errors import UserError
from lowrank.testing import check_device

QUICK = {"sittings": 1, "turn_runs": 1, "repeats": 3, "seconds": 0.0, "warmup_seconds": 0.0}
FOLDER = Path(lowrank.devices.__file__).parent


def save_model(path: Path, *, features: int = 4, batch: int | str = "batch", **options) -> Path:
    weight = np.ones((features, 2), np.float32)
    kind = options.get("kind", TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["images", "weight"], ["logits"], "gemm")],
        "graph",
        [helper.make_tensor_value_info("images", kind, [batch, features])],
        [helper.make_tensor_value_info("logits", kind, [batch, 2])],
        [numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(kind)), "weight")],
    )
    imports = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


@pytest.mark.seconds
def test_this_machine_keeps_the_contract_of_devices():
    check_device(create_device("local", {}))


def test_a_measurement_contains_all_figures_and_no_paths(tmp_path: Path, model: Path):
    smaller = save_model(tmp_path / "smaller.onnx", features=3)
    result = create_device("local", {"threads": 1}).measure(model, smaller, QUICK)
    for name in ("original", "compressed"):
        assert result[name].keys() == {"p50", "p90", "p99", "mean"}
        assert 0 < result[name]["p50"] <= result[name]["p90"] <= result[name]["p99"]
        assert result["memory_mb"][name] >= 0
    assert 0 < result["speedup_low"] <= result["speedup"] <= result["speedup_high"]
    assert result["repeats"] == 4
    assert result["conditions"].keys() == {
        "load", "governor", "temperature_c", "other_cpu", "stolen_cpu", "throttled", "settled",
        "warning",
    }  # fmt: skip
    environment = result["environment"]
    assert environment["runtime_version"] == onnxruntime.__version__
    assert environment["provider"] == "CPUExecutionProvider"
    assert environment["threads"] == 1
    assert environment["machine"] == platform.machine()
    assert environment["cpu"]
    written = json.dumps(result, allow_nan=False)
    assert str(tmp_path) not in written
    assert ".onnx" not in written


def test_latencies_and_speedup_are_computed_from_the_turns(monkeypatch, model: Path):
    turns = [[[4, 4], [1, 1]], [[6, 6], [2, 2]], [[8, 8], [3, 5]], [[20, 40], [10, 10]]]
    sitting = {"nanoseconds": (np.array(turns) * 1_000_000).tolist(), "settled": True}
    sitting["conditions"] = {"other_cpu": 0.0, "stolen_cpu": None, "throttled": None}
    monkeypatch.setattr("lowrank.devices.local._sitting", lambda *_: sitting)
    result = create_device("local", {}).measure(model, model, QUICK | {"sittings": 2})
    assert result["original"] == pytest.approx({"p50": 7.0, "p90": 30.0, "p99": 40.0, "mean": 12.0})
    assert result["speedup"] == 3.0  # Median of 4, 3, 2 and 3. The ratio of medians would be 2.8.
    assert 2 <= result["speedup_low"] <= 3 <= result["speedup_high"] <= 4
    assert result["repeats"] == 16
    assert result["conditions"]["warning"] is None


def test_conditions_are_those_of_the_worst_sitting(monkeypatch, model: Path):
    quiet = {"other_cpu": 0.0, "stolen_cpu": None, "throttled": None}
    loud = {"other_cpu": 0.9, "stolen_cpu": None, "throttled": 2}
    sittings = iter(
        {"nanoseconds": [[[1], [1]]] * 2, "settled": settled, "conditions": conditions}
        for settled, conditions in ((True, quiet), (False, quiet), (True, loud))
    )
    monkeypatch.setattr("lowrank.devices.local._sitting", lambda *_: next(sittings))
    result = create_device("local", {}).measure(model, model, QUICK | {"sittings": 3})
    assert result["conditions"]["other_cpu"] == 0.9
    assert result["conditions"]["throttled"] == 2
    assert result["conditions"]["stolen_cpu"] is None
    assert result["conditions"]["settled"] is False
    assert result["conditions"]["warning"] == (
        "other processes took 0.90 of a core; heat slowed the processor 2 times; the latency of "
        "the models did not become stable during the warm-up"
    )


def test_runs_and_seconds_are_distributed_over_sittings(model: Path):
    result = create_device("local", {}).measure(model, model, QUICK | {"sittings": 3, "repeats": 9})
    # At least three runs in each sitting, rounded up because the number of pairs is even.
    assert result["repeats"] == 12


@pytest.mark.seconds
def test_peak_memory_does_not_include_the_memory_of_this_process(tmp_path: Path):
    ballast = np.ones(200_000_000, np.uint8)
    weight = np.ones((10_000_000, 2), np.float32)  # 80 MB
    assert ballast.nbytes > weight.nbytes
    large = save_model(tmp_path / "large.onnx", features=10_000_000)
    small = save_model(tmp_path / "small.onnx")
    memory = create_device("local", {}).measure(large, small, QUICK)["memory_mb"]
    assert memory["original"] > 80
    assert memory["compressed"] < 40


def test_settings_of_a_measurement_override_those_of_the_device(model: Path):
    device = create_device("local", {"threads": 2, "repeats": 2})
    result = device.measure(model, model, {**QUICK, "threads": 1})
    assert result["environment"]["threads"] == 1
    assert result["repeats"] == 4


def test_the_requested_batch_size_is_run(tmp_path: Path):
    fixed = save_model(tmp_path / "fixed.onnx", batch=8)
    logits = load_runner(fixed, MeasureSettings(batch_size=8))()[0]
    assert logits.shape == (8, 2)
    with pytest.raises(DeviceError, match=r"fixed\.onnx: .* a batch of 1"):
        load_runner(fixed, MeasureSettings())


def test_the_input_is_reproducible(model: Path):
    first, second = (load_runner(model, MeasureSettings(batch_size=3))()[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.ptp(first) > 0


def test_all_inputs_are_fed_and_whole_numbers_are_zeros(tmp_path: Path):
    onnx.save(reader_of_words(), path := tmp_path / "reader.onnx")
    settings = MeasureSettings(batch_size=3)
    feed = fixed_inputs(path, load_model(path, settings), 3)
    assert {name: (array.shape, array.dtype.name) for name, array in feed.items()} == {
        "words": ((3, 6), "int64"),
        "features": ((3, 5), "float32"),
    }
    assert not feed["words"].any()
    assert np.ptp(feed["features"]) > 1
    assert load_runner(path, settings)()[0].shape == (3, 4)
    times = create_device("local", {}).node_times(path, QUICK)
    assert {"Gather", "MatMul"} <= {time.operator for time in times.values()}


def test_inputs_that_are_no_batches_of_numbers_are_an_error(tmp_path: Path):
    nodes = [helper.make_node("Identity", ["text"], ["same"])]
    for kind, shape, message in (
        (TensorProto.STRING, ["batch"], r"'text' has the type tensor\(string\), but a type of"),
        (TensorProto.FLOAT, ["batch", "open"], r"'text' has shape \['batch', 'open'\], but a"),
    ):
        values = [helper.make_tensor_value_info(name, kind, shape) for name in ("text", "same")]
        graph = helper.make_graph(nodes, "graph", values[:1], values[1:])
        opset = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "t.onnx")
        with pytest.raises(DeviceError, match=message):
            load_runner(tmp_path / "t.onnx", MeasureSettings())


def test_the_error_for_an_unavailable_provider_lists_the_available_ones(model: Path):
    with pytest.raises(DeviceError, match=r"'NoSuchProvider' .* Available: .*CPUExecutionProvider"):
        create_device("local", {"provider": "NoSuchProvider"}).measure(model, model, QUICK)


def test_the_error_for_a_missing_or_damaged_model_names_it(tmp_path: Path, model: Path):
    device = create_device("local", {})
    with pytest.raises(DeviceError, match=r"absent\.onnx: no such model"):
        device.measure(model, tmp_path / "absent.onnx", QUICK)
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:-20])
    with pytest.raises(DeviceError, match=r"cut\.onnx: ONNX Runtime .* cannot load this file"):
        device.measure(model, tmp_path / "cut.onnx", QUICK)


@pytest.mark.parametrize(("program", "models"), [("peak_memory", 1), ("sitting", 2)])
def test_an_error_in_a_measuring_process_is_printed_as_json(
    tmp_path: Path, program: str, models: int
):
    arguments = [str(tmp_path / "absent.onnx")] * models + ["{}"]
    result = subprocess.run(
        [sys.executable, "-m", f"lowrank.devices.{program}", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    assert "absent.onnx: no such model" in json.loads(result.stdout)["error"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batchsize": 1}, "unknown benchmark setting 'batchsize'. Known: batch_size"),
        ({"repeats": 0}, "'repeats' is 0; it must be a number of at least 1"),
        ({"seconds": float("nan")}, "'seconds' is nan"),
        ({"threads": "two"}, "'threads' is 'two'"),
        ({"optimization": "most"}, "'optimization' is 'most'; it must be one of all, extended"),
    ],
)
def test_the_error_for_a_wrong_setting_names_it(settings: dict, message: str):
    with pytest.raises(DeviceError, match=message):
        MeasureSettings.of(settings)


def test_lists_of_settings_are_expanded_to_every_combination():
    section = {"kind": "local", "threads": [1, 2], "batch_size": [1, 8], "repeats": 3}
    assert list(combinations(section)) == [
        "threads_1_batch_size_1",
        "threads_1_batch_size_8",
        "threads_2_batch_size_1",
        "threads_2_batch_size_8",
    ]
    # The settings of the kind of device are not settings of a measurement.
    assert main_settings(section) == {"threads": 1, "batch_size": 1, "repeats": 3}
    plain = {"threads": 2}
    assert combinations(plain) == {"threads_2": plain}
    assert main_settings({}) == {}


def test_the_error_for_an_unknown_kind_of_device_names_it():
    with pytest.raises(UserError, match=r"unknown kind of device 'fridge'.*Known: local"):
        create_device("kitchen", {"kind": "fridge"})


def test_a_device_has_the_users_name_and_the_settings_of_its_section(model: Path):
    device = create_device("kitchen", {"kind": "local", **QUICK, "threads": [1, 2]})
    assert device.name == "kitchen"
    measured = device.measure(model, model, {})
    assert measured["repeats"] == 4
    assert measured["environment"]["threads"] == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"host": "x"}, r"'kitchen' of kind 'local': unknown setting 'host'\. Known: batch_size"),
        (
            {"kind": "ssh"},
            "'kitchen' of kind 'ssh': `host` is missing. Set it in",
        ),
        (
            {"kind": "ssh", "host": "-oProxyCommand=x"},
            "'kitchen' of kind 'ssh': setting 'host' is '-oProxyCommand=x'; it must be the host",
        ),
    ],
)
def test_the_error_for_a_wrong_section_names_the_device_and_the_setting(section, message):
    with pytest.raises(DeviceError, match=message):
        create_device("kitchen", section)


def test_devices_import_only_onnxruntime_and_numpy():
    script = (
        "import sys, lowrank.devices.peak_memory; "
        "heavy = {'torch', 'onnx', 'pydantic', 'click', 'scipy', 'lowrank.errors'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_devices_run_on_python_3_9():
    files = map(str, FOLDER.glob("*.py"))
    subprocess.run(
        ["vermin", "--target=3.9-", "--violations", "--no-tips", *files],
        check=True,
    )
