"""The task `agreement`: outputs of any kind, compared with those of the original."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lowrank.core.output_change import class_axis
from lowrank.tasks import get_task
from lowrank.tasks.outputs import outputs_from
from lowrank.testing import check_task

TASK = get_task("agreement")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(outputs, expected, size: int = 5):
    def part(value, rows):
        if isinstance(value, dict):
            return {name: tensor[rows] for name, tensor in value.items()}
        return value[rows]

    count = len(next(iter(expected.values())) if isinstance(expected, dict) else expected)
    batches = [(rows, part(expected, rows)) for rows in torch.arange(count).split(size)]
    return TASK.measure(lambda rows: part(outputs, rows), batches)


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param(None, id="vectors"),
        pytest.param(lambda n, g: torch.randn(n, 3, 4, 5, generator=g), id="maps"),
    ],
)
def test_the_task_keeps_its_contract(outputs):
    check_task(TASK, outputs=outputs)


def test_the_error_is_relative_to_the_spread_of_the_original():
    expected = noise(400, 6) + 100
    spread = float((expected - expected.mean(0)).norm())
    outputs = expected + 0.1 * noise(400, 6, seed=1)
    error = float((outputs - expected).norm()) / spread
    assert measured(outputs, expected).values["error"] == pytest.approx(100 * error, rel=1e-4)
    # A network that always gives the mean has an error of 100 %.
    mean = expected.mean(0).expand_as(expected)
    assert measured(mean, expected).values["error"] == pytest.approx(100, rel=1e-4)


def test_scores_give_the_metric_and_its_standard_error():
    expected = noise(500, 4)
    result = measured(expected + 0.2 * noise(500, 4, seed=1), expected)
    assert 100 * result.scores.mean() == pytest.approx(result.values["error"], rel=1e-6)
    errors = []
    for seed in range(40):
        sample = torch.from_numpy(np.random.default_rng(seed).integers(0, 500, 500))
        outputs = (expected + 0.2 * noise(500, 4, seed=1))[sample]
        errors.append(measured(outputs, expected[sample]).values["error"])
    drop, standard_error = TASK.drop(measured(expected, expected), result)
    assert drop == pytest.approx(result.values["error"], rel=1e-6)
    assert standard_error == pytest.approx(np.std(errors), rel=0.5)


def test_distributions_also_have_equal_answers_and_a_divergence():
    logits = noise(50, 10, 6)
    expected, outputs = logits.softmax(-1), (logits + 0.3 * noise(50, 10, 6, seed=1)).softmax(-1)
    values = measured(outputs, expected).values
    same = (outputs.argmax(-1) == expected.argmax(-1)).double().mean()
    nats = (expected * (expected / outputs).log()).sum(-1).mean()
    assert values["same"] == pytest.approx(100 * float(same))
    assert values["kl"] == pytest.approx(float(nats), rel=1e-4)
    assert float(TASK.divergence(outputs, expected)) == pytest.approx(float(nats), rel=1e-4)
    assert not TASK.same(outputs, expected).all()
    assert TASK.same(expected, expected).all()


def test_the_loss_of_distributions_is_the_mean_divergence_of_both_directions():
    expected, outputs = noise(50, 10, 6).softmax(-1), noise(50, 10, 6, seed=1).softmax(-1)
    loss = float(TASK.imitation_loss(outputs, expected, temperature=1.0))
    both = TASK.divergence(outputs, expected) + TASK.divergence(expected, outputs)
    assert loss == pytest.approx(float(both) / 2, rel=1e-5)


def test_of_several_outputs_the_worst_counts():
    expected = {"boxes": noise(30, 4, 8), "scores": noise(30, 4, seed=1), "count": torch.arange(30)}
    outputs = expected | {"scores": expected["scores"] + noise(30, 4, seed=2)}
    alone = measured(outputs["scores"], expected["scores"]).values["error"]
    assert measured(outputs, expected).values["error"] == pytest.approx(alone)
    loss = TASK.loss(outputs, expected)
    assert 0 < float(loss) < float(TASK.loss(outputs["scores"], expected["scores"]))


def test_an_output_of_another_shape_counts_as_missing():
    expected = {"boxes": noise(10, 4), "scores": noise(10, 4, seed=1)}
    outputs = expected | {"boxes": noise(10, 3)}
    assert measured(outputs, expected).values["error"] >= 100
    assert float(TASK.divergence(outputs, expected)) == pytest.approx(0.25)


def test_a_result_that_is_not_finite_is_a_large_error():
    expected = noise(10, 4)
    assert measured(expected * float("nan"), expected).values["error"] > 1e6


def test_class_axis():
    probabilities = noise(5, 7).softmax(1)
    assert class_axis(probabilities) == 1
    assert class_axis(probabilities.numpy()) == 1
    assert class_axis(noise(5, 7, 3, 3).softmax(1)) == 1
    assert class_axis(noise(5, 7)) is None
    assert class_axis(torch.rand(5)) is None


def test_outputs_are_named():
    first, second = noise(2, 3), noise(2, 4)
    assert outputs_from(first) is first
    assert list(outputs_from((first, [second, None]))) == ["output0", "output1.output0"]
    assert list(outputs_from({"boxes": first, "more": {"scores": second}})) == [
        "boxes",
        "more.scores",
    ]
    with pytest.raises(TypeError, match="returns str without a tensor"):
        outputs_from("logits")
