"""Estimates of memory and time, compared with measurements of VGG-16 on CIFAR-10."""

from pathlib import Path

import pytest

from lowrank.config.training import TrainingSettings
from lowrank.core.layers import LayerTable
from lowrank.files import read_json
from lowrank.graph.job_costs import JobCosts

TABLES = Path(__file__).parents[2] / "data/networks"


@pytest.fixture(scope="module")
def costs() -> JobCosts:
    return JobCosts.of(LayerTable.from_json(read_json(TABLES / "vgg16.json")))


def training(**settings) -> TrainingSettings:
    return TrainingSettings.model_validate({"learning_rate": 0.1, "threads": 2} | settings)


def test_costs_of_a_network(costs):
    # 14.7 million weights, 313 million MACs, and 276,490 outputs of layers for one image.
    assert costs.weights_mb == pytest.approx(4 * 14.72, rel=0.01)
    assert costs.largest_mb == pytest.approx(4 * 9 * 512 * 512 / 1e6, rel=0.01)
    assert costs.maps_mb == pytest.approx(4 * 0.2765, rel=0.01)
    assert costs.macs == pytest.approx(313e6, rel=0.01)
    assert costs.batch == 250


# Peak memory of the steps of VGG-16 in MB (`VmHWM`), two threads, without a GPU.
@pytest.mark.parametrize(
    ("work", "peaks"),
    [
        ("evaluating", {"checkpoint": 1207, "export_onnx": 1821, "quantize": 1211}),
        ("analyzing", {"select_ranks": 1955, "calibrate": 1552}),
        ("decomposing", {"decompose": 131}),
        ("measuring", {"benchmark": 880}),
    ],
)
def test_jobs_get_more_memory_than_was_measured(costs, work, peaks):
    estimate = getattr(costs, f"{work}_mb")
    assert max(peaks.values()) < estimate < 5000


def test_training_gets_more_memory_than_was_measured(costs):
    estimate = costs.training_mb(training(steps=5, batch_size=128))
    assert 1.2 * 1975 < estimate < 3 * 1975
    assert costs.training_mb(training(steps=5, batch_size=512)) > estimate + 1500


def test_training_gets_more_time_than_it_takes(costs):
    # 700 steps of 128 images took 4 minutes with bfloat16 and about 10 in float32.
    minutes = costs.training_minutes(training(steps=700, batch_size=128))
    assert 60 < minutes < 600
    assert costs.training_minutes(training(steps=1400, batch_size=128)) > 1.5 * minutes
    assert costs.training_minutes(training(epochs=5, batch_size=128)) > minutes


def test_threads_shorten_the_time(costs):
    assert costs.evaluating_minutes(4) <= costs.evaluating_minutes(1)
    assert costs.analyzing_minutes(4) < costs.analyzing_minutes(1)


def test_large_images_are_evaluated_in_small_batches():
    table = LayerTable.from_json(read_json(TABLES / "vgg16.json"))
    large = LayerTable("vgg16", (3, 2000, 1000), table.layers)
    assert JobCosts.of(large).batch == 1
