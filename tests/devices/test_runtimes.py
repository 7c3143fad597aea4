"""Runtimes: what all of them have in common, and OpenVINO, which is optional."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lowrank.config.device_kinds import create_device
from lowrank.config.quantize import QuantizeSettings
from lowrank.core.layers import PlainLayer
from lowrank.devices import DeviceError, MeasureSettings, combinations, main_settings
from lowrank.devices.answers import agreement, expected_answers
from lowrank.devices.measure_settings import RUNTIMES
from lowrank.devices.processor import IntegerTypes
from lowrank.devices.runtime import get_runtime, load_runner
from lowrank.devices.runtime_openvino import operator_of
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.forms import Form
from lowrank.onnx_files.int8 import Quantizer, noise_for
from lowrank.onnx_files.layer_latencies import MeasuredLayers
from lowrank.onnx_networks.fixed_batch import write_fixed_batch
from lowrank.testing import check_device
from lowrank.zoo import create_network
from lowrank.zoo.registry import network_spec

QUICK = {"sittings": 1, "turn_runs": 1, "repeats": 3, "seconds": 0.0, "warmup_seconds": 0.0}
TYPES = IntegerTypes("uint8", reduce_range=False)


def needs_openvino(test):
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return pytest.mark.skip(f"needs the extra `openvino`: {error}")(test)
    return test


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """ResNet-20 with random weights in float and in int8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    in_float, in_int8 = folder / "float.onnx", folder / "int8.onnx"
    export_onnx(create_network("resnet20"), network_spec("resnet20"), in_float)
    quantizer = Quantizer(in_float, [noise_for(in_float)], QuantizeSettings(), folder)
    quantizer.write(in_int8, TYPES)
    return {"float": in_float, "int8": in_int8}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    np.save(tmp_path / "images.npy", generator.standard_normal((4, 3, 32, 32), dtype=np.float32))
    return tmp_path / "images.npy"


def test_the_runtimes_are_the_modules_of_the_folder():
    assert RUNTIMES == ("onnxruntime", "openvino")
    for name in RUNTIMES:
        runtime = get_runtime(MeasureSettings(runtime=name))
        assert (runtime.package, bool(runtime.label)) == (name, True)


def test_a_runtime_is_imported_only_if_it_is_used():
    script = (
        "import sys, lowrank.devices.local, lowrank.devices.sitting, lowrank.devices.ssh; "
        "from lowrank.devices.runtime import get_runtime, MeasureSettings; "
        "get_runtime(MeasureSettings(runtime='openvino')); "
        "print(sorted({'onnxruntime', 'openvino'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_runtime_that_is_not_installed_is_an_error_that_names_the_extra(
    monkeypatch, files: dict[str, Path]
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    device = create_device("local", {"runtime": "openvino"})
    with pytest.raises(DeviceError, match=r"OpenVINO does not load in .* 'lowrank\[openvino\]'"):
        device.answers(files["float"], files["float"], {})
    with pytest.raises(DeviceError, match="pip install openvino"):
        device.describe({})


def test_lists_of_runtimes_are_expanded_and_each_gets_its_own_options():
    section = {
        "runtime": ["onnxruntime", "openvino"],
        "threads": [1, 2],
        "optimization": "basic",
        "session": {"openvino": {"ENABLE_CPU_PINNING": False}},
    }
    expanded = combinations(section)
    assert list(expanded) == [
        "threads_1_runtime_onnxruntime",
        "threads_1_runtime_openvino",
        "threads_2_runtime_onnxruntime",
        "threads_2_runtime_openvino",
    ]
    first, second = list(expanded.values())[:2]
    assert first == main_settings(section)
    assert (first["session"], first["optimization"]) == ({}, "basic")
    assert second["session"] == {"ENABLE_CPU_PINNING": False}
    # A setting of ONNX Runtime does not apply to OpenVINO.
    assert second["optimization"] == "all"
    # A single runtime has no part in the names.
    assert list(combinations({"runtime": "openvino", "threads": 2})) == ["threads_2"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"runtime": "tflite"}, "'runtime' is 'tflite'; it must be one of onnxruntime, openvino"),
        ({"session": {"a": [1]}}, r"'session' has the value \[1\] for 'a'; it must be a text"),
    ],
)
def test_a_wrong_setting_of_runtimes_is_an_error(section, message):
    with pytest.raises(DeviceError, match=message):
        MeasureSettings.of(section)


def test_options_for_several_runtimes_must_name_them():
    section = {"runtime": ["onnxruntime", "openvino"], "session": {"NUM_STREAMS": "1"}}
    with pytest.raises(DeviceError, match="there are several runtimes; it must be a mapping"):
        create_device("local", section)


def test_options_reach_onnx_runtime(files: dict[str, Path]):
    """A disabled fusion of quantized nodes shows in the profile."""
    device = create_device("local", {})
    options = {"session": {"session.disable_quant_qdq": True}}

    def operators(settings):
        return {time.operator for time in device.node_times(files["int8"], settings).values()}

    assert "QLinearConv" in operators(QUICK)
    assert "QLinearConv" not in operators(QUICK | options)
    assert device.environment(options)["session"] == options["session"]
    assert "session" not in device.environment({})


@pytest.mark.parametrize(
    ("node_type", "kernel", "operator"),
    [
        ("Convolution", "brgconv_avx512_f32", "Conv"),
        ("Convolution", "brgconv_avx512_I8", "QLinearConv"),
        ("FullyConnectedQuantizedLegacy", "brgemm_avx512_I8", "QGemm"),
        ("FakeQuantize", "jit_avx512_f32", "QuantizeLinear"),
        ("Reorder", "jit_uni_I8", "Reorder"),
    ],
)
def test_operators_of_openvino_get_the_names_of_onnx_runtime(node_type, kernel, operator):
    assert operator_of(node_type, kernel) == operator


@needs_openvino
@pytest.mark.seconds
def test_openvino_keeps_the_contract_of_devices():
    check_device(create_device("local", {"runtime": "openvino"}))


@needs_openvino
def test_openvino_computes_the_outputs_of_the_file(files: dict[str, Path], images: Path):
    device, reference = create_device("local", {"runtime": "openvino"}), MeasureSettings()
    in_float, in_int8 = files["float"], files["int8"]
    expected = {path: expected_answers(path, images, reference) for path in files.values()}
    answers = {path: device.answers(path, images, {}) for path in files.values()}
    # In bfloat16, the error would be above 1e-3.
    assert agreement(answers[in_float], expected[in_float])["relative_error"] < 1e-5
    compared = agreement(answers[in_int8], expected[in_int8], expected[in_float])
    assert compared["warning"] is None
    assert device.lacks_int8(in_int8, {}) is None


@needs_openvino
@pytest.mark.parametrize("size", [1, 3])
def test_openvino_runs_a_twin_with_a_fixed_batch(files: dict[str, Path], tmp_path: Path, size):
    twin = write_fixed_batch(files["float"], tmp_path / "twin.onnx", size)
    settings = MeasureSettings(runtime="openvino", batch_size=size)
    expected = load_runner(files["float"], MeasureSettings(batch_size=size))()[0]
    np.testing.assert_allclose(load_runner(twin, settings)()[0], expected, rtol=1e-4, atol=1e-4)


@needs_openvino
def test_one_thread_is_one_thread_in_openvino(files: dict[str, Path]):
    """The process uses no more than one core while the model runs."""
    script = f"""
import os
from pathlib import Path
from lowrank.devices import MeasureSettings
from lowrank.devices.runtime import load_runner
import sys, time
run = load_runner(Path({str(files["float"])!r}), MeasureSettings(runtime="openvino"))
run()
start = time.perf_counter(), time.process_time()
while time.perf_counter() - start[0] < 1:
    run()
busy = (time.process_time() - start[1]) / (time.perf_counter() - start[0])
print(busy)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.2  # Cores in use at a time.


@needs_openvino
def test_layers_are_measured_in_openvino(tmp_path: Path):
    layer = PlainLayer(8, 16, (3, 3), padding=(1, 1))
    for form in (Form(None, None), Form(QuantizeSettings(), TYPES)):
        device = create_device("local", {"runtime": "openvino"})
        settings = QUICK | {"batch_size": 1}
        measured = MeasuredLayers(device, settings, form, tmp_path / "cache.json")
        (milliseconds,) = measured([(layer, (16, 16))])
        assert milliseconds > 0
    keys = json.loads((tmp_path / "cache.json").read_text())
    assert len(keys) == 2
    assert all("openvino" in key for key in keys)


@needs_openvino
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"provider": "CUDAExecutionProvider"}, "`provider: CUDA.*` is a setting of ONNX Runtime"),
        ({"optimization": "none"}, "`optimization: none` is a setting of ONNX Runtime"),
        ({"session": {"INFERENCE_NUM_THREADS": 2}}, "number of threads is the setting `threads`"),
        ({"session": {"NO_SUCH": 1}}, "Unsupported property NO_SUCH.*Check the properties"),
    ],
)
def test_a_setting_that_openvino_lacks_is_an_error(files: dict[str, Path], settings, message):
    with pytest.raises(DeviceError, match=message):
        load_runner(files["float"], MeasureSettings(runtime="openvino", **settings))


@needs_openvino
def test_a_damaged_file_is_an_error_in_openvino(files: dict[str, Path], tmp_path: Path):
    (tmp_path / "cut.onnx").write_bytes(files["float"].read_bytes()[:-20])
    with pytest.raises(DeviceError, match=r"cut\.onnx: OpenVINO .* cannot load this file"):
        load_runner(tmp_path / "cut.onnx", MeasureSettings(runtime="openvino"))


def test_a_twin_has_a_fixed_batch_in_inputs_and_outputs(files: dict[str, Path], tmp_path: Path):
    twin = onnx.load(write_fixed_batch(files["float"], tmp_path / "twin.onnx", 2))
    sizes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*twin.graph.input, *twin.graph.output)
    }
    assert sizes == {"images": [2, 3, 32, 32], "logits": [2, 10]}
    onnx.checker.check_model(twin, full_check=True)
    settings = MeasureSettings(batch_size=2)
    (outputs,), (expected,) = (
        load_runner(path, settings)() for path in (tmp_path / "twin.onnx", files["float"])
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
