"""A metric of the user: a function that measures a network on the user's own data."""

import json
import sys

import numpy as np
import pytest
import torch

from lowrank.config.metric_source import MetricSettings
from lowrank.errors import UserError
from lowrank.tasks import get_task


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes the user's module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(text: str, name: str = "own_metric") -> None:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)

    yield write
    sys.modules.pop("own_metric", None)


def task_of(settings="own_metric:measure"):
    return get_task(json.dumps(MetricSettings.model_validate(settings).to_document("")))


def value(task, network=lambda inputs: inputs.sum(1), split: str = "validation") -> float:
    return task.measure_split(split, network, iter(())).values["value"]


def test_the_function_runs_the_network_on_its_own_data(module):
    module(
        "import numpy as np\n"
        "def measure(evaluate):\n"
        "    outputs = evaluate(np.ones((2, 3)))\n"
        "    assert outputs.dtype == np.float32\n"
        "    return outputs.mean()\n"
    )
    assert value(task_of()) == 3.0


def test_the_function_gets_the_split_and_several_outputs(module):
    module(
        "import numpy as np\n"
        "def measure(evaluate, split):\n"
        "    outputs = evaluate(np.ones((2, 3), np.float32))\n"
        "    return outputs['boxes'].sum() + (split == 'test')\n"
    )
    network = {"boxes": torch.ones(2, 2)}
    assert value(task_of(), lambda _: network, "validation") == 4.0
    assert value(task_of(), lambda _: network, "test") == 5.0


def test_the_function_gives_several_inputs_by_name(module):
    module(
        "import numpy as np\n"
        "def measure(evaluate):\n"
        "    return evaluate({'ids': np.arange(3), 'x': np.ones((3, 2))}).sum()\n"
    )

    def network(inputs):
        assert {name: tensor.dtype for name, tensor in inputs.items()} == {
            "ids": torch.int64,
            "x": torch.float32,
        }
        return inputs["ids"] + inputs["x"].sum(1)

    assert value(task_of(), network) == 9.0


def test_name_unit_and_direction(module):
    module("def measure(evaluate): return 0.5")
    metric = task_of().metric
    assert (metric.name, metric.unit, metric.higher_is_better) == ("measure", "", True)
    assert (metric.best, task_of().useless_value(None)) == (1.0, 0.0)
    settings = {"function": "own_metric:measure", "unit": "px", "higher_is_better": False}
    task = task_of(settings | {"name": "endpoint error"})
    assert task.metric.text(2.0) == "2.00 px"
    assert (task.metric.noun, task.metric.best) == ("endpoint error", 0.0)
    # The value of a useless network is not known.
    assert task.useless_value(None) is None
    assert task_of(settings | {"chance": 40.0}).useless_value(None) == 40.0


def test_the_network_learns_from_the_original(module):
    module("def measure(evaluate): return 1")
    task = task_of()
    outputs, expected = torch.rand(4, 3, requires_grad=True), torch.rand(4, 3)
    task.imitation_loss(outputs, expected, temperature=4.0).backward()
    assert outputs.grad.any()
    assert not task.needs_labels
    assert not task.has_scores


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def measure(evaluate): raise ValueError('no boxes')",
            r"metric 'own_metric:measure': the function fails: ValueError: no boxes "
            r"\(own_metric.py, line 1: def measure.*Correct the function",
        ),
        ("def measure(evaluate): return float('nan')", "returns nan; expected a finite number"),
        ("def measure(evaluate): return None", "returns NoneType; expected a number"),
        ("def other(evaluate): return 1", "'measure'.*Known"),
        ("import nothing_like_this", "cannot be imported: ModuleNotFoundError.*nothing_like_this"),
        ("measure = 3", "'measure' is an int, expected a function"),
    ],
)
def test_mistakes_in_the_function_are_reported(module, code, message):
    module(code)
    with pytest.raises(UserError, match=message):
        value(task_of())


def test_an_error_of_the_network_keeps_its_type(module):
    module("import numpy as np\ndef measure(evaluate): return evaluate(np.ones((1, 2)))")

    def network(_):
        raise UserError("the network fails")

    with pytest.raises(UserError, match="the network fails"):
        value(task_of(), network)


def test_equal_functions_of_other_code_are_the_same_task(module):
    first = get_task(json.dumps(MetricSettings(function="a:b").to_document("1")))
    assert first == get_task(json.dumps(MetricSettings(function="a:b").to_document("2")))


def test_evaluate_takes_whole_numbers(module):
    module("import numpy as np\ndef measure(evaluate): return evaluate(np.arange(4)[None]).sum()")
    assert value(task_of(), lambda inputs: inputs) == np.arange(4).sum()


def test_a_metric_that_is_not_deterministic_is_reported(module, tiny_data):
    from toy import toy

    from lowrank.evaluation.original import measure_original
    from lowrank.zoo import NetworkSpec

    module("values = iter(range(9))\ndef measure(evaluate): return next(values)")
    lines: list[str] = []
    spec = NetworkSpec("toy", (3, 32, 32), 10)
    measure_original(task_of(), toy(), tiny_data, spec, say=lines.append)
    assert "warning: measure of the same network is 0.00 and, measured again, 1.00" in lines[-1]


def test_a_metric_without_a_split_is_measured_once_for_both(module, tiny_data):
    from toy import toy

    from lowrank.evaluation.network import measure_splits
    from lowrank.zoo import NetworkSpec

    module("values = iter(range(9))\ndef measure(evaluate): return next(values)")
    spec = NetworkSpec("toy", (3, 32, 32), 10)
    measured = measure_splits(task_of(), toy(), tiny_data, spec)
    assert [of_split.values["value"] for of_split in measured.values()] == [0.0, 0.0]
    module("values = iter(range(9))\ndef measure(evaluate, split): return next(values)")
    measured = measure_splits(task_of(), toy(), tiny_data, spec)
    assert [of_split.values["value"] for of_split in measured.values()] == [0.0, 1.0]
