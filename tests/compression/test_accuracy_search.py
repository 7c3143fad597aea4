"""Search for the cheapest network within an accuracy drop, in float and in int8."""

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.module_network import ModuleNetwork
from lowrank.tasks import get_task

SHAPE = (3, 8, 8)
SEARCH = {
    "select": "budget",
    "target": {"accuracy_drop": 5.0},
    "search": {"cost": "macs", "trials": 3},
    "negligible": 0,
    "largest_drop": 1,
}
CONV = {"conv": "tucker2", "linear": "svd"}


def classifier(outlier: float = 1.0) -> nn.Module:
    """Return a confident classifier. An outlier stretches the range of the activations."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    head = nn.Linear(16 * 64, 10)
    with torch.no_grad():
        head.weight.mul_(8)
        # The second layer reads the outlier with the inverse factor, so the function is the same.
        first.weight[0].mul_(outlier)
        first.bias[0].mul_(outlier)
        second.weight[:, 0].div_(outlier)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), head).eval()


def batches(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, *SHAPE, generator=generator) for _ in range(count)]


def searched(capsys, network, ranks, *, int8=True):
    small = lowrank.compress(
        network, SHAPE, factorize=CONV, ranks=SEARCH | ranks, images=batches(), int8=int8
    )
    return small, capsys.readouterr().err


def test_the_drop_is_that_in_int8(capsys):
    small, lines = searched(capsys, classifier(), {"target": {"accuracy_drop": 60.0}})
    assert "int8 of the original loses " in lines
    assert "trial 3 of 3: " in lines
    assert small.ranks["select"] == "budget"
    _, in_float = searched(capsys, classifier(), {"target": {"accuracy_drop": 60.0}}, int8=False)
    assert "int8 of the original" not in in_float
    first = [text[text.index("trial 1") :].partition("\n")[0] for text in (lines, in_float)]
    assert first[0] != first[1]


def test_if_int8_alone_loses_too_much_the_drop_is_that_in_float(capsys):
    between = {"search": {"cost": "macs", "trials": 3, "between": [0.6, 0.95]}}
    _, lines = searched(capsys, classifier(3000.0), between)
    assert "loses more than the target allows, so the trials are judged in float" in lines
    _, in_float = searched(capsys, classifier(3000.0), between, int8=False)
    trials = [
        [line for line in text.splitlines() if "trial" in line and " of 3" in line]
        for text in (lines, in_float)
    ]
    assert trials[0] == trials[1]


def test_without_a_good_trial_int8_of_the_original_is_the_answer(capsys):
    between = {"search": {"cost": "macs", "trials": 2, "between": [0.17, 0.2]}}
    small, lines = searched(capsys, classifier(), between)
    assert "only int8 of the original is within the target, so no layer is replaced" in lines
    assert all(layer.is_dense for layer in small.layers)
    assert small.macs[0] == small.macs[1]


class TwoOutputs(nn.Module):
    """A network that returns its outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.network = classifier()

    def forward(self, images):
        answers = self.network(images)
        return {"scores": answers, "half": answers / 2}


@pytest.mark.parametrize("module", [classifier(), TwoOutputs()], ids=["one output", "two outputs"])
def test_int8_of_a_module_is_compared_as_the_module(module):
    original = ModuleNetwork.of(module, SHAPE, get_task("classification"), batches(1))
    change = original.in_int8().expected_from(original)
    assert change is not None
    same = original.expected_from(original)
    assert change.metric == same.metric
    assert change.after != same.after or change.accuracy_drop
    assert abs(change.after - same.after) < 20


def test_int8_of_a_file_changes_its_outputs_slightly(tmp_path):
    lowrank.compress(classifier(), SHAPE, ranks={"weaken": 1.0}).export(tmp_path / "net.onnx")
    original = GraphNetwork.read(
        tmp_path / "net.onnx", None, [batch.numpy() for batch in batches(1)]
    )
    change = original.in_int8().expected_from(original)
    assert 0 < change.after < 20
