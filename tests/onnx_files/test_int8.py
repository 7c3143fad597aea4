import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small import SPEC, logits_of, small_network

from lowrank.config.quantize import QuantizeSettings
from lowrank.devices.processor import Processor
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.int8 import Kept, Pieces, Quantizer, types_for, within_tolerance
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
    """Shapes of the weights that are stored in 8 bits."""
    return {
        each.name: tuple(each.dims)
        for each in onnx.load(path).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
    }


def relative_error(path: Path, exported: Path) -> float:
    images = torch.from_numpy(BATCHES[0]["images"])
    expected = logits_of(exported, images)
    return np.linalg.norm(logits_of(path, images) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_answers_are_nearly_those_of_the_network_in_float(exported, tmp_path, calibration):
    path = tmp_path / "int8.onnx"
    quantizer(exported, tmp_path / "work", calibration=calibration).write(path)
    assert 0 < relative_error(path, exported) < 0.1
    assert len(integer_weights(path)) == 6
    # Neither is what was measured of the types that processors without VNNI get.
    reduced = types_for(Processor("x86_64", "old", ("avx2",)), QuantizeSettings())
    quantizer(exported, tmp_path / "work", calibration=calibration).write(path, reduced)
    assert 0 < relative_error(path, exported) < 0.1
    onnx.checker.check_model(str(path), full_check=True)


def test_weights_have_a_scale_for_each_output_channel(exported, tmp_path):
    path = tmp_path / "int8.onnx"
    quantizer(exported, tmp_path / "work").write(path)
    shapes = [tuple(each.dims) for each in onnx.load(path).graph.initializer]
    for weight in integer_weights(path).values():
        assert (max(weight[0], 1),) in shapes


def test_equal_inputs_give_equal_bytes(exported, tmp_path):
    for name in ("first", "second"):
        quantizer(exported, tmp_path / f"{name} work").write(tmp_path / f"{name}.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_ranges_are_those_of_all_batches(exported, tmp_path):
    path, more = tmp_path / "int8.onnx", tmp_path / "more.onnx"
    quantizer(exported, tmp_path / "work").write(path)
    large = Quantizer(
        exported,
        [*BATCHES, {"images": 100 * BATCHES[0]["images"]}],
        QuantizeSettings(),
        tmp_path / "work",
    )
    (tmp_path / "work/ranges.json").unlink()
    large.write(more)
    assert relative_error(more, exported) > 3 * relative_error(path, exported)


def test_one_node_alone_and_all_but_one(exported, tmp_path):
    path = tmp_path / "int8.onnx"
    made = quantizer(exported, tmp_path / "work")
    assert len(made.nodes) == 6
    made.write(path, only=made.nodes[:1])
    assert len(integer_weights(path)) == 1
    made.write(path, but=made.nodes[:1])
    assert len(integer_weights(path)) == 5


def test_sensitive_nodes_stay_in_float(exported, tmp_path):
    """A node that does harm is found by itself, and nothing else is left out."""
    path = tmp_path / "int8.onnx"
    made = quantizer(exported, tmp_path / "work")
    harmful = made.nodes[2]
    made.write(path, but=made.nodes)
    said = []

    def hurt(file: Path) -> float:
        in_float = {
            node.name
            for node in onnx.load(file).graph.node
            if node.name in made.nodes and not _has_integer_weight(file, node)
        }
        return 0.0 if harmful in in_float else 5.0

    kept = within_tolerance(made, path, lost=hurt, divergence=hurt, tolerance=0.3, say=said.append)
    assert kept == Kept((harmful,), 0.0, within=True, measured=6)
    assert len(integer_weights(path)) == 5
    assert said[0].startswith("int8 loses 5.00 points, more than 0.3")


def _has_integer_weight(file: Path, node: onnx.NodeProto) -> bool:
    graph = onnx.load(file).graph
    stored = {each.name: each.data_type for each in graph.initializer}
    made_by = {output: each for each in graph.node for output in each.output}
    weight = made_by.get(node.input[1])
    return weight is not None and stored.get(weight.input[0]) == onnx.TensorProto.INT8


def test_all_may_stay_in_float(exported, tmp_path):
    made = quantizer(exported, tmp_path / "work")
    kept = within_tolerance(
        made,
        tmp_path / "int8.onnx",
        lost=lambda _: 1.0,
        divergence=lambda _: 0.0,
        tolerance=0.3,
    )
    assert sorted(kept.nodes) == sorted(made.nodes)
    assert not kept.within
    assert not integer_weights(tmp_path / "int8.onnx")


def test_the_search_ends_in_time(exported, tmp_path):
    """Each look at the clock is ten seconds later: half of a minute is for the measurement."""
    ticks, said = iter(range(0, 10_000, 10)), []
    made, path = quantizer(exported, tmp_path / "work"), tmp_path / "int8.onnx"
    losses = iter([5.0, 4.0, 4.5])
    kept = within_tolerance(
        made,
        path,
        lost=lambda _: next(losses),
        divergence=lambda _: 1.0,
        tolerance=0.3,
        seconds=60,
        say=said.append,
        clock=lambda: next(ticks),
    )
    assert kept == Kept(made.nodes[:1], 4.0, within=False, measured=2)
    assert "for at most 60 seconds" in said[0]
    assert "warning: the search ended after" in said[-1]
    assert "2 of 6 nodes measured" in said[-1]
    # The file is that of the least loss, not the last one tried.
    assert len(integer_weights(path)) == 5


def test_no_time_at_all_leaves_every_node_in_int8(exported, tmp_path):
    made, path = quantizer(exported, tmp_path / "work"), tmp_path / "int8.onnx"
    kept = within_tolerance(
        made, path, lost=lambda _: 9.0, divergence=lambda _: 1.0, tolerance=0.3, seconds=0
    )
    assert kept == Kept((), 9.0, within=False, measured=0)
    assert len(integer_weights(path)) == 6


def test_nodes_that_stay_in_float_in_any_case(exported, tmp_path):
    made, path = quantizer(exported, tmp_path / "work"), tmp_path / "int8.onnx"
    kept = within_tolerance(
        made,
        path,
        lost=lambda _: 0.0,
        divergence=lambda _: 0.0,
        tolerance=0.3,
        but=made.nodes[:2],
    )
    assert kept.nodes == ()
    assert len(integer_weights(path)) == 4


def test_pieces_hold_every_image_once():
    batches = [{"images": np.random.default_rng(n).random((21, 3, 32, 32))} for n in range(2)]
    pieces = Pieces(batches)
    assert [len(each["images"]) for each in pieces] == [8, 8, 5] * 2
    joined = np.concatenate([each["images"] for each in pieces])
    np.testing.assert_array_equal(joined, np.concatenate([each["images"] for each in batches]))
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
# Not ru_maxrss, which begins with that of the process that started this one.
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(peak.split()[1])
"""


@pytest.fixture(scope="module")
def resnet56(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet56") / "model.onnx"
    export_onnx(ResNet(9), NetworkSpec("resnet56", (3, 32, 32), 10), path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the peak of a process")
@pytest.mark.parametrize(
    "calibration", ["minmax", pytest.param("percentile", marks=pytest.mark.slow)]
)
def test_quantizing_a_deep_network_takes_little_memory(resnet56, tmp_path, calibration):
    """A ResNet-56 and 500 images in two batches: 3.4 GiB where whole batches are run."""
    done = subprocess.run(
        [sys.executable, "-c", QUANTIZE, str(resnet56), str(tmp_path), calibration],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Nothing else is printed: ONNX Runtime's calibration says so for each piece.
    assert int(done.stdout) / 2**20 < 1.0
