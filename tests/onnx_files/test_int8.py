import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_graphs import network, random
from small import SPEC, logits_of, small_network

from lowrank.config.quantize import QuantizeSettings
from lowrank.devices.processor import IntegerTypes, Processor
from lowrank.errors import UserError
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.int8 import Pieces, Quantizer, types_for
from lowrank.onnx_files.int8_search import Kept, ToleranceSearch
from lowrank.onnx_networks.model_run import ModelRun
from lowrank.zoo import NetworkSpec
from lowrank.zoo.resnet import ResNet

BATCHES = [
    {"images": np.random.default_rng(n).standard_normal((50, 3, 8, 8), np.float32)}
    for n in range(3)
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_onnx(small_network(), SPEC, path)
    return path


def quantizer(exported: Path, folder: Path, **settings) -> Quantizer:
    folder.mkdir(exist_ok=True)
    return Quantizer(exported, BATCHES, QuantizeSettings(**settings), folder)


def integer_weights(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that are stored in 8 bits, by name."""
    return {
        tensor.name: tuple(tensor.dims)
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    }


def relative_error(path: Path, exported: Path) -> float:
    images = torch.from_numpy(BATCHES[0]["images"])
    expected = logits_of(exported, images)
    return np.linalg.norm(logits_of(path, images) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_outputs_are_close_to_the_network_in_float(exported, tmp_path, calibration):
    path = tmp_path / "int8.onnx"
    quantizer(exported, tmp_path / "work", calibration=calibration).write(path)
    assert 0 < relative_error(path, exported) < 0.1
    assert len(integer_weights(path)) == 6
    # Calibration is reused for the types of processors without VNNI.
    reduced = types_for(Processor("x86_64", "old", ("avx2",)), QuantizeSettings())
    quantizer(exported, tmp_path / "work", calibration=calibration).write(path, reduced)
    assert 0 < relative_error(path, exported) < 0.1
    onnx.checker.check_model(str(path), full_check=True)


def test_weights_have_one_scale_per_output_channel(exported, tmp_path):
    path = tmp_path / "int8.onnx"
    quantizer(exported, tmp_path / "work").write(path)
    shapes = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    for weight in integer_weights(path).values():
        assert (max(weight[0], 1),) in shapes


def test_equal_inputs_give_equal_bytes(exported, tmp_path):
    for name in ("first", "second"):
        quantizer(exported, tmp_path / f"{name} work").write(tmp_path / f"{name}.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_ranges_come_from_all_batches(exported, tmp_path):
    path, wider = tmp_path / "int8.onnx", tmp_path / "wider.onnx"
    quantizer(exported, tmp_path / "work").write(path)
    with_outliers = Quantizer(
        exported,
        [*BATCHES, {"images": 100 * BATCHES[0]["images"]}],
        QuantizeSettings(),
        tmp_path / "work",
    )
    (tmp_path / "work/ranges.json").unlink()
    with_outliers.write(wider)
    assert relative_error(wider, exported) > 3 * relative_error(path, exported)


def test_only_one_node_and_all_except_one_node(exported, tmp_path):
    path = tmp_path / "int8.onnx"
    quantized = quantizer(exported, tmp_path / "work")
    assert len(quantized.nodes) == 6
    quantized.write(path, only=quantized.nodes[:1])
    assert len(integer_weights(path)) == 1
    quantized.write(path, but=quantized.nodes[:1])
    assert len(integer_weights(path)) == 5


def test_sensitive_nodes_stay_in_float(exported, tmp_path):
    """The search finds the one harmful node and keeps no other node in float."""
    path = tmp_path / "int8.onnx"
    quantized = quantizer(exported, tmp_path / "work")
    harmful = quantized.nodes[2]
    quantized.write(path, but=quantized.nodes)
    messages = []

    def drop(file: Path) -> float:
        in_float = {
            node.name
            for node in onnx.load(file).graph.node
            if node.name in quantized.nodes and not _has_integer_weight(file, node)
        }
        return 0.0 if harmful in in_float else 5.0

    kept = ToleranceSearch(
        quantized, lost=drop, divergence=drop, tolerance=0.3, say=messages.append
    ).write(path)
    assert kept == Kept((harmful,), 0.0, within=True, measured=6)
    assert len(integer_weights(path)) == 5
    assert messages[0].startswith("int8 loses 5.00 points, more than 0.3")


def _has_integer_weight(file: Path, node: onnx.NodeProto) -> bool:
    graph = onnx.load(file).graph
    stored_types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    producers = {output: producer for producer in graph.node for output in producer.output}
    weight = producers.get(node.input[1])
    return weight is not None and stored_types.get(weight.input[0]) == onnx.TensorProto.INT8


@pytest.mark.parametrize("needed", range(1, 7))
def test_no_more_nodes_than_needed_stay_in_float(exported, tmp_path, needed):
    quantized, path = quantizer(exported, tmp_path / "work"), tmp_path / "int8.onnx"

    def drop(file: Path) -> float:
        return 0.0 if len(integer_weights(file)) <= len(quantized.nodes) - needed else 5.0

    kept = ToleranceSearch(quantized, lost=drop, divergence=lambda _: 1.0, tolerance=0.3).write(
        path
    )
    assert kept.within
    assert len(kept.nodes) == needed
    assert len(integer_weights(path)) == len(quantized.nodes) - needed


def test_all_nodes_can_stay_in_float(exported, tmp_path):
    quantized = quantizer(exported, tmp_path / "work")
    kept = ToleranceSearch(
        quantized, lost=lambda _: 1.0, divergence=lambda _: 0.0, tolerance=0.3
    ).write(tmp_path / "int8.onnx")
    assert sorted(kept.nodes) == sorted(quantized.nodes)
    assert not kept.within
    assert not integer_weights(tmp_path / "int8.onnx")


def test_search_stops_at_its_time_limit(exported, tmp_path):
    """The clock advances ten seconds per call; the measurement may take 30 of 60 seconds."""
    ticks, messages = iter(range(0, 10_000, 10)), []
    quantized, path = quantizer(exported, tmp_path / "work"), tmp_path / "int8.onnx"
    losses = iter([5.0, 4.0, 4.5])
    kept = ToleranceSearch(
        quantized,
        lost=lambda _: next(losses),
        divergence=lambda _: 1.0,
        tolerance=0.3,
        seconds=60,
        say=messages.append,
        clock=lambda: next(ticks),
    ).write(path)
    assert kept == Kept(quantized.nodes[:1], 4.0, within=False, measured=2)
    assert "for at most 60 seconds" in messages[0]
    assert "warning: the search stopped after" in messages[-1]
    assert "2 of 6 nodes measured" in messages[-1]
    # The file is the one with the smallest drop, not the last one.
    assert len(integer_weights(path)) == 5


def test_without_search_time_all_nodes_stay_in_int8(exported, tmp_path):
    quantized, path = quantizer(exported, tmp_path / "work"), tmp_path / "int8.onnx"
    kept = ToleranceSearch(
        quantized, lost=lambda _: 9.0, divergence=lambda _: 1.0, tolerance=0.3, seconds=0
    ).write(path)
    assert kept == Kept((), 9.0, within=False, measured=0)
    assert len(integer_weights(path)) == 6


def test_nodes_that_always_stay_in_float(exported, tmp_path):
    quantized, path = quantizer(exported, tmp_path / "work"), tmp_path / "int8.onnx"
    kept = ToleranceSearch(
        quantized,
        lost=lambda _: 0.0,
        divergence=lambda _: 0.0,
        tolerance=0.3,
        but=quantized.nodes[:2],
    ).write(path)
    assert kept.nodes == ()
    assert len(integer_weights(path)) == 4


def test_pieces_contain_every_image_once():
    batches = [{"images": np.random.default_rng(n).random((21, 3, 32, 32))} for n in range(2)]
    pieces = Pieces(batches)
    assert [len(piece["images"]) for piece in pieces] == [8, 8, 5] * 2
    joined = np.concatenate([piece["images"] for piece in pieces])
    np.testing.assert_array_equal(joined, np.concatenate([batch["images"] for batch in batches]))
    assert len(Pieces([{"images": np.zeros((3, 3, 224, 224), np.float32)}])) == 3


QUANTIZE = """
import sys
from pathlib import Path
import numpy as np
from lowrank.onnx_files.int8 import Quantizer
from lowrank.config.params import QuantizeSettings

class Batches:
    def __len__(self):
        return 2
    def __getitem__(self, n):
        return {"images": np.random.default_rng(n).random((250, 3, 32, 32), np.float32)}

settings, folder = QuantizeSettings(calibration=sys.argv[3]), Path(sys.argv[2])
Quantizer(Path(sys.argv[1]), Batches(), settings, folder).write(folder / "int8.onnx")
# Do not use ru_maxrss: it starts with the value of the parent process.
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(peak.split()[1])
"""


@pytest.fixture(scope="module")
def resnet56(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet56") / "model.onnx"
    export_onnx(ResNet(9), NetworkSpec("resnet56", (3, 32, 32), 10), path)
    return path


@pytest.mark.seconds
@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux reports the peak memory of a process"
)
@pytest.mark.parametrize(
    "calibration", ["minmax", pytest.param("percentile", marks=pytest.mark.slow)]
)
def test_quantizing_a_deep_network_needs_little_memory(resnet56, tmp_path, calibration):
    """A ResNet-56 with 500 images in two batches needs 3.4 GiB if complete batches are run."""
    done = subprocess.run(
        [sys.executable, "-c", QUANTIZE, str(resnet56), str(tmp_path), calibration],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # This also checks that nothing else is printed, such as ONNX Runtime's calibration messages.
    assert int(done.stdout) / 2**20 < 1.0


def write_masked(folder: Path, masked: float) -> Path:
    """Write a network that masks the last three of eight scores."""
    make = onnx.helper.make_node
    nodes = [
        make("MatMul", ["x", "w1"], ["scores"], "first"),
        make("Where", ["seen", "scores", "masked"], ["left"], "mask"),
        make("Softmax", ["left"], ["shares"], "softmax"),
        make("MatMul", ["shares", "w2"], ["y"], "second"),
    ]
    tensors = {"w1": random(6, 8), "w2": random(8, 5, seed=1)}
    tensors |= {"seen": np.arange(8) < 5, "masked": np.float32(masked)}
    path = folder / "float.onnx"
    onnx.save(network(nodes, tensors, inputs={"x": ("batch", 6)}), path)
    return path


@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min])
def test_masked_scores_stay_in_float(tmp_path, masked):
    """The range of scores that are masked with minus infinity says nothing about the others."""
    model, feed = write_masked(tmp_path, masked), {"x": random(40, 6, seed=2)}
    (tmp_path / "work").mkdir()
    quantizer = Quantizer(model, [feed], QuantizeSettings(), tmp_path / "work")
    for name in ("first.onnx", "second.onnx"):
        quantizer.write(tmp_path / name, IntegerTypes("uint8", reduce_range=True))
        read = onnx.load(tmp_path / name)
        (expected,), (outputs,) = (
            list(ModelRun(graph, "net")(feed).values()) for graph in (onnx.load(model), read)
        )
        assert np.abs(outputs - expected).max() < 0.1 * np.abs(expected).max()
        operators = {node.op_type for node in read.graph.node}
        assert {"QuantizeLinear", "Softmax", "Where"} <= operators


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
def test_a_histogram_of_infinite_values_is_refused(tmp_path, calibration):
    model, feed = write_masked(tmp_path, -np.inf), {"x": random(40, 6, seed=2)}
    (tmp_path / "work").mkdir()
    settings = QuantizeSettings(calibration=calibration)
    quantizer = Quantizer(model, [feed], settings, tmp_path / "work")
    with pytest.raises(UserError, match=rf"quantize\.calibration: '{calibration}' .* to minmax"):
        quantizer.write(tmp_path / "int8.onnx")
